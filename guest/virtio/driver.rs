// SPDX-License-Identifier: GPL-2.0-only

//! Drivers on the virtio bus.

use super::{
    Device,
    Transport, //
};
use crate::bindings;
use core::marker::PhantomData;
use kernel::{
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

/// Why a device is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The driver was bound to it.
    Probe,
    /// The system resumes after [`Driver::stop`] was called to suspend it.
    Resume,
}

/// A virtio driver; a value of the type drives one device.
///
/// The core calls `new`, `start` and `stop` in process context, one at a time for each device.
///
/// # Safety
///
/// `stop` must drop the [`Transport`] that the last `start` was given.
pub(crate) unsafe trait Driver: Sized + Send + Sync + 'static {
    /// The driver's name on the bus.
    const NAME: &'static CStr;

    /// The device id (virtio 1.2, chapter 5).
    const DEVICE_ID: u32;

    /// The feature bit, of the device's own, without which the driver declines a device.
    const FEATURE: u32;

    /// Sets up what the driver keeps for `device`. Nothing may be sent yet.
    fn new(device: &Device) -> Result<Pin<KBox<Self>>>;

    /// Brings the device to life. After an error, `stop` follows.
    fn start(&self, transport: Transport, reason: Reason) -> Result;

    /// Ends all that goes on, and resets the device by dropping the transport.
    ///
    /// Also called after a `start` that failed, and twice if a device that was suspended goes away.
    fn stop(&self);

    /// The device has used a buffer of some queue. Interrupt context.
    fn used(&self);

    /// The device's configuration has changed. Interrupt context, with a spin lock held.
    fn config_changed(&self);
}

/// A driver that is known to the virtio bus until this is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Driver> {
    #[pin]
    driver: Opaque<bindings::virtio_driver>,
    _driver: PhantomData<T>,
}

// SAFETY: It only keeps the driver registered; unregistering it is allowed in any thread.
unsafe impl<T: Driver> Send for Registration<T> {}
// SAFETY: It has no methods.
unsafe impl<T: Driver> Sync for Registration<T> {}

impl<T: Driver> Registration<T> {
    // References, so that what they refer to is static for sure.
    const IDS: &'static [bindings::virtio_device_id; 2] = &[
        bindings::virtio_device_id {
            device: T::DEVICE_ID,
            vendor: bindings::VIRTIO_DEV_ANY_ID,
        },
        bindings::virtio_device_id {
            device: 0,
            vendor: 0,
        },
    ];
    const FEATURES: &'static [u32; 1] = &[T::FEATURE];

    /// Registers the driver. Devices that are waiting for one are probed before this returns.
    pub(crate) fn new(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            driver <- Opaque::try_ffi_init(|slot: *mut bindings::virtio_driver| {
                // SAFETY: `slot` is memory for a virtio_driver, for which zero is a valid value. It
                // is pinned from here on, and freed only after `drop` has unregistered it. The
                // tables are static, and the callbacks are what the core expects in their places.
                to_result(unsafe {
                    slot.write_bytes(0, 1);
                    (*slot).driver.name = T::NAME.as_char_ptr();
                    // Whoever loads the module, or the device's transport, counts on probe() being
                    // over: the drivers of assigned devices come next.
                    (*slot).driver.probe_type = bindings::probe_type_PROBE_FORCE_SYNCHRONOUS;
                    (*slot).id_table = Self::IDS.as_ptr();
                    (*slot).feature_table = Self::FEATURES.as_ptr();
                    (*slot).feature_table_size = 1;
                    (*slot).validate = Some(Self::validate);
                    (*slot).probe = Some(Self::probe);
                    (*slot).remove = Some(Self::remove);
                    (*slot).config_changed = Some(Self::config_changed);
                    (*slot).freeze = Some(Self::freeze);
                    (*slot).restore = Some(Self::restore);
                    // No shutdown(): the core's own breaks the queues, so that nobody waits for the
                    // host any more, and resets the device. What is in the balloon stays there, and
                    // a kernel that is booted by kexec meets the device as after power-on.
                    bindings::__register_virtio_driver(slot, module.as_ptr())
                })
            }),
            _driver: PhantomData,
        })
    }

    /// The driver's data of a device.
    ///
    /// # Safety
    ///
    /// `vdev` must be between the moment when `probe` has set its `priv` and the moment when
    /// `probe`, on its way out, or `remove` takes it back.
    unsafe fn data<'a>(vdev: *mut bindings::virtio_device) -> Pin<&'a T> {
        // SAFETY: `priv` is what `into_foreign` gave, and nothing borrows it mutably.
        unsafe { <Pin<KBox<T>> as ForeignOwnable>::borrow((*vdev).priv_) }
    }

    /// Takes the driver's data back and drops it.
    ///
    /// # Safety
    ///
    /// As for `data`; and no callback may be running or run after this.
    unsafe fn forget(vdev: *mut bindings::virtio_device) {
        // SAFETY: By the caller's promise this is the only user of what `into_foreign` gave.
        unsafe {
            drop(<Pin<KBox<T>> as ForeignOwnable>::from_foreign(
                (*vdev).priv_,
            ));
            (*vdev).priv_ = core::ptr::null_mut();
        }
    }

    /// Gives the device to the driver.
    ///
    /// # Safety
    ///
    /// As for `data`; the device has no queues, and its features are negotiated.
    unsafe fn start(vdev: *mut bindings::virtio_device, reason: Reason) -> Result {
        // SAFETY: The caller vouches for `vdev`; `used` can stand being called from now on, since
        // the data is there.
        unsafe {
            let transport = Transport::new(vdev, Self::used)?;
            Self::data(vdev).start(transport, reason)
        }
    }

    /// Has the device be as new when binding it has failed, for the next who tries.
    ///
    /// The core says in the status that it has failed, and never takes that back; there are devices
    /// that do nothing then, for nobody. Without memory for this they are left so.
    ///
    /// # Safety
    ///
    /// The device must be one that is being bound to us, and that must fail.
    unsafe fn renew(vdev: *mut bindings::virtio_device) {
        // SAFETY: What is to be done is done when the core is through with the device, which stays
        // until then, and before another driver is tried.
        let _ = unsafe { bindings::virtio_renew_later(vdev) };
    }

    /// # Safety
    ///
    /// Called by the virtio core alone, as it documents.
    unsafe extern "C" fn validate(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: The core calls this with a device that is being bound to us.
        let device = unsafe { Device::from_raw(vdev) };
        from_result(|| {
            if !device.has_config() {
                return Err(EINVAL);
            }
            // Here, and not in probe(): features are not final yet, so that the next driver that
            // is tried can negotiate its own.
            if !device.has_feature(T::FEATURE) {
                dev_info!(
                    device.as_ref(),
                    "feature {} is not offered, leaving the device to other drivers\n",
                    T::FEATURE
                );
                // SAFETY: As this function's.
                unsafe { Self::renew(vdev) };
                return Err(ENODEV);
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::validate`].
    unsafe extern "C" fn probe(vdev: *mut bindings::virtio_device) -> c_int {
        from_result(|| {
            // SAFETY: The core calls this with a device that is being bound to us. It has no queues
            // and enables configuration changes after we return, so nobody uses `priv` but us.
            unsafe {
                let data = T::new(Device::from_raw(vdev)).inspect_err(|_| Self::renew(vdev))?;
                (*vdev).priv_ = data.into_foreign();
                Self::start(vdev, Reason::Probe).inspect_err(|_| {
                    Self::data(vdev).stop();
                    Self::forget(vdev);
                    Self::renew(vdev);
                })?;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::validate`].
    unsafe extern "C" fn remove(vdev: *mut bindings::virtio_device) {
        // SAFETY: `probe` has succeeded. The core has disabled configuration changes, and after
        // `stop` the device is reset and has no queues, so no callback can follow.
        unsafe {
            Self::data(vdev).stop();
            // `stop` has found nothing to reset if a resume has failed, after which the core says
            // so in the status; and it warns if that is not clear when we are gone.
            bindings::virtio_reset_device(vdev);
            Self::forget(vdev);
        }
    }

    /// # Safety
    ///
    /// As for [`Self::validate`].
    unsafe extern "C" fn freeze(vdev: *mut bindings::virtio_device) -> c_int {
        // SAFETY: `probe` has succeeded, and `remove` has not been called.
        unsafe { Self::data(vdev).stop() };
        0
    }

    /// # Safety
    ///
    /// As for [`Self::validate`].
    unsafe extern "C" fn restore(vdev: *mut bindings::virtio_device) -> c_int {
        from_result(|| {
            // SAFETY: As for `freeze`, which has removed the queues; the core has reset the device
            // and negotiated the same features again.
            unsafe {
                Self::start(vdev, Reason::Resume).inspect_err(|_| Self::data(vdev).stop())?;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::validate`].
    unsafe extern "C" fn config_changed(vdev: *mut bindings::virtio_device) {
        // SAFETY: The core calls this between a `probe` that succeeded and `remove`.
        unsafe { Self::data(vdev).config_changed() }
    }

    /// # Safety
    ///
    /// Called by the virtio core alone, for a queue of a [`Transport`] that `start` has made.
    unsafe extern "C" fn used(vq: *mut bindings::virtqueue) {
        // SAFETY: The queue exists as long as a `Transport`, and that only while `priv` is set.
        unsafe { Self::data((*vq).vdev).used() }
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `new` has registered it, or there would be nothing to drop.
        unsafe { bindings::unregister_virtio_driver(self.driver.get()) }
    }
}
