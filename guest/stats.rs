// SPDX-License-Identifier: GPL-2.0-only

//! What a balloon tells about itself: the files in the `deferred` directory of its device.

use crate::kobject::{
    Attribute,
    Directory,
    Parent,
    Writer, //
};
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

/// What a balloon is doing.
#[derive(Clone, Copy)]
pub(crate) enum Phase {
    /// It has no device, or is on its way to one.
    Stopped,
    /// It takes pages and tells the host.
    Inflating,
    /// It waits for the host to map what is outside.
    Committing,
    /// It keeps what the host wants it to.
    Inflated,
    /// It gives pages back.
    Deflating,
    /// The host could not map a range; it will be asked again.
    Refused,
    /// It is empty.
    Empty,
    /// The device has failed and was reset: all was given back.
    Broken,
}

impl Phase {
    const NAMES: [(Self, &'static str); 8] = [
        (Self::Stopped, "stopped"),
        (Self::Inflating, "inflating"),
        (Self::Committing, "committing"),
        (Self::Inflated, "inflated"),
        (Self::Deflating, "deflating"),
        (Self::Refused, "refused"),
        (Self::Empty, "empty"),
        (Self::Broken, "broken"),
    ];

    /// The name of the phase that was stored as `number`.
    fn name(number: u32) -> &'static str {
        let found = Self::NAMES
            .iter()
            .find(|(phase, _)| *phase as u32 == number);
        found.map_or("", |(_, name)| *name)
    }
}

/// Figures of one balloon; each is right by itself, together they may be from different moments.
pub(crate) struct Stats {
    phase: Atomic<u32>,
    /// Bytes in the balloon.
    pub(crate) ballooned_bytes: Figure,
    /// Bytes that have left the balloon since the device was probed.
    pub(crate) returned_bytes: Figure,
    /// Deflate requests of which the host refused a part.
    pub(crate) failed_deflates: Figure,
    /// Messages that the host has answered.
    pub(crate) messages_sent: Figure,
    /// Ranges in them.
    pub(crate) ranges_sent: Figure,
    /// Microseconds that taking the pages and telling the host took.
    pub(crate) inflate_us: Figure,
    /// Microseconds until the host had mapped the rest.
    pub(crate) commit_us: Figure,
    /// Requests that were made because memory was short.
    pub(crate) urgent_requests: Figure,
}

impl Stats {
    /// All zero.
    pub(crate) const fn new() -> Self {
        Self {
            phase: Atomic::new(Phase::Stopped as u32),
            ballooned_bytes: Figure::new(),
            returned_bytes: Figure::new(),
            failed_deflates: Figure::new(),
            messages_sent: Figure::new(),
            ranges_sent: Figure::new(),
            inflate_us: Figure::new(),
            commit_us: Figure::new(),
            urgent_requests: Figure::new(),
        }
    }

    /// Shows `phase` from now on.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u32, Relaxed);
    }

    /// Whether `phase` is shown.
    pub(crate) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u32
    }
}

/// A number that any task may change and read.
pub(crate) struct Figure(Atomic<u64>);

impl Figure {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }

    fn show(&self, writer: &mut Writer<'_>) -> Result {
        Ok(writeln!(writer, "{}", self.get())?)
    }
}

static FILES: [Attribute<Stats>; 9] = [
    Attribute::ro(c"state", |stats, writer| {
        Ok(writeln!(
            writer,
            "{}",
            Phase::name(stats.phase.load(Relaxed))
        )?)
    }),
    Attribute::ro(c"ballooned_bytes", |stats, w| stats.ballooned_bytes.show(w)),
    Attribute::ro(c"returned_bytes", |stats, w| stats.returned_bytes.show(w)),
    Attribute::ro(c"failed_deflates", |stats, w| stats.failed_deflates.show(w)),
    Attribute::ro(c"messages_sent", |stats, w| stats.messages_sent.show(w)),
    Attribute::ro(c"ranges_sent", |stats, w| stats.ranges_sent.show(w)),
    Attribute::ro(c"inflate_us", |stats, w| stats.inflate_us.show(w)),
    Attribute::ro(c"commit_us", |stats, w| stats.commit_us.show(w)),
    Attribute::ro(c"urgent_requests", |stats, w| stats.urgent_requests.show(w)),
];

/// Shows `stats` in a directory under `parent`.
pub(crate) fn directory(parent: Parent<'_>, stats: Arc<Stats>) -> Result<Directory<Stats>> {
    Directory::new(parent, c"deferred", stats, &FILES)
}
