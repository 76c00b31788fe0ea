// SPDX-License-Identifier: GPL-2.0-only

//! Tables of a driver's functions, which the gate makes copies of.

use crate::bindings;

/// The bytes of operations, to compare them.
pub(super) fn bytes_of<T: Operations>(ops: &T) -> &[u8] {
    // SAFETY: The structure consists of pointers only, so that all its bytes are initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(ops).cast(), size_of::<T>()) }
}

/// A structure of pointers to functions.
///
/// # Safety
///
/// It has no padding.
pub(super) unsafe trait Operations {}

// SAFETY: All its fields are pointers.
unsafe impl Operations for bindings::vfio_device_ops {}
// SAFETY: All its fields are pointers.
unsafe impl Operations for bindings::vm_operations_struct {}
