// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator can set, for all balloons: module parameters, and files, see
//! [`crate::sysfs`].

use crate::{
    kobject::{
        parse_u64,
        Writer, //
    },
    logic::protocol::GRANULE, //
};
use core::ops::RangeInclusive;
use kernel::{
    fmt::Write,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::Msecs,
};

/// A number that may be read and set at any time.
pub(crate) struct Number {
    value: Atomic<u64>,
    range: RangeInclusive<u64>,
}

impl Number {
    fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }

    fn set(&self, value: u64) -> Result {
        if !self.range.contains(&value) {
            return Err(EINVAL);
        }
        self.value.store(value, Relaxed);
        Ok(())
    }

    /// Writes the value and its newline.
    pub(crate) fn show(&self, writer: &mut Writer<'_>) -> Result {
        Ok(writeln!(writer, "{}", self.get())?)
    }

    /// Takes what was written to its file; `EINVAL` if it is out of range.
    pub(crate) fn store(&self, text: &str) -> Result {
        self.set(parse_u64(text, self.range.clone())?)
    }
}

/// One tebibyte: no bound is needed, but the arithmetic must not overflow.
const MAX: u64 = 1 << 20;

/// What the host is given to answer; no device has to wait for longer than that.
const MAX_WAIT_MS: Msecs = 600_000;

// All are set from the module's parameters before anything reads them.
/// See [`reserve`], in mebibytes.
pub(crate) static RESERVE: Number = Number {
    value: Atomic::new(0),
    range: 0..=MAX,
};

/// See [`step`], in mebibytes.
pub(crate) static STEP: Number = Number {
    value: Atomic::new(0),
    range: 2..=MAX,
};

/// See [`skip_zeroing`].
pub(crate) static SKIP_ZEROING: Number = Number {
    value: Atomic::new(0),
    range: 0..=1,
};

/// See [`bind_wait`], in milliseconds.
pub(crate) static BIND_WAIT: Number = Number {
    value: Atomic::new(0),
    range: 0..=MAX_WAIT_MS as u64,
};

/// What the guest keeps of its available memory when a balloon is inflated, in bytes.
pub(crate) fn reserve() -> u64 {
    RESERVE.get() << 20
}

/// How much is deflated at a time, in bytes: whole granules, at least one.
pub(crate) fn step() -> u64 {
    GRANULE.down(STEP.get() << 20)
}

/// Whether the kernel's zeroing of memory that it allocates pauses while a balloon is inflated.
pub(crate) fn skip_zeroing() -> bool {
    SKIP_ZEROING.get() != 0
}

/// How long the driver of a PCI device waits for a balloon; 0 if it does not.
pub(crate) fn bind_wait() -> Msecs {
    Msecs::try_from(BIND_WAIT.get()).unwrap_or(MAX_WAIT_MS)
}

/// Sets all from module parameters, in mebibytes and milliseconds; `EINVAL` if one is out of its
/// range.
pub(crate) fn set(reserve: u64, step: u64, skip_zeroing: u64, bind_wait: u64) -> Result {
    RESERVE.set(reserve)?;
    STEP.set(step)?;
    SKIP_ZEROING.set(skip_zeroing)?;
    BIND_WAIT.set(bind_wait)
}
