// SPDX-License-Identifier: GPL-2.0-only

//! Memory that is asked for in the guest: who gets it, and for how long he may wait.
//!
//! Lock order: whatever somebody holds who allocates, then `Balloon::state`, which is only tried.

use super::{
    Balloon,
    State,
    Step,
    TURN, //
};
use crate::{
    knobs,
    oom::Relief,
    pages::Need,
    pm::Sleeper,
    shrinker::Shrinkable,
    stats::Phase,
    virtio::millis_since,
    work::Worker, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::Relaxed,
    time::{
        Instant,
        Monotonic,
        Msecs, //
    },
};

/// How long a task may wait that has run out of memory: meanwhile all others wait behind it that
/// have, too. The host can take longer to map a step, but by then the task has waited for it in
/// reclaim, again and again until the host was late.
const LAST_RESORT: Msecs = 1_000;

/// How long a task may wait that reclaims, for each time that reclaim asks.
const RECLAIM: Msecs = 5_000;

impl Balloon {
    /// Has the worker, when it is kicked, take an urgent step. Any context.
    fn press(&self, need: Need) {
        if let Some(node) = need.node {
            self.pressed.store(node.id(), Relaxed);
        }
    }

    /// How many bytes [`Balloon::relieve`] may free, 0 if asking is of no use now. Any context.
    fn relief(&self, need: Need) -> u64 {
        // What the host has just refused is not worth another try before the worker makes it. If it
        // is late, somebody has waited for long enough.
        if self.stats.is(Phase::Refused) || self.silent.load(Relaxed) {
            return 0;
        }
        self.held(need)
    }

    /// Takes a step out of the balloon at once, whatever its target, for somebody who cannot go on
    /// without memory; returns how many bytes of what is needed have come back meanwhile, in this
    /// way or another.
    ///
    /// Takes `patience` milliseconds at most: what has not come by then is left to the worker, for
    /// which `kick` is called.
    ///
    /// Process context. Neither allocates nor waits for a lock under which others do.
    fn relieve(&self, need: Need, patience: Msecs, kick: impl Fn()) -> u64 {
        let begin = Instant::<Monotonic>::now();
        let before = self.held(need);
        loop {
            let seen = self.turn.count();
            let left = patience.saturating_sub(millis_since(begin));
            let freed = before.saturating_sub(self.held(need));
            if freed > 0 || before == 0 {
                return freed;
            }
            if left == 0 {
                kick();
                return 0;
            }
            // What somebody else has it for is a step as well, or the reset of a device that has
            // failed: he has nothing to do but wait.
            let guard = self.state.try_lock();
            let guard = guard.filter(|state| state.failed.is_none() && state.transport.is_some());
            let Some(mut guard) = guard else {
                self.turn.wait(seen, left);
                continue;
            };
            let step = self.urgent_step(&mut guard, need, left);
            drop(guard);
            self.turn.signal();
            match step {
                Ok(Step::Done | Step::Waiting) => {}
                Ok(Step::Nothing | Step::Refused) => {
                    return before.saturating_sub(self.held(need));
                }
                Err(_) => kick(),
            }
        }
    }

    /// One turn of [`Balloon::relieve`].
    fn urgent_step(&self, state: &mut State, need: Need, patience: Msecs) -> Result<Step> {
        // The OOM killer does not say where memory is short.
        let node = need.node.or_else(|| state.blocks.shortest_node());
        let step = match self.ask(state, Need { node, ..need }, knobs::step(), true) {
            Ok(Step::Waiting) => self.collect(state, patience),
            other => other,
        };
        // Resetting it is nothing for those who hold locks, and may take long.
        step.inspect_err(|error| state.failed = Some(*error))
    }

    /// Takes all out of the balloon that the host can map, step by step. May sleep, for long; a
    /// signal ends it.
    fn drain(&self, kick: impl Fn()) {
        while !kernel::current!().signal_pending() {
            let mut guard = self.state.lock();
            if guard.failed.is_some() || guard.transport.is_none() {
                return;
            }
            let step = match self.ask(&mut guard, Need::ANY, knobs::step(), false) {
                Ok(Step::Waiting) => self.collect(&mut guard, TURN),
                other => other,
            };
            let step = step.inspect_err(|error| guard.failed = Some(*error));
            drop(guard);
            self.turn.signal();
            match step {
                Ok(Step::Waiting | Step::Done) => {}
                Ok(Step::Nothing | Step::Refused) => return,
                Err(_) => return kick(),
            }
        }
    }
}

/// Before reclaim gets so far that it writes to swap or drops what will be read again.
impl Shrinkable for Worker<Balloon> {
    fn count(&self, need: Need) -> u64 {
        self.job().relief(need)
    }

    fn press(&self, need: Need) {
        self.job().press(need);
        self.kick();
    }

    fn free(&self, need: Need) -> u64 {
        self.job().relieve(need, RECLAIM, || self.kick())
    }
}

/// Before somebody is killed for his memory.
impl Relief for Worker<Balloon> {
    fn relieve(&self) -> usize {
        let bytes = self.job().relieve(Need::ANY, LAST_RESORT, || self.kick());
        (bytes / PAGE_SIZE as u64) as usize
    }
}

/// Before an image of the whole memory is made or read.
impl Sleeper for Worker<Balloon> {
    fn prepare(&self) {
        self.job().drain(|| self.kick());
    }
}
