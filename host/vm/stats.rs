// SPDX-License-Identifier: GPL-2.0-only

//! What a VM shows of itself: `/sys/kernel/vfio_iommu_deferred/vms/<pid>/`.
//!
//! `Documentation/ABI/testing/sysfs-kernel-vfio_iommu_deferred` describes each file.

use core::fmt::Write;

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    admin::knobs::line,
    logic::state::ExtentState, //
    wrap::kobject::Attribute,
};

use super::{
    now,
    Slot,
    Vm, //
};

/// Counts up.
pub(super) struct Counter(Atomic<u64>);

impl Counter {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A VM's counters, all since its balloon was bound.
pub(super) struct Stats {
    /// Bytes that were ever deferred.
    pub(super) deferred: Counter,
    /// Messages of the guest.
    pub(super) messages: Counter,
    /// Ranges in inflate messages.
    pub(super) inflated_ranges: Counter,
    pub(super) commits: Counter,
    /// Deflated ranges that were mapped already.
    pub(super) hits: Counter,
    /// Deflated ranges that had to be mapped while the guest waited.
    pub(super) misses: Counter,
    /// Deflated ranges that the guest was short of.
    pub(super) urgent: Counter,
    /// Requests to master the bus that somebody had to wait for.
    pub(super) gate_trips: Counter,
    /// Those that were refused, since memory could not be mapped.
    pub(super) gate_refusals: Counter,
    /// Devices that were let through for firmware, with RAM below 4 GiB mapped.
    pub(super) firmware_passes: Counter,
    /// Time limits that ran out without a commit.
    pub(super) fallbacks: Counter,
    /// Pieces that could not be mapped.
    pub(super) failures: Counter,
    /// The longest wait at the bus-master gate, in nanoseconds.
    gate_wait_max: Atomic<i64>,
    /// When everything was mapped for the first time, or 0.
    completed: Atomic<i64>,
}

impl Stats {
    pub(super) const fn new() -> Self {
        Self {
            deferred: Counter::new(),
            messages: Counter::new(),
            inflated_ranges: Counter::new(),
            commits: Counter::new(),
            hits: Counter::new(),
            misses: Counter::new(),
            urgent: Counter::new(),
            gate_trips: Counter::new(),
            gate_refusals: Counter::new(),
            firmware_passes: Counter::new(),
            fallbacks: Counter::new(),
            failures: Counter::new(),
            gate_wait_max: Atomic::new(0),
            completed: Atomic::new(0),
        }
    }

    /// A wait at the bus-master gate has ended, after so many nanoseconds.
    pub(super) fn gate_waited(&self, waited: i64) {
        let mut most = self.gate_wait_max.load(Relaxed);
        while waited > most {
            match self.gate_wait_max.cmpxchg(most, waited, Relaxed) {
                Ok(_) => return,
                Err(other) => most = other,
            }
        }
    }

    /// Everything is mapped.
    pub(super) fn complete(&self) {
        if self.completed.load(Relaxed) == 0 {
            self.completed.store(now(), Relaxed);
        }
    }
}

fn most(vm: &Vm, bytes: impl Fn(&Slot) -> u64) -> u64 {
    vm.state.lock().most(bytes)
}

fn state(vm: &Vm) -> &'static str {
    let state = vm.state.lock();
    let unmapped = state.most(Slot::unmapped);
    match (state.dead, state.ready, unmapped) {
        (true, _, _) => "dead",
        (_, false, 0) if vm.stats.deferred.get() == 0 => "empty",
        (_, false, 0) => "mapped",
        (_, false, _) => "deferred",
        (_, true, 0) => "mapped",
        (_, true, _) => "committed",
    }
}

/// The files, one a value.
pub(super) const FILES: &[Attribute<Vm>] = &[
    Attribute::ro(c"state", |vm, out| {
        writeln!(out, "{}", state(vm)).map_err(|_| EIO)
    }),
    Attribute::ro(c"deferred_bytes", |vm, out| {
        line(out, vm.stats.deferred.get())
    }),
    Attribute::ro(c"unmapped_bytes", |vm, out| {
        line(out, most(vm, Slot::unmapped))
    }),
    Attribute::ro(c"ballooned_bytes", |vm, out| {
        line(out, most(vm, Slot::ballooned))
    }),
    Attribute::ro(c"failed_bytes", |vm, out| {
        let failed = |slot: &Slot| {
            let totals = slot.table.totals();
            totals.failed_outside.saturating_add(totals.failed_balloon)
        };
        line(out, most(vm, failed))
    }),
    Attribute::ro(c"inner_mappings", |vm, out| {
        line(out, most(vm, |slot| slot.mappings))
    }),
    Attribute::ro(c"extents", |vm, out| {
        line(out, most(vm, |slot| slot.table.extent_count() as u64))
    }),
    Attribute::ro(c"masters", |vm, out| {
        line(out, u64::from(vm.state.lock().masters()))
    }),
    Attribute::ro(c"asked", |vm, out| line(out, vm.asked())),
    Attribute::ro(c"messages", |vm, out| line(out, vm.stats.messages.get())),
    Attribute::ro(c"inflated_ranges", |vm, out| {
        line(out, vm.stats.inflated_ranges.get())
    }),
    Attribute::ro(c"commits", |vm, out| line(out, vm.stats.commits.get())),
    Attribute::ro(c"hits", |vm, out| line(out, vm.stats.hits.get())),
    Attribute::ro(c"misses", |vm, out| line(out, vm.stats.misses.get())),
    Attribute::ro(c"urgent", |vm, out| line(out, vm.stats.urgent.get())),
    Attribute::ro(c"gate_trips", |vm, out| {
        line(out, vm.stats.gate_trips.get())
    }),
    Attribute::ro(c"gate_wait_max_ns", |vm, out| {
        line(out, vm.stats.gate_wait_max.load(Relaxed).unsigned_abs())
    }),
    Attribute::ro(c"gate_waiting", |vm, out| vm.show_waiting(out)),
    Attribute::ro(c"gate_refusals", |vm, out| {
        line(out, vm.stats.gate_refusals.get())
    }),
    Attribute::ro(c"firmware_passes", |vm, out| {
        line(out, vm.stats.firmware_passes.get())
    }),
    Attribute::ro(c"fallbacks", |vm, out| line(out, vm.stats.fallbacks.get())),
    Attribute::ro(c"failures", |vm, out| line(out, vm.stats.failures.get())),
    Attribute::ro(c"completed_ns", |vm, out| {
        line(out, vm.stats.completed.load(Relaxed).unsigned_abs())
    }),
    // The lowest ranges with their states, as many as fit: for tests.
    Attribute::ro(c"table", |vm: &Vm, out| {
        let state = vm.state.lock();
        for (range, extent) in state.slots.iter().flat_map(|slot| slot.table.iter()) {
            let name = match extent {
                ExtentState::Unmapped(place) => ("unmapped", place),
                ExtentState::Mapping(place) => ("mapping", place),
                ExtentState::Failed(place) => ("failed", place),
                ExtentState::Mapped => {
                    writeln!(out, "{:#x} {:#x} mapped", range.start(), range.len())
                        .map_err(|_| EIO)?;
                    continue;
                }
            };
            writeln!(
                out,
                "{:#x} {:#x} {} {:?}",
                range.start(),
                range.len(),
                name.0,
                name.1
            )
            .map_err(|_| EIO)?;
        }
        Ok(())
    })
    .mode(0o400),
];
