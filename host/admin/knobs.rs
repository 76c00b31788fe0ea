// SPDX-License-Identifier: GPL-2.0-only

//! The administrator's knobs: `/sys/kernel/vfio_iommu_deferred/`.
//!
//! `Documentation/ABI/testing/sysfs-kernel-vfio_iommu_deferred` describes each.
//! They apply to what happens after the write; nothing here takes a lock.

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    logic::eager::Eager, //
    wrap::kobject::{
        parse_bool,
        parse_u64,
        Attribute,
        Writer, //
    },
};

const MIB: u64 = 1 << 20;

/// All knobs, at their current values.
pub(crate) struct Knobs {
    threshold_mib: Atomic<u64>,
    reserve_mib: Atomic<u64>,
    chunk_mib: Atomic<u64>,
    eager_first_mib: Atomic<u64>,
    eager_low_top_mib: Atomic<u64>,
    eager_top_mib: Atomic<u64>,
    workers: Atomic<u64>,
    nice: Atomic<u64>,
    fallback_timeout_ms: Atomic<u64>,
    premap: Atomic<bool>,
    premap_at_start: Atomic<bool>,
    populate: Atomic<bool>,
    gate_policy: Atomic<bool>,
    firmware: Atomic<bool>,
    gate: Atomic<bool>,
    trap: Atomic<bool>,
    hold: Atomic<bool>,
}

/// The one set of knobs of this module.
pub(crate) static KNOBS: Knobs = Knobs {
    threshold_mib: Atomic::new(4096),
    reserve_mib: Atomic::new(0),
    chunk_mib: Atomic::new(1024),
    eager_first_mib: Atomic::new(0),
    eager_low_top_mib: Atomic::new(0),
    eager_top_mib: Atomic::new(0),
    workers: Atomic::new(0),
    nice: Atomic::new(5),
    fallback_timeout_ms: Atomic::new(120_000),
    premap: Atomic::new(true),
    premap_at_start: Atomic::new(false),
    populate: Atomic::new(true),
    gate_policy: Atomic::new(false),
    firmware: Atomic::new(false),
    gate: Atomic::new(true),
    trap: Atomic::new(true),
    hold: Atomic::new(false),
};

/// A file of a knob that is on or off.
macro_rules! boolean {
    ($name:literal, $knob:ident) => {
        Attribute::rw(
            $name,
            |_, out| line(out, u64::from(KNOBS.$knob.load(Relaxed))),
            |_, text| {
                KNOBS.$knob.store(parse_bool(text)?, Relaxed);
                Ok(())
            },
        )
    };
}

/// A file of a knob that is a number in a range.
macro_rules! number {
    ($name:literal, $knob:ident, $least:expr, $most:expr) => {
        Attribute::rw(
            $name,
            |_, out| line(out, KNOBS.$knob.load(Relaxed)),
            |_, text| {
                KNOBS.$knob.store(parse_u64(text, $least..=$most)?, Relaxed);
                Ok(())
            },
        )
    };
}

impl Knobs {
    /// RAM below this IOVA is mapped at once; bytes.
    pub(crate) fn threshold(&self) -> u64 {
        self.threshold_mib.load(Relaxed).saturating_mul(MIB)
    }

    /// Deferred RAM that the guest is not asked to give up; bytes.
    pub(crate) fn reserve(&self) -> u64 {
        self.reserve_mib.load(Relaxed).saturating_mul(MIB)
    }

    /// The most that one call of type1 maps, and the step of balloons; bytes, a power of two.
    pub(crate) fn chunk(&self) -> u64 {
        self.chunk_mib.load(Relaxed).saturating_mul(MIB)
    }

    /// What is mapped at once although its map is deferred.
    pub(crate) fn eager(&self) -> Eager {
        let bytes = |mib: &Atomic<u64>| mib.load(Relaxed).saturating_mul(MIB);
        Eager {
            first: bytes(&self.eager_first_mib),
            low_top: bytes(&self.eager_low_top_mib),
            top: bytes(&self.eager_top_mib),
        }
    }

    /// Mapping threads of a VM; 0: as many as the VMM has processors.
    pub(crate) fn workers(&self) -> u64 {
        self.workers.load(Relaxed)
    }

    /// How much the mapping threads stand back while nobody waits for them: nice value, 0 to 19.
    pub(crate) fn nice(&self) -> u64 {
        self.nice.load(Relaxed)
    }

    /// After so many milliseconds without a commit, everything is mapped anyway.
    pub(crate) fn fallback_timeout_ms(&self) -> u64 {
        self.fallback_timeout_ms.load(Relaxed)
    }

    /// Whether the balloon's memory is mapped in the background after the commit.
    pub(crate) fn premap(&self) -> bool {
        self.premap.load(Relaxed)
    }

    /// Whether all memory is mapped in the background from the first deferred map on.
    pub(crate) fn premap_at_start(&self) -> bool {
        self.premap_at_start.load(Relaxed)
    }

    /// Whether memory is populated in parallel before type1 maps it.
    pub(crate) fn populate(&self) -> bool {
        self.populate.load(Relaxed)
    }

    /// Whether processes without a balloon are deferred, too: policy "gate".
    pub(crate) fn gate_policy(&self) -> bool {
        self.gate_policy.load(Relaxed)
    }

    /// Whether firmware may use devices with RAM below 4 GiB mapped only.
    pub(crate) fn firmware(&self) -> bool {
        self.firmware.load(Relaxed)
    }

    /// Whether the bus-master gate holds devices back (off: for tests only).
    pub(crate) fn gate(&self) -> bool {
        self.gate.load(Relaxed)
    }

    /// Whether the use of a device that has asked to master the bus waits (off: for tests only).
    pub(crate) fn trap(&self) -> bool {
        self.trap.load(Relaxed)
    }

    /// Whether balloons keep their size after the commit (on: for tests only).
    pub(crate) fn hold(&self) -> bool {
        self.hold.load(Relaxed)
    }

    /// The files, one a knob.
    pub(crate) const FILES: &'static [Attribute<Hooks>] = &[
        number!(c"threshold_mib", threshold_mib, 0, 1 << 24),
        number!(c"reserve_mib", reserve_mib, 0, 1 << 24),
        Attribute::rw(
            c"chunk_mib",
            |_, out| line(out, KNOBS.chunk_mib.load(Relaxed)),
            |_, text| {
                let mib = parse_u64(text, 2..=1024)?;
                if !mib.is_power_of_two() {
                    return Err(EINVAL);
                }
                KNOBS.chunk_mib.store(mib, Relaxed);
                Ok(())
            },
        ),
        number!(c"eager_first_mib", eager_first_mib, 0, 1 << 24),
        number!(c"eager_low_top_mib", eager_low_top_mib, 0, 1 << 24),
        number!(c"eager_top_mib", eager_top_mib, 0, 1 << 24),
        number!(c"workers", workers, 0, 64),
        number!(c"nice", nice, 0, 19),
        number!(c"fallback_timeout_ms", fallback_timeout_ms, 0, 86_400_000),
        boolean!(c"premap", premap),
        boolean!(c"premap_at_start", premap_at_start),
        boolean!(c"populate", populate),
        Attribute::rw(
            c"policy",
            |_, out| {
                let name = match KNOBS.gate_policy() {
                    true => "gate",
                    false => "balloon",
                };
                writeln!(out, "{name}").map_err(|_| EIO)
            },
            |_, text| {
                let gate = match text.trim() {
                    "gate" => true,
                    "balloon" => false,
                    _ => return Err(EINVAL),
                };
                KNOBS.gate_policy.store(gate, Relaxed);
                Ok(())
            },
        ),
        boolean!(c"firmware", firmware),
        // A debug knob: with it off, a device may lose DMA without a word.
        boolean!(c"gate", gate).mode(0o600),
        // A debug knob: with it off, a device that is used too early may never work.
        boolean!(c"trap", trap).mode(0o600),
        // A debug knob: taken off, it lets the balloons that it has held go on.
        Attribute::rw(
            c"hold",
            |_, out| line(out, u64::from(KNOBS.hold())),
            |hooks: &Hooks, text| {
                KNOBS.hold.store(parse_bool(text)?, Relaxed);
                (hooks.unhold)();
                Ok(())
            },
        )
        .mode(0o600),
    ];
}

/// What a write to a knob sets off.
pub(crate) struct Hooks {
    /// Lets balloons go on to shrink, if `hold` is off.
    pub(crate) unhold: fn(),
}

/// Writes one value and its newline.
pub(crate) fn line(out: &mut Writer<'_>, value: u64) -> Result {
    writeln!(out, "{value}").map_err(|_| EIO)
}
