// SPDX-License-Identifier: GPL-2.0-only

//! `struct vdpa_config_ops`: what `vhost-vdpa` calls, turned into calls of
//! [`Front`](super::Front) and of the [`Backend`].
//!
//! Source: `drivers/vhost/vdpa.c`. It checks queue indices, queue sizes and the
//! bounds of configuration accesses against what these functions answer, and
//! calls them with its device's mutex held, but for `kick_vq`. `vdpa_device.cf_lock`
//! is held for writing at `reset`, `set_status`, `set_driver_features` and
//! `set_config`; the first two give it up while they wait for memory to be mapped,
//! and `reset` for the thread as well.

use core::marker::PhantomData;

use kernel::{
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

use super::{
    callback::Callback,
    parent::{
        Inner,
        Parent, //
    },
    spec::*,
    Backend, //
};
use crate::bindings::{
    self,
    vdpa_device, //
};

/// The operations of a [`VdpaDevice<B>`](super::device::VdpaDevice).
pub(super) struct ConfigOps<B>(PhantomData<B>);

/// Runs `f` on what belongs to `vdpa`; the default if there is nothing.
///
/// # Safety
///
/// `vdpa` must be a registered `VdpaDevice<B>`, valid for the duration of the call.
unsafe fn with<B: Backend, R: Default>(
    vdpa: *const vdpa_device,
    f: impl FnOnce(&Inner<B>) -> R,
) -> R {
    // SAFETY: By the safety requirement.
    unsafe { Parent::<B>::inner(vdpa) }.map_or_else(R::default, f)
}

/// Runs `f` without the `cf_lock` that the vDPA core holds.
///
/// For what takes as long as mapping a VM's memory does, and as often as its guest
/// likes: who asks for the device's configuration by netlink waits for the lock, and
/// keeps all other vDPA devices of the host from coming and going meanwhile. It
/// protects nothing here: the registers have a lock of their own, and their
/// device's mutex keeps other calls of the VMM away.
///
/// # Safety
///
/// `vdpa` must be valid, and the caller hold its `cf_lock` for writing.
unsafe fn without_cf_lock<R>(vdpa: *mut vdpa_device, f: impl FnOnce() -> R) -> R {
    // SAFETY: `vdpa` is valid, and the caller holds the lock for writing.
    unsafe { bindings::up_write(&raw mut (*vdpa).cf_lock) };
    let result = f();
    // SAFETY: `vdpa` is valid; the caller gives the lock up.
    unsafe { bindings::down_write(&raw mut (*vdpa).cf_lock) };
    result
}

// All functions below are called by the vDPA core and its bus drivers with a
// device whose `config` is our table: a registered `VdpaDevice<B>`, which lives until
// they are done. "Our device" below stands for that.
impl<B: Backend> ConfigOps<B> {
    const TABLE: bindings::vdpa_config_ops = bindings::vdpa_config_ops {
        set_vq_address: Some(Self::set_vq_address),
        set_vq_num: Some(Self::set_vq_num),
        kick_vq: Some(Self::kick_vq),
        set_vq_cb: Some(Self::set_vq_cb),
        set_vq_ready: Some(Self::set_vq_ready),
        get_vq_ready: Some(Self::get_vq_ready),
        set_vq_state: Some(Self::set_vq_state),
        get_vq_state: Some(Self::get_vq_state),
        get_vq_align: Some(Self::get_vq_align),
        get_device_features: Some(Self::get_device_features),
        set_driver_features: Some(Self::set_driver_features),
        get_driver_features: Some(Self::get_driver_features),
        set_config_cb: Some(Self::set_config_cb),
        get_vq_num_max: Some(Self::get_vq_num_max),
        get_device_id: Some(Self::get_device_id),
        get_vendor_id: Some(Self::get_vendor_id),
        get_status: Some(Self::get_status),
        set_status: Some(Self::set_status),
        reset: Some(Self::reset),
        suspend: Some(Self::suspend),
        resume: Some(Self::resume),
        get_config_size: Some(Self::get_config_size),
        get_config: Some(Self::get_config),
        set_config: Some(Self::set_config),
        get_generation: Some(Self::get_generation),
        set_map: Some(Self::set_map),
        bind_mm: Some(Self::bind_mm),
        unbind_mm: Some(Self::unbind_mm),
        free: Some(Self::free),
        // SAFETY: All fields are optional functions: zero is `None`.
        ..unsafe { core::mem::zeroed() }
    };

    /// The table, with a static lifetime.
    pub(super) fn table() -> &'static bindings::vdpa_config_ops {
        &Self::TABLE
    }

    extern "C" fn set_vq_address(
        vdpa: *mut vdpa_device,
        index: u16,
        desc: u64,
        avail: u64,
        used: u64,
    ) -> c_int {
        let change = |inner: &Inner<B>| {
            inner.front.registers().set_queue(index, |queue| {
                queue.desc = desc;
                queue.avail = avail;
                queue.used = used;
            })
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, change) };
        0
    }

    extern "C" fn set_vq_num(vdpa: *mut vdpa_device, index: u16, size: u32) {
        let size = u16::try_from(size).unwrap_or(0);
        let change = |inner: &Inner<B>| {
            let mut registers = inner.front.registers();
            registers.set_queue(index, |queue| queue.size = size);
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, change) }
    }

    /// May be called from a wakeup with interrupts off, see [`Backend::kick`].
    extern "C" fn kick_vq(vdpa: *mut vdpa_device, _index: u16) {
        // SAFETY: Our device.
        unsafe { with(vdpa, |inner: &Inner<B>| inner.backend.kick()) }
    }

    extern "C" fn set_vq_cb(
        vdpa: *mut vdpa_device,
        index: u16,
        callback: *mut bindings::vdpa_callback,
    ) {
        // SAFETY: The bus driver passes a valid callback. It may be called while
        // the device is open: `reset` and `unbind_mm` forget it.
        let callback = unsafe { Callback::new(&*callback) };
        let set = |inner: &Inner<B>| inner.front.set_callback(usize::from(index), callback);
        // SAFETY: Our device.
        unsafe { with(vdpa, set) }
    }

    extern "C" fn set_vq_ready(vdpa: *mut vdpa_device, index: u16, ready: bool) {
        let set = |inner: &Inner<B>| {
            inner.front.registers().set_ready(index, ready);
            inner.backend.quiesce();
            inner.backend.kick();
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, set) }
    }

    extern "C" fn get_vq_ready(vdpa: *mut vdpa_device, index: u16) -> bool {
        // SAFETY: Our device.
        unsafe {
            with(vdpa, |inner: &Inner<B>| {
                inner.front.registers().ready(index)
            })
        }
    }

    extern "C" fn set_vq_state(
        vdpa: *mut vdpa_device,
        index: u16,
        state: *const bindings::vdpa_vq_state,
    ) -> c_int {
        // SAFETY: The caller passes a valid state, of a split ring: a packed one
        // is not on offer.
        let next = unsafe { (*state).__bindgen_anon_1.split.as_ref().avail_index };
        let change = |inner: &Inner<B>| {
            let mut registers = inner.front.registers();
            registers.set_queue(index, |queue| queue.next = next);
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, change) };
        0
    }

    extern "C" fn get_vq_state(
        vdpa: *mut vdpa_device,
        index: u16,
        state: *mut bindings::vdpa_vq_state,
    ) -> c_int {
        // SAFETY: Our device.
        let next = unsafe { with(vdpa, |inner: &Inner<B>| inner.front.registers().next(index)) };
        // SAFETY: The caller passes a valid state, of a split ring.
        unsafe { (*state).__bindgen_anon_1.split.as_mut().avail_index = next };
        0
    }

    extern "C" fn get_vq_align(_vdpa: *mut vdpa_device) -> u32 {
        PAGE_SIZE as u32
    }

    extern "C" fn get_device_features(_vdpa: *mut vdpa_device) -> u64 {
        FEATURES
    }

    extern "C" fn set_driver_features(vdpa: *mut vdpa_device, features: u64) -> c_int {
        let set = |inner: &Inner<B>| inner.front.registers().set_features(features);
        // SAFETY: Our device.
        if unsafe { with(vdpa, set) } {
            0
        } else {
            EBUSY.to_errno()
        }
    }

    extern "C" fn get_driver_features(vdpa: *mut vdpa_device) -> u64 {
        // SAFETY: Our device.
        unsafe { with(vdpa, |inner: &Inner<B>| inner.front.registers().features()) }
    }

    extern "C" fn set_config_cb(vdpa: *mut vdpa_device, callback: *mut bindings::vdpa_callback) {
        // SAFETY: As in `set_vq_cb`; this one survives `reset`, as it does in the
        // vDPA simulators, and `unbind_mm` forgets it. A driver on virtio_vdpa,
        // which has no `unbind_mm`, is refused before it could set one.
        let callback = unsafe { Callback::new(&*callback) };
        let set = |inner: &Inner<B>| inner.front.set_config_callback(callback);
        // SAFETY: Our device.
        unsafe { with(vdpa, set) }
    }

    extern "C" fn get_vq_num_max(_vdpa: *mut vdpa_device) -> u16 {
        QUEUE_SIZE
    }

    extern "C" fn get_device_id(_vdpa: *mut vdpa_device) -> u32 {
        DEVICE_ID
    }

    extern "C" fn get_vendor_id(_vdpa: *mut vdpa_device) -> u32 {
        VENDOR_ID
    }

    extern "C" fn get_status(vdpa: *mut vdpa_device) -> u8 {
        // SAFETY: Our device.
        unsafe { with(vdpa, |inner: &Inner<B>| inner.front.registers().status()) }
    }

    extern "C" fn set_status(vdpa: *mut vdpa_device, status: u8) {
        let set = |inner: &Inner<B>| {
            let Some(features) = inner.front.registers().set_status(status) else {
                return;
            };
            // SAFETY: The core calls with the lock held, see the top of this file.
            match unsafe { without_cf_lock(vdpa, || inner.backend.driver_ok(features)) } {
                Ok(()) => {
                    inner.front.registers().start();
                    // The driver may have kicked before.
                    inner.backend.kick();
                }
                Err(error) => {
                    let front = &inner.front;
                    front.warn(fmt!("the driver cannot be served: {error:?}"));
                    front.start_broken();
                }
            }
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, set) }
    }

    extern "C" fn reset(vdpa: *mut vdpa_device) -> c_int {
        let reset = |inner: &Inner<B>| {
            inner.front.reset();
            // The first call of an open. While the module goes there is no reference to be had,
            // and `bind_mm` refuses; this must not fail, since vhost-vdpa would then forget that
            // its removal waits for the last close.
            let _ = inner.opened();
            let rest = || {
                // The thread may be in a page fault that the VMM's own memory takes long for.
                inner.backend.quiesce();
                inner.backend.reset()
            };
            // SAFETY: The core calls with the lock held, see the top of this file.
            unsafe { without_cf_lock(vdpa, rest) }
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, |inner| errno(reset(inner))) }
    }

    extern "C" fn suspend(vdpa: *mut vdpa_device) -> c_int {
        let suspend = |inner: &Inner<B>| {
            inner.front.registers().suspend(true);
            inner.backend.quiesce();
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, suspend) };
        0
    }

    extern "C" fn resume(vdpa: *mut vdpa_device) -> c_int {
        let resume = |inner: &Inner<B>| {
            inner.front.registers().suspend(false);
            inner.backend.kick();
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, resume) };
        0
    }

    extern "C" fn get_config_size(_vdpa: *mut vdpa_device) -> usize {
        CONFIG_SIZE
    }

    extern "C" fn get_config(
        vdpa: *mut vdpa_device,
        offset: c_uint,
        buf: *mut c_void,
        len: c_uint,
    ) {
        // SAFETY: The caller passes a buffer of `len` initialised bytes.
        let buf = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), len as usize) };
        let get = |inner: &Inner<B>| {
            let config = inner.front.registers().config();
            for (to, from) in buf.iter_mut().zip(config.iter().skip(offset as usize)) {
                *to = *from;
            }
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, get) }
    }

    extern "C" fn set_config(
        vdpa: *mut vdpa_device,
        offset: c_uint,
        buf: *const c_void,
        len: c_uint,
    ) {
        // SAFETY: The caller passes a buffer of `len` bytes.
        let buf = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), len as usize) };
        let set = |inner: &Inner<B>| inner.front.registers().set_config(offset as usize, buf);
        // SAFETY: Our device.
        unsafe { with(vdpa, set) }
    }

    extern "C" fn get_generation(vdpa: *mut vdpa_device) -> u32 {
        // SAFETY: Our device.
        unsafe {
            with(vdpa, |inner: &Inner<B>| {
                inner.front.registers().generation()
            })
        }
    }

    /// Needed for `use_va`, without which there is no `bind_mm`. Its mappings are
    /// of no use: for a device like ours vhost-vdpa has entries for memory of
    /// shared files only, so anonymous RAM is missing. The back end translates
    /// through the VM's VFIO mappings, which are complete. May be called with
    /// the mmap lock held.
    extern "C" fn set_map(
        _vdpa: *mut vdpa_device,
        _asid: c_uint,
        _iotlb: *mut bindings::vhost_iotlb,
    ) -> c_int {
        0
    }

    /// Called in the owner's ioctl: `mm` is `current->mm`.
    extern "C" fn bind_mm(vdpa: *mut vdpa_device, _mm: *mut bindings::mm_struct) -> c_int {
        let bind = |inner: &Inner<B>| {
            inner.opened()?;
            inner.backend.bind()?;
            inner.front.registers().bind();
            Ok(())
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, |inner| errno(bind(inner))) }
    }

    /// Called at every close, after `reset`.
    extern "C" fn unbind_mm(vdpa: *mut vdpa_device) {
        let unbind = |inner: &Inner<B>| {
            inner.backend.unbind();
            inner.front.unbind();
            inner.closed();
        };
        // SAFETY: Our device.
        unsafe { with(vdpa, unbind) }
    }

    extern "C" fn free(vdpa: *mut vdpa_device) {
        // SAFETY: Our device, and its last operation.
        unsafe { Parent::<B>::free(vdpa) }
    }
}

/// 0 or the negative errno.
fn errno(result: Result) -> c_int {
    from_result(|| result.map(|()| 0))
}
