// SPDX-License-Identifier: GPL-2.0-only

//! A word with those who look for memory to free.
//!
//! The page allocator asks all shrinkers in turn, for each node that it looks at: from `kswapd`, or
//! from the task that waits for memory. That may hold any lock under which somebody allocates, so
//! neither must anything be allocated there, nor such a lock be taken.
//!
//! Not every task that waits comes to the OOM killer if this finds nothing: allocations of a high
//! order, of one node only, of low memory, or that may fail, just fail.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use crate::{
    bindings,
    node::Node,
    pages::Need, //
};
use core::ptr::NonNull;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// Something that can free memory.
pub(crate) trait Shrinkable: Send + Sync + 'static {
    /// How many bytes that is. Called often, in any context that may allocate: must not sleep.
    fn count(&self, need: Need) -> u64;

    /// Memory is getting short. The same context.
    fn press(&self, need: Need);

    /// Frees memory for a task that waits for it, and returns how many bytes.
    ///
    /// Process context; may sleep, must neither allocate nor take a lock under which others do.
    fn free(&self, need: Need) -> u64;
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
        let shrinker =
            unsafe { bindings::shrinker_alloc(bindings::SHRINKER_FLAGS, name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;
        // SAFETY: It was just allocated, with defaults for all other fields, and nobody else knows
        // it yet.
        unsafe {
            let raw = shrinker.as_ptr();
            (*raw).count_objects = Some(Self::count);
            (*raw).scan_objects = Some(Self::scan);
            // Nothing has to be read again for what is freed here, so it goes first.
            (*raw).seeks = 0;
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

    /// What is wanted of the shrinker.
    ///
    /// # Safety
    ///
    /// `control` must be what a callback was given.
    unsafe fn need(control: *mut bindings::shrink_control) -> Need {
        // SAFETY: By the caller's promise; it names a node whose memory is looked at.
        let (node, gfp) = unsafe { (Node::from_raw((*control).nid), (*control).gfp_mask) };
        Need {
            node: Some(node),
            below: node.end(gfp),
        }
    }

    /// # Safety
    ///
    /// Called by `shrink_slab()` alone.
    unsafe extern "C" fn count(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: This is the callback of a `Shrinker<T>` alone, called with what it is to do.
        let bytes = unsafe { Self::object(shrinker).count(Self::need(control)) };
        usize::try_from(bytes / PAGE_SIZE as u64).unwrap_or(usize::MAX >> 1)
    }

    /// # Safety
    ///
    /// Called by `shrink_slab()` alone.
    unsafe extern "C" fn scan(
        shrinker: *mut bindings::shrinker,
        control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: As in `count`: the callback of a `Shrinker<T>`, called with what it is to do; the
        // other functions have no preconditions.
        unsafe {
            let object = Self::object(shrinker);
            let need = Self::need(control);
            if bindings::is_direct_reclaim() {
                let pages = object.free(need) / PAGE_SIZE as u64;
                // Reclaim takes its word for it, not that of the returned number.
                bindings::mm_account_reclaimed_pages(pages as c_ulong);
            } else {
                object.press(need);
            }
        }
        // A step is enough; who needs more comes again.
        bindings::SHRINK_STOP as c_ulong
    }
}

impl<T: Shrinkable> Drop for Shrinker<T> {
    fn drop(&mut self) {
        // SAFETY: Ours, by the invariants. It waits until no callback runs.
        unsafe { bindings::shrinker_free(self.shrinker.as_ptr()) }
    }
}
