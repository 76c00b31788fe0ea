// SPDX-License-Identifier: GPL-2.0-only

//! The balloon: when which pages go in and out, and what the host is told about it.
//!
//! A page leaves the balloon in one of two ways only. Either the host has answered a deflate of it
//! with success, so it is mapped for DMA. Or the device was reset, after which the host takes all
//! pages for used ones and keeps assigned devices from mastering the bus until all are mapped; had
//! one been doing so, the reset itself would have mapped them first.
//!
//! Lock order: `oom_lock` of the kernel, then [`Balloon::state`]. As the first is held while memory
//! has run out, nothing is allocated under the second.

use crate::{
    compat::EPROTO,
    event::Event,
    knobs,
    logic::{
        pace,
        protocol::{
            self,
            Kind,
            Queue,
            Reply,
            Status,
            MAX_RANGES, //
        },
        range::Range,
        vec::Vector, //
    },
    oom::Relief,
    pages::Blocks,
    shrinker::Shrinkable,
    stats::{
        Phase,
        Stats, //
    },
    virtio::{
        Reason,
        Transport, //
    },
    work::{
        Job,
        Worker, //
    },
};
use kernel::{
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        Instant,
        Monotonic,
        Msecs, //
    },
};

/// How long to wait before the host is asked again for what it has refused: at first, and at most.
const FIRST_RETRY: Msecs = 1_000;
const LAST_RETRY: Msecs = 60_000;

/// The balloon of one device.
#[pin_data]
pub(crate) struct Balloon {
    #[pin]
    state: Mutex<State>,
    /// Signalled when the host has used a buffer.
    #[pin]
    replied: Event,
    /// Memory is short: the next step is urgent, whatever the target.
    pressed: Atomic<bool>,
    stats: Arc<Stats>,
}

struct State {
    // In this order: the device is reset before the memory that it takes for ballooned is freed.
    transport: Option<Transport>,
    blocks: Blocks,
    /// The ranges of the deflate request that is being made, with room for as many as one holds.
    batch: Vector<Range>,
    /// How long to wait after the next refusal.
    retry: Msecs,
    /// The last refusal, and how long to wait after it.
    refused: Option<(Instant<Monotonic>, Msecs)>,
    /// A request has failed for a reason that asking again does not mend.
    broken: bool,
}

/// How a deflate request ended.
struct Deflated {
    bytes: u64,
    refused: bool,
}

impl Balloon {
    /// An empty balloon without a device.
    pub(crate) fn new(stats: Arc<Stats>) -> impl PinInit<Self> {
        let state = State {
            transport: None,
            blocks: Blocks::new(),
            batch: Vector::new(),
            retry: FIRST_RETRY,
            refused: None,
            broken: false,
        };
        pin_init!(Self {
            state <- new_mutex!(state, "Balloon::state"),
            replied <- Event::new(),
            pressed: Atomic::new(false),
            stats,
        })
    }

    /// Lets a waiting request look for its answer. Any context.
    pub(crate) fn replied(&self) {
        self.replied.signal();
    }

    /// Inflates the balloon as far as the host wants it, and returns when the host has mapped the
    /// rest of memory. May sleep, for long.
    ///
    /// After resume nothing is taken: the drivers of other devices resume at the same time and must
    /// not find memory scarce; the host is told that all of it is in use.
    pub(crate) fn start(&self, mut transport: Transport, reason: Reason) -> Result {
        let begin = Instant::<Monotonic>::now();
        let mut blocks = Blocks::new();
        let mut batch = Vector::new();
        batch.try_reserve(MAX_RANGES).map_err(|_| ENOMEM)?;
        self.stats.enter(Phase::Inflating);
        transport.ready();
        let target = transport.target();
        if reason == Reason::Probe {
            let lowest = transport.lowest();
            blocks.take(target, lowest, knobs::reserve(), knobs::skip_zeroing());
        }

        let mut guard = self.state.lock();
        let state = &mut *guard;
        // From here on `stop` resets the device before the blocks are freed.
        let transport = state.transport.insert(transport);
        state.batch = batch;
        state.blocks = blocks;
        state.retry = FIRST_RETRY;
        state.refused = None;
        state.broken = false;
        for ranges in state.blocks.ranges().chunks(MAX_RANGES) {
            done(self.send(transport, Kind::Inflate, ranges)?)?;
        }
        let bytes = state.blocks.bytes();
        transport.set_actual(bytes);
        self.stats.ballooned_bytes.set(bytes);
        let inflate_us = micros_since(begin);

        let begin = Instant::<Monotonic>::now();
        self.stats.enter(Phase::Committing);
        // A host that wants nothing to begin with has nothing left to map. It may not even reach
        // the queues: in a VM without assigned devices it knows of no memory. What it wants later
        // says less: it leaves out what it could not map.
        if target > 0 {
            done(self.send(transport, Kind::Commit, &[])?)?;
        }
        let commit_us = micros_since(begin);

        self.stats.inflate_us.set(inflate_us);
        self.stats.commit_us.set(commit_us);
        self.stats.enter(resting(bytes));
        pr_info!(
            "{} MiB in {} ranges ballooned in {} ms, committed in {} ms\n",
            bytes >> 20,
            state.blocks.ranges().len(),
            inflate_us / 1_000,
            commit_us / 1_000
        );
        Ok(())
    }

    /// Resets the device, if there is one, and gives all pages back. May sleep.
    pub(crate) fn stop(&self) {
        let (transport, blocks) = {
            let mut state = self.state.lock();
            let blocks = core::mem::replace(&mut state.blocks, Blocks::new());
            (state.transport.take(), blocks)
        };
        // The reset comes first; see the top of the file.
        drop(transport);
        self.stats.returned_bytes.add(blocks.bytes());
        drop(blocks);
        self.stats.ballooned_bytes.set(0);
        self.stats.enter(Phase::Stopped);
    }

    /// Sends one request and returns the answer.
    fn send(&self, transport: &mut Transport, kind: Kind, ranges: &[Range]) -> Result<Reply> {
        let queue = match kind {
            Kind::Inflate | Kind::Commit => Queue::Inflate,
            Kind::Deflate { .. } => Queue::Deflate,
        };
        let reply = transport.exchange(queue, &self.replied, |page| {
            let request = protocol::encode(kind, ranges, page).ok_or(EINVAL)?;
            Ok(request.len())
        })?;
        self.stats.messages_sent.add(1);
        self.stats.ranges_sent.add(ranges.len() as u64);
        Reply::decode(reply, ranges.len() as u32).map_err(|_| EPROTO)
    }

    /// Asks the host for the lowest `bytes` bytes, which it maps in the same order in the background,
    /// and frees what it has mapped.
    fn deflate(&self, state: &mut State, bytes: u64, urgent: bool) -> Result<Deflated> {
        let transport = state.transport.as_mut().ok_or(ENODEV)?;
        state.batch.clear();
        for range in state.blocks.lowest(bytes).take(MAX_RANGES) {
            // There is room, so this does not allocate.
            state.batch.try_push(range).map_err(|_| ENOMEM)?;
        }
        if state.batch.is_empty() {
            return Ok(Deflated {
                bytes: 0,
                refused: false,
            });
        }
        if urgent {
            self.stats.urgent_requests.add(1);
        }
        self.stats.enter(Phase::Deflating);
        let reply = match self.send(transport, Kind::Deflate { urgent }, &state.batch) {
            // Nothing was sent: there was no room to map the buffers for DMA (swiotlb).
            Err(ENOMEM) => Reply {
                status: Status::NoMap,
                done: 0,
            },
            other => other?,
        };
        let before = state.blocks.bytes();
        for range in state.batch.iter().take(reply.done as usize) {
            state.blocks.release(*range)?;
        }
        let left = state.blocks.bytes();
        transport.set_actual(left);
        let bytes = before.saturating_sub(left);
        self.stats.ballooned_bytes.set(left);
        self.stats.returned_bytes.add(bytes);
        let refused = reply.status != Status::Ok;
        if refused {
            self.stats.failed_deflates.add(1);
        }
        self.stats.enter(if refused {
            Phase::Refused
        } else {
            resting(left)
        });
        Ok(Deflated { bytes, refused })
    }

    /// Gives up: what is in the balloon stays there until `stop`.
    fn fail(&self, state: &mut State, error: Error) {
        state.broken = true;
        self.stats.enter(Phase::Broken);
        pr_err!("deflating failed: {error:?}; the pages stay in the balloon\n");
    }
}

/// Shrinks the balloon to what the host wants it to be, or if memory is short, a step at a time.
impl Job for Balloon {
    fn run(&self) -> Option<Msecs> {
        loop {
            // Not held from one step to the next: whoever has run out of memory may come between.
            let mut guard = self.state.lock();
            let state = &mut *guard;
            if state.broken {
                return None;
            }
            let held = state.blocks.bytes();
            let target = state.transport.as_ref()?.target();
            let urgent = self.pressed.xchg(false, Relaxed) && held > 0;
            // The host kicks with each step of its own; that is no reason to ask sooner.
            let refused = state.refused.filter(|_| !urgent);
            if let Some(left) = refused.and_then(|(at, delay)| left(at, delay)) {
                return Some(left);
            }
            let step = if urgent {
                knobs::step()
            } else {
                pace::deflate_step(held, target, knobs::step())
            };
            if step == 0 {
                self.stats.enter(resting(held));
                return None;
            }
            match self.deflate(state, step, urgent) {
                Ok(Deflated { refused: false, .. }) => {
                    state.retry = FIRST_RETRY;
                    state.refused = None;
                }
                Ok(Deflated { refused: true, .. }) => {
                    let delay = state.retry;
                    state.refused = Some((Instant::now(), delay));
                    state.retry = delay.saturating_mul(2).min(LAST_RETRY);
                    return Some(delay);
                }
                Err(error) => {
                    self.fail(state, error);
                    return None;
                }
            }
        }
    }
}

/// Has the worker take a step out of the balloon, whatever its target, before reclaim gets so far
/// that it writes to swap or drops what will be read again.
impl Shrinkable for Worker<Balloon> {
    fn count(&self) -> u64 {
        let stats = &self.job().stats;
        // What the host has just refused is not worth another try before the worker makes it.
        if stats.is(Phase::Refused) || stats.is(Phase::Broken) {
            return 0;
        }
        stats.ballooned_bytes.get() / PAGE_SIZE as u64
    }

    fn press(&self) {
        self.job().pressed.store(true, Relaxed);
        self.kick();
    }
}

/// Takes a step out of the balloon at once, whatever its target.
impl Relief for Balloon {
    fn relieve(&self) -> usize {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.broken || state.blocks.bytes() == 0 {
            return 0;
        }
        match self.deflate(state, knobs::step(), true) {
            Ok(deflated) => (deflated.bytes / PAGE_SIZE as u64) as usize,
            Err(error) => {
                self.fail(state, error);
                0
            }
        }
    }
}

/// What a balloon that holds `bytes` does when there is nothing to do.
fn resting(bytes: u64) -> Phase {
    if bytes == 0 {
        Phase::Empty
    } else {
        Phase::Inflated
    }
}

/// The error of a request that was not carried out in full.
fn done(reply: Reply) -> Result {
    match reply.status {
        Status::Ok => Ok(()),
        Status::Invalid => Err(EINVAL),
        Status::NoMap => Err(ENOMEM),
    }
}

/// What is left of `delay` since `at`; `None` if it is over.
fn left(at: Instant<Monotonic>, delay: Msecs) -> Option<Msecs> {
    let waited = Msecs::try_from(at.elapsed().as_millis()).unwrap_or(delay);
    delay.checked_sub(waited).filter(|left| *left > 0)
}

fn micros_since(begin: Instant<Monotonic>) -> u64 {
    u64::try_from(begin.elapsed().as_micros_ceil()).unwrap_or(0)
}
