// SPDX-License-Identifier: GPL-2.0-only

//! What an administrator can set, for all balloons: module parameters, and files in
//! `/sys/kernel/virtio_balloon_deferred`.

use crate::kobject::{
    parse_u64,
    Attribute,
    Directory,
    Parent,
    Writer, //
};
use core::ops::RangeInclusive;
use kernel::{
    fmt::Write,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// A number of mebibytes that may be read and set at any time.
struct Mebibytes {
    value: Atomic<u64>,
    range: RangeInclusive<u64>,
}

impl Mebibytes {
    fn bytes(&self) -> u64 {
        self.value.load(Relaxed) << 20
    }

    fn set(&self, value: u64) -> Result {
        if !self.range.contains(&value) {
            return Err(EINVAL);
        }
        self.value.store(value, Relaxed);
        Ok(())
    }

    fn show(&self, writer: &mut Writer<'_>) -> Result {
        Ok(writeln!(writer, "{}", self.value.load(Relaxed))?)
    }

    fn store(&self, text: &str) -> Result {
        self.set(parse_u64(text, self.range.clone())?)
    }
}

/// One tebibyte: no bound is needed, but the arithmetic must not overflow.
const MAX: u64 = 1 << 20;

// Both are set from the module's parameters before anything reads them.
static RESERVE: Mebibytes = Mebibytes {
    value: Atomic::new(0),
    range: 0..=MAX,
};

static STEP: Mebibytes = Mebibytes {
    value: Atomic::new(0),
    range: 2..=MAX,
};

/// What the guest keeps of its available memory when a balloon is inflated, in bytes.
pub(crate) fn reserve() -> u64 {
    RESERVE.bytes()
}

/// How much is deflated at a time, in bytes.
pub(crate) fn step() -> u64 {
    STEP.bytes()
}

/// Sets both from module parameters, in mebibytes; `EINVAL` if one is out of its range.
pub(crate) fn set(reserve: u64, step: u64) -> Result {
    RESERVE.set(reserve)?;
    STEP.set(step)
}

static FILES: [Attribute<()>; 2] = [
    Attribute::rw(
        c"reserve_mib",
        |(), writer| RESERVE.show(writer),
        |(), text| RESERVE.store(text),
    ),
    Attribute::rw(
        c"step_mib",
        |(), writer| STEP.show(writer),
        |(), text| STEP.store(text),
    ),
];

/// Creates the directory.
pub(crate) fn directory() -> Result<Directory<()>> {
    let object = Arc::new((), GFP_KERNEL)?;
    Directory::new(Parent::kernel()?, crate::NAME, object, &FILES)
}
