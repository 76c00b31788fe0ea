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
    /// Calls `f` with the user address of a field at `gpa`.
    fn u16_at<R>(&self, gpa: u64, f: impl FnOnce(usize) -> Result<R>) -> Result<R, Fault> {
        let size = size_of::<u16>();
        let result = self.0.access(gpa, size, |address, len| match len == size {
            true => f(address),
            false => Err(EFAULT),
        });
        result.map_err(|_| Fault)
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
        let mut value = 0u16;
        self.u16_at(gpa, |address| {
            // SAFETY: `value` is valid for writes; the address is checked as user memory's.
            to_result(unsafe { bindings::get_user_u16(&mut value, address) })
        })?;
        Ok(u16::from_le(value))
    }

    fn write_u16(&self, gpa: u64, value: u16) -> Result<(), Fault> {
        self.u16_at(gpa, |address| {
            // SAFETY: The address is checked as user memory's.
            to_result(unsafe { bindings::put_user_u16(value.to_le(), address) })
        })
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
