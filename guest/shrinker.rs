// SPDX-License-Identifier: GPL-2.0-only

//! A word with those who look for memory to free.
//!
//! The page allocator asks all shrinkers in turn, from `kswapd` or from the task that waits for
//! memory. They may hold any lock under which somebody allocates, so nothing can be done there but
//! to note that memory is short.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Something that can free memory, but not at once.
pub(crate) trait Shrinkable: Send + Sync + 'static {
    /// How many pages that is. Called often, in any context that may allocate: must not sleep.
    fn count(&self) -> u64;

    /// Memory is short. The same context.
    fn press(&self);
}

/// A shrinker, registered until it is dropped, which waits for callbacks that are running.
///
/// # Invariants
///
/// `shrinker` is registered, and its `private_data` points to what `_object` keeps alive.
pub(crate) struct Shrinker<T: Shrinkable> {
    shrinker: NonNull<bindings::shrinker>,
    _object: Arc<T>,
}

// SAFETY: It only keeps the shrinker registered, and `T` is `Send` and `Sync`.
unsafe impl<T: Shrinkable> Send for Shrinker<T> {}
// SAFETY: It has no methods.
unsafe impl<T: Shrinkable> Sync for Shrinker<T> {}

impl<T: Shrinkable> Shrinker<T> {
    /// Registers a shrinker. May sleep.
    pub(crate) fn new(name: &'static CStr, object: Arc<T>) -> Result<Self> {
        // SAFETY: `name` has no conversions in it, so that no arguments are read.
        let shrinker = unsafe { bindings::shrinker_alloc(0, name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;
        // SAFETY: It was just allocated, with defaults for all other fields, and nobody else knows
        // it yet.
        unsafe {
            let raw = shrinker.as_ptr();
            (*raw).count_objects = Some(Self::count);
            (*raw).scan_objects = Some(Self::scan);
            (*raw).private_data = Arc::as_ptr(&object).cast_mut().cast();
            bindings::shrinker_register(raw);
        }
        // INVARIANT: As just set up.
        Ok(Self {
            shrinker,
            _object: object,
        })
    }

    /// # Safety
    ///
    /// `shrinker` must be that of a live `Shrinker<T>`.
    unsafe fn object<'a>(shrinker: *mut bindings::shrinker) -> &'a T {
        // SAFETY: By the invariants, and `drop` waits for whoever uses it.
        unsafe { &*(*shrinker).private_data.cast() }
    }

    /// # Safety
    ///
    /// Called by `shrink_slab()` alone.
    unsafe extern "C" fn count(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: This is the callback of a `Shrinker<T>` alone.
        let pages = unsafe { Self::object(shrinker) }.count();
        usize::try_from(pages).unwrap_or(usize::MAX >> 1)
    }

    /// # Safety
    ///
    /// Called by `shrink_slab()` alone.
    unsafe extern "C" fn scan(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: As in `count`.
        unsafe { Self::object(shrinker) }.press();
        // Nothing was freed, and nothing will be by asking again now.
        bindings::SHRINK_STOP as c_ulong
    }
}

impl<T: Shrinkable> Drop for Shrinker<T> {
    fn drop(&mut self) {
        // SAFETY: Ours, by the invariants. It waits until no callback runs.
        unsafe { bindings::shrinker_free(self.shrinker.as_ptr()) }
    }
}
