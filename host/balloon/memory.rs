// SPDX-License-Identifier: GPL-2.0-only

//! The guest's memory for the rings: the VMM's user memory, reached by the
//! guest-physical addresses of its VFIO mappings.

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::{
    bindings,
    compat,
    logic::memory::{
        Fault,
        Memory, //
    },
    vm::Vm, //
};

/// The memory of the VM that the calling thread belongs to.
///
/// Every access may fault pages in, so it may sleep, and takes the mmap lock.
pub(super) struct GuestMemory<'a>(pub(super) &'a Vm);

impl GuestMemory<'_> {
    fn u16_address(&self, gpa: u64) -> Result<usize, Fault> {
        match self.0.user_address(gpa, size_of::<u16>()) {
            Ok((address, len)) if len == size_of::<u16>() => Ok(address),
            _ => Err(Fault),
        }
    }
}

impl Memory for GuestMemory<'_> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.0.read_guest(gpa, buf).map_err(|_| Fault)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write_guest(gpa, data).map_err(|_| Fault)
    }

    fn read_u16(&self, gpa: u64) -> Result<u16, Fault> {
        let address = self.u16_address(gpa)?;
        let mut value = 0u16;
        // SAFETY: `value` is valid for writes; the address is checked as user memory's.
        to_result(unsafe { bindings::get_user_u16(&mut value, address) }).map_err(|_| Fault)?;
        Ok(u16::from_le(value))
    }

    fn write_u16(&self, gpa: u64, value: u16) -> Result<(), Fault> {
        let address = self.u16_address(gpa)?;
        // SAFETY: The address is checked as user memory's.
        to_result(unsafe { bindings::put_user_u16(value.to_le(), address) }).map_err(|_| Fault)
    }

    // The vCPUs are threads of this machine, whatever the guest thinks it has.
    fn rmb(&self) {
        compat::smp_rmb();
    }

    fn wmb(&self) {
        compat::smp_wmb();
    }

    fn mb(&self) {
        compat::smp_mb();
    }
}
