// SPDX-License-Identifier: GPL-2.0-only

//! Memory that the page allocator does not zero (`init_on_alloc`), for a while.
//!
//! Zeroing a block would make the host back and zero it first, which is all that the balloon is
//! there to avoid. The pause holds for the whole kernel, so it must not take long: other users of
//! the allocator who do not ask for zeroes get what others have left behind meanwhile. Those who
//! cannot have that forbid it (`skip_zeroing`).
//!
//! Large pages of processes are among them: the kernel zeroes these itself if the allocator has
//! not, but it asks for that a moment later (`user_alloc_needs_zeroing()`), and zeroing may have
//! resumed in between. No other user's memory may be seen that way, so this is for the time before
//! there are any: with a process of anybody but root nothing is paused, and when one comes it ends.
//!
//! There is nothing to gain with `init_on_free` and `page_poison`: with these the kernel has
//! written all of its memory at boot, so that the host has backed it by now.
//!
//! Locks: `PAUSE`, one for all balloons.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::bindings;
use kernel::{
    prelude::*,
    sync::{
        global_lock,
        GlobalGuard, //
    }, //
};

global_lock! {
    // SAFETY: Initialised in `init`, before any balloon is filled.
    unsafe(uninit) static PAUSE: Mutex<()> = ();
}

/// Makes this file usable.
///
/// # Safety
///
/// Called once, at module initialisation, before any other function here.
pub(crate) unsafe fn init() {
    // SAFETY: Called once, before any balloon is filled, by this function's requirement.
    unsafe { PAUSE.init() };
}

/// While this lives, the page allocator zeroes for those only who ask for it.
pub(crate) struct NoZeroing {
    /// One balloon at a time: who pauses zeroing is who resumes it. `None`: it is off anyway.
    paused: Option<GlobalGuard<PAUSE>>,
}

/// Has the page allocator not zero what it hands out; `None` if it goes on with that. May sleep.
///
/// What it does anyway is paused only if `allowed`, and as long as nobody but root has a process.
pub(crate) fn pause(allowed: bool) -> Option<NoZeroing> {
    let guard = PAUSE.lock();
    // SAFETY: The key lives as long as the kernel.
    if unsafe { bindings::static_key_count(key()) } <= 0 {
        return Some(NoZeroing { paused: None });
    }
    if !allowed {
        pr_info!("memory would be zeroed (skip_zeroing=0): nothing is ballooned\n");
        return None;
    }
    if has_users() {
        pr_info!("memory would be zeroed, as not only root has processes: nothing is ballooned\n");
        return None;
    }
    // SAFETY: The key lives as long as the kernel and is not read-only after boot: mm/mm_init.c
    // defines it with DEFINE_STATIC_KEY_MAYBE(). By the lock it is enabled still, as far as we are
    // concerned.
    unsafe { bindings::static_key_disable(key()) };
    Some(NoZeroing {
        paused: Some(guard),
    })
}

impl NoZeroing {
    /// Whether it may last: false once anybody but root has a process, if it makes a difference.
    pub(crate) fn may_go_on(&self) -> bool {
        self.paused.is_none() || !has_users()
    }
}

impl Drop for NoZeroing {
    fn drop(&mut self) {
        if self.paused.is_some() {
            // SAFETY: The key lives as long as the kernel, and `pause` has disabled it; by the lock
            // that we still hold nobody else has enabled it since.
            unsafe { bindings::static_key_enable(key()) }
        }
    }
}

/// Whether anybody but root has a process.
fn has_users() -> bool {
    // SAFETY: Has no preconditions.
    unsafe { bindings::users_but_root() }
}

fn key() -> *mut bindings::static_key {
    // SAFETY: This takes an address and reads nothing.
    unsafe { &raw mut bindings::init_on_alloc.key }
}
