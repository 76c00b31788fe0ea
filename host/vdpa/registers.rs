// SPDX-License-Identifier: GPL-2.0-only

//! The device's registers: virtio status, features, configuration and queues.
//!
//! Pure state; [`Front`](super::front::Front) holds the lock.
//!
//! Two counters say what has become outdated. The *epoch* changes whenever a
//! chain taken from a ring must not be answered any more: at a reset, when the
//! device is suspended, when a queue is disabled and when the device breaks.
//! The *session* changes when a process lets go of the device.

use super::spec::*;

/// Where a virtqueue is; guest-physical addresses as the VMM set them, unchecked.
#[derive(Clone, Copy)]
pub(crate) struct Queue {
    /// Entries; 0 if never set.
    pub(crate) size: u16,
    /// The descriptor table.
    pub(crate) desc: u64,
    /// The available ring.
    pub(crate) avail: u64,
    /// The used ring.
    pub(crate) used: u64,
    /// Index of the first chain that was not answered, as in `avail->idx`.
    ///
    /// Chains are answered in order, so it is the used ring's index as well.
    pub(crate) next: u16,
    ready: bool,
}

impl Queue {
    const NONE: Self = Self {
        size: 0,
        desc: 0,
        avail: 0,
        used: 0,
        next: 0,
        ready: false,
    };
}

/// A queue that may be served, until the epoch changes.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    /// Where it is.
    pub(crate) queue: Queue,
    /// Whether the driver speaks the protocol of `VIRTIO_BALLOON_F_DEFERRED`.
    pub(crate) deferred: bool,
    epoch: u64,
}

/// How far the driver may shrink the balloon.
#[derive(Clone, Copy)]
enum Target {
    /// No driver of ours: it must not inflate.
    None,
    /// A driver of ours is about to start.
    Any,
    /// That many 4 KiB pages; only ever lowered.
    Pages(u32),
}

/// The register file.
pub(super) struct Registers {
    status: u8,
    features: u64,
    suspended: bool,
    target: Target,
    /// Below is nothing worth giving up; MiB.
    lowest_mib: u32,
    /// What the driver says it holds, in 4 KiB pages.
    actual: u32,
    queues: [Queue; QUEUES],
    /// The configuration's generation.
    generation: u32,
    epoch: u64,
    session: u64,
    bound: bool,
}

impl Registers {
    /// A device just created.
    pub(super) const fn new() -> Self {
        Self {
            status: 0,
            features: 0,
            suspended: false,
            target: Target::None,
            lowest_mib: 0,
            actual: 0,
            queues: [Queue::NONE; QUEUES],
            generation: 0,
            epoch: 0,
            session: 0,
            bound: false,
        }
    }

    /// A process owns the device from now on.
    pub(super) fn bind(&mut self) {
        self.bound = true;
    }

    /// The device is nobody's.
    pub(super) fn unbind(&mut self) {
        self.bound = false;
        self.session = self.session.wrapping_add(1);
    }

    /// The current session, or the one that begins with the next `bind`.
    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// The virtio reset; ownership is not touched.
    pub(super) fn reset(&mut self) {
        *self = Self {
            generation: self.generation.wrapping_add(1),
            epoch: self.epoch.wrapping_add(1),
            session: self.session,
            bound: self.bound,
            ..Self::new()
        };
    }

    /// The device status.
    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// The driver writes the status.
    ///
    /// Returns the features with which to start if it says that it is ready;
    /// `DRIVER_OK` is then set by [`Registers::start`].
    pub(super) fn set_status(&mut self, status: u8) -> Option<u64> {
        let mut status = status | self.status & NEEDS_RESET;
        // Without a process there is no memory to serve: this refuses the
        // host's own virtio drivers, which would bind through virtio_vdpa.
        if !self.bound {
            status &= !FEATURES_OK;
        }
        let starts = status & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        if starts {
            status &= !DRIVER_OK;
        }
        self.status = status;
        if !starts || status & (FEATURES_OK | NEEDS_RESET) != FEATURES_OK {
            return None;
        }
        if self.features & F_DEFERRED != 0 {
            self.target = Target::Any;
        }
        Some(self.features)
    }

    /// The back end is ready for what `set_status` announced.
    pub(super) fn start(&mut self) {
        self.status |= DRIVER_OK;
    }

    /// The back end cannot serve what `set_status` announced: the device starts, and
    /// needs a reset at once.
    ///
    /// QEMU resets no device that it could not start: then no driver after this one
    /// could be served, and QEMU itself may crash.
    pub(super) fn start_broken(&mut self) {
        self.status |= DRIVER_OK | NEEDS_RESET;
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// The device cannot go on. Returns whether this is news.
    pub(super) fn fail(&mut self, snapshot: &Snapshot) -> bool {
        if !self.is_current(snapshot) {
            return false;
        }
        self.status |= NEEDS_RESET;
        self.generation = self.generation.wrapping_add(1);
        self.epoch = self.epoch.wrapping_add(1);
        true
    }

    /// Stops or resumes the queues without a reset.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// The features that the driver took.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// The driver takes `features`; those not on offer are dropped, as QEMU
    /// adds some of its own. Returns `false` when it is too late for a change.
    pub(super) fn set_features(&mut self, features: u64) -> bool {
        let settled = self.status & FEATURES_OK != 0;
        if !settled {
            self.features = features & FEATURES;
        }
        !settled
    }

    /// `struct virtio_balloon_deferred_config`, little-endian.
    pub(super) fn config(&self) -> [u8; CONFIG_SIZE] {
        let pages = match self.target {
            _ if self.status & NEEDS_RESET != 0 => CONFIG_NEEDS_RESET,
            Target::Pages(pages) => pages,
            Target::None | Target::Any => 0,
        };
        let mut config = [0; CONFIG_SIZE];
        let fields = [pages, self.actual, 0, 0, self.lowest_mib];
        let fields = fields.into_iter().flat_map(u32::to_le_bytes);
        for (to, from) in config.iter_mut().zip(fields) {
            *to = from;
        }
        config
    }

    /// The driver writes `bytes` at `offset` of the configuration.
    ///
    /// Only `actual` is its own. QEMU writes all fields, old `num_pages` included.
    pub(super) fn set_config(&mut self, offset: usize, bytes: &[u8]) {
        let field = size_of::<u32>()
            .checked_sub(offset)
            .and_then(|at| bytes.get(at..)?.first_chunk());
        if let Some(actual) = field {
            self.actual = u32::from_le_bytes(*actual);
        }
    }

    /// The configuration's generation.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Lowers the balloon's target to `pages` of 4 KiB. Returns whether a
    /// running driver has to be told.
    pub(super) fn lower_target(&mut self, session: u64, pages: u32) -> bool {
        let lower = match self.target {
            Target::None => false,
            Target::Any => true,
            Target::Pages(old) => pages < old,
        };
        if !lower || session != self.session {
            return false;
        }
        self.target = Target::Pages(pages);
        self.generation = self.generation.wrapping_add(1);
        self.status & DRIVER_OK != 0
    }

    /// Says below which address there is nothing worth giving up. Before the
    /// driver starts, so that it need not be told of a change.
    pub(super) fn set_lowest(&mut self, session: u64, mib: u32) {
        if session == self.session {
            self.lowest_mib = mib;
        }
    }

    /// Changes where a queue is. Not while it may be served.
    pub(super) fn set_queue(&mut self, index: u16, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            change(queue);
        }
    }

    /// Enables or disables a queue.
    pub(super) fn set_ready(&mut self, index: u16, ready: bool) {
        self.set_queue(index, |queue| queue.ready = ready);
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Whether a queue is enabled.
    pub(super) fn ready(&self, index: u16) -> bool {
        self.queues
            .get(usize::from(index))
            .is_some_and(|queue| queue.ready)
    }

    /// Index of the first chain that was not answered.
    pub(super) fn next(&self, index: u16) -> u16 {
        self.queues
            .get(usize::from(index))
            .map_or(0, |queue| queue.next)
    }

    /// A queue, if it may be served now.
    pub(super) fn snapshot(&self, index: usize) -> Option<Snapshot> {
        let runs = self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK && !self.suspended;
        let queue = *self.queues.get(index).filter(|queue| queue.ready && runs)?;
        Some(Snapshot {
            queue,
            deferred: self.features & F_DEFERRED != 0,
            epoch: self.epoch,
        })
    }

    /// Whether what `snapshot` says still holds.
    pub(super) fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.epoch == snapshot.epoch
    }

    /// The chains of a queue up to `next` were answered, before the thread was quiescent.
    ///
    /// Also if `snapshot` holds no longer: what a queue that was stopped meanwhile has
    /// answered must not be answered again when it goes on.  A reset takes its size away.
    pub(super) fn advance(&mut self, index: usize, next: u16, snapshot: &Snapshot) {
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        if (queue.size, queue.next) == (snapshot.queue.size, snapshot.queue.next) {
            queue.next = next;
        }
    }
}
