// SPDX-License-Identifier: GPL-2.0-only

//! Messages that a guest can cause as often as it likes.

use kernel::prelude::*;

use crate::bindings;

const NAME: &CStr = c"vfio_iommu_deferred";

/// Whether a message may be logged now.
pub(crate) fn allowed() -> bool {
    // SAFETY: The name is a static string; any context.
    unsafe { bindings::__printk_ratelimit(NAME.as_char_ptr()) != 0 }
}

/// `pr_warn!` within the kernel's rate limit.
macro_rules! warn_limited {
    ($($arg:tt)*) => {
        if $crate::vdpa::log::allowed() {
            ::kernel::pr_warn!($($arg)*);
        }
    };
}
pub(crate) use warn_limited;
