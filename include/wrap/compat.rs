// SPDX-License-Identifier: GPL-2.0-only

//! What differs between the kernels that the modules are built for.
//!
//! The code is written for the newest of them, and takes from here what older ones lack
//! or call otherwise. `Kbuild.bindgen` sets `linux_7_3` from Linux 7.3 on, and has what
//! differs in bindings; `compat.h` has the C side. When a kernel is given up, its part goes.

#![allow(dead_code, unused_imports, reason = "each module uses a part of it")]

use crate::bindings;
use core::borrow::Borrow;
use kernel::{
    prelude::*,
    types::Opaque, //
};

#[cfg(linux_7_3)]
mod newest {
    use super::*;
    use kernel::{
        new_spinlock_irq,
        sync::barrier, //
    };

    pub(crate) use kernel::{
        error::code::{
            EPROTO,
            ESTALE, //
        },
        sync::SpinLockIrq,
    };

    /// Orders loads.
    pub(crate) fn smp_rmb() {
        barrier::smp_mb(barrier::Read);
    }

    /// Orders stores.
    pub(crate) fn smp_wmb() {
        barrier::smp_mb(barrier::Write);
    }

    /// Orders loads and stores.
    pub(crate) fn smp_mb() {
        barrier::smp_mb(barrier::Full);
    }

    /// A new lock of the class of its caller's type.
    pub(crate) fn spinlock_irq<T>(value: T) -> impl PinInit<SpinLockIrq<T>> {
        new_spinlock_irq!(value)
    }

    /// Sets who fills the file of an attribute, and who takes what is written to it.
    pub(crate) fn set_callbacks(
        attr: &mut bindings::kobj_attribute,
        show: Option<super::Show>,
        store: Option<super::Store>,
    ) {
        attr.__bindgen_anon_1.show = show;
        attr.__bindgen_anon_2.store = store;
    }
}

#[cfg(not(linux_7_3))]
mod older {
    use super::*;
    use core::num::NonZeroI32;
    use kernel::{
        static_lock_class,
        sync::lock::{
            Backend,
            Lock, //
        },
    };

    pub(crate) use kernel::sync::barrier::{
        smp_mb,
        smp_rmb,
        smp_wmb, //
    };

    /// Protocol error.
    pub(crate) const EPROTO: Error = error(bindings::EPROTO);
    /// Stale file handle.
    pub(crate) const ESTALE: Error = error(bindings::ESTALE);

    /// An error that can be in a pattern, from its number.
    const fn error(number: u32) -> Error {
        let Some(errno) = NonZeroI32::new(-(number as i32)) else {
            panic!("no error");
        };
        // SAFETY: `Error` has one field, a `NonZeroI32`, so that the two are the same where
        // their sizes are, which the compiler sees to; its value is an errno's.
        unsafe { core::mem::transmute::<NonZeroI32, Error>(errno) }
    }

    /// A spinlock that is held with interrupts off.
    pub(crate) type SpinLockIrq<T> = Lock<T, IrqBackend>;

    /// What makes a [`Lock`] of it.
    pub(crate) struct IrqBackend;

    // SAFETY: A `spinlock_t` excludes all but one; `relock` is the trait's own.
    unsafe impl Backend for IrqBackend {
        type State = bindings::spinlock_t;
        /// What the interrupt flag was.
        type GuardState = c_ulong;

        unsafe fn init(
            ptr: *mut Self::State,
            name: *const c_char,
            key: *mut bindings::lock_class_key,
        ) {
            // SAFETY: By the caller's promise `ptr` can be written, and the others are static.
            unsafe { bindings::__spin_lock_init(ptr, name, key) }
        }

        unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
            // SAFETY: By the caller's promise it has been initialised.
            unsafe { bindings::compat_spin_lock_irqsave(ptr) }
        }

        unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
            // SAFETY: By the caller's promise it holds the lock; `flags` came from taking it.
            unsafe { bindings::compat_spin_unlock_irqrestore(ptr, *flags) }
        }

        unsafe fn try_lock(_ptr: *mut Self::State) -> Option<Self::GuardState> {
            // Nobody tries: it is always taken by somebody else.
            None
        }

        unsafe fn assert_is_held(ptr: *mut Self::State) {
            // SAFETY: By the caller's promise it has been initialised.
            unsafe { bindings::spin_assert_is_held(ptr) }
        }
    }

    /// A new lock of the class of its caller's type.
    pub(crate) fn spinlock_irq<T>(value: T) -> impl PinInit<SpinLockIrq<T>> {
        Lock::new(value, c"spinlock_irq", static_lock_class!())
    }

    /// Sets who fills the file of an attribute, and who takes what is written to it.
    pub(crate) fn set_callbacks(
        attr: &mut bindings::kobj_attribute,
        show: Option<super::Show>,
        store: Option<super::Store>,
    ) {
        attr.show = show;
        attr.store = store;
    }
}

#[cfg(linux_7_3)]
pub(crate) use newest::*;
#[cfg(not(linux_7_3))]
pub(crate) use older::*;

/// What fills the file of a `kobj_attribute`.
pub(crate) type Show = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *mut c_char,
) -> isize;

/// What takes the text that is written to one.
pub(crate) type Store = unsafe extern "C" fn(
    *mut bindings::kobject,
    *mut bindings::kobj_attribute,
    *const c_char,
    usize,
) -> isize;

/// The value of a module parameter, of which Linux 7.2 gives a reference.
pub(crate) fn parameter<T: Copy>(value: impl Borrow<T>) -> T {
    *value.borrow()
}

/// This module, for the structures that C wants it in. `module!` of Linux 7.3 has a constant,
/// that of 7.2 a static, which other statics cannot be made of.
pub(crate) const THIS: ThisModule = {
    #[allow(improper_ctypes, reason = "only its address is taken")]
    extern "C" {
        static __this_module: Opaque<bindings::module>;
    }
    // SAFETY: The linker makes it, and it is there for as long as the module is.
    unsafe { ThisModule::from_ptr(Opaque::cast_into(&raw const __this_module)) }
};
