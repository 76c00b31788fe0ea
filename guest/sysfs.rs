// SPDX-License-Identifier: GPL-2.0-only

//! `/sys/kernel/virtio_balloon_deferred`: the knobs, and what is counted for all balloons.

use crate::{
    knobs::{
        BIND_WAIT,
        RESERVE,
        SKIP_ZEROING,
        STEP, //
    },
    kobject::{
        Attribute,
        Directory,
        Parent, //
    },
    order, //
};
use kernel::{
    fmt::Write,
    prelude::*,
    sync::Arc, //
};

static FILES: [Attribute<()>; 6] = [
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
    Attribute::rw(
        c"skip_zeroing",
        |(), writer| SKIP_ZEROING.show(writer),
        |(), text| SKIP_ZEROING.store(text),
    ),
    Attribute::rw(
        c"bind_wait_ms",
        |(), writer| BIND_WAIT.show(writer),
        |(), text| BIND_WAIT.store(text),
    ),
    Attribute::ro(c"bind_waits", |(), writer| {
        Ok(writeln!(writer, "{}", order::waits())?)
    }),
    Attribute::ro(c"bind_timeouts", |(), writer| {
        Ok(writeln!(writer, "{}", order::timeouts())?)
    }),
];

/// Creates the directory.
pub(crate) fn directory() -> Result<Directory<()>> {
    let object = Arc::new((), GFP_KERNEL)?;
    Directory::new(Parent::kernel()?, crate::NAME, object, &FILES)
}
