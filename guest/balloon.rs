// SPDX-License-Identifier: GPL-2.0-only

//! The balloon: when which pages go in and out, and what the host is told about it.
//!
//! A page leaves the balloon in one of two ways only. Either the host has answered a deflate of it
//! with success, so it is mapped for DMA. Or the device was reset, after which the host takes all
//! pages for used ones and keeps assigned devices from mastering the bus until all are mapped; had
//! one been doing so, the reset itself would have mapped them first. That is also the way out when
//! the device fails.
//!
//! Lock order: `oom_lock` of the kernel, and any lock that somebody holds while allocating, then
//! [`Balloon::state`]. As the first are held while memory has run out, nothing is allocated under
//! the second; and those who hold them only try it, see [`Balloon::relieve`]. The device is reset
//! without it.

mod relief;

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
    node::Node,
    pages::{
        Blocks,
        Need, //
    },
    stats::{
        Phase,
        Stats, //
    },
    virtio::{
        millis_since,
        Reason,
        Transport, //
    },
    work::Job,
};
use kernel::{
    new_mutex,
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

/// How long the worker waits for an answer before others have a turn.
const TURN: Msecs = 1_000;

/// No node's number.
const NOWHERE: i32 = -1;

/// The balloon of one device.
#[pin_data]
pub(crate) struct Balloon {
    #[pin]
    state: Mutex<State>,
    /// Signalled when the host has used a buffer, or changed the configuration.
    #[pin]
    replied: Event,
    /// Signalled when somebody is through with `state`, or memory has come back in other ways.
    #[pin]
    turn: Event,
    /// The number of a node whose memory is getting short, so that the next step is urgent and of
    /// this node, whatever the target; [`NOWHERE`].
    pressed: Atomic<i32>,
    /// Somebody has waited for an answer that is late, and it has not come yet.
    silent: Atomic<bool>,
    /// What is in the balloon of each node, by the kernel's number for it.
    held: KVec<Held>,
    stats: Arc<Stats>,
}

/// What is in the balloon of one node, for those who do not have [`Balloon::state`].
struct Held {
    bytes: Atomic<u64>,
    start: Atomic<u64>,
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
    /// The device has failed: the worker has to reset it.
    failed: Option<Error>,
}

/// How an attempt to deflate ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is nothing to ask for.
    Nothing,
    /// The host has not answered yet.
    Waiting,
    /// The host has mapped all that it was asked for.
    Done,
    /// The host has not mapped all of it.
    Refused,
}

impl Balloon {
    /// An empty balloon without a device. May sleep.
    pub(crate) fn new(stats: Arc<Stats>) -> Result<impl PinInit<Self>> {
        let state = State {
            transport: None,
            blocks: Blocks::new(),
            batch: Vector::new(),
            retry: FIRST_RETRY,
            refused: None,
            failed: None,
        };
        let mut held = KVec::with_capacity(Node::numbers(), GFP_KERNEL)?;
        for _ in 0..Node::numbers() {
            let none = Held {
                bytes: Atomic::new(0),
                start: Atomic::new(u64::MAX),
            };
            held.push(none, GFP_KERNEL)?;
        }
        Ok(pin_init!(Self {
            state <- new_mutex!(state, "Balloon::state"),
            replied <- Event::new(),
            turn <- Event::new(),
            pressed: Atomic::new(NOWHERE),
            silent: Atomic::new(false),
            held,
            stats,
        }))
    }

    /// Lets a waiting request look for its answer, and whether the device has failed. Any context.
    pub(crate) fn replied(&self) {
        self.replied.signal();
    }

    /// What is in the balloon of what somebody needs, in bytes.
    fn held(&self, need: Need) -> u64 {
        let Some(node) = need.node else {
            return self.stats.ballooned_bytes.get();
        };
        let held = self.held.get(node.index());
        let held = held.filter(|held| held.start.load(Relaxed) < need.below);
        held.map_or(0, |held| held.bytes.load(Relaxed))
    }

    /// Shows what is in the balloon.
    fn account(&self, blocks: &Blocks) {
        for (node, bytes, start) in blocks.nodes() {
            if let Some(held) = self.held.get(node.index()) {
                held.start.store(start.unwrap_or(u64::MAX), Relaxed);
                held.bytes.store(bytes, Relaxed);
            }
        }
        self.stats.ballooned_bytes.set(blocks.bytes());
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
        state.failed = None;
        self.silent.store(false, Relaxed);
        let mut count = 0;
        let mut ranges = state.blocks.ranges().peekable();
        while ranges.peek().is_some() {
            state.batch.clear();
            for range in ranges.by_ref().take(MAX_RANGES) {
                // There is room, so this does not allocate.
                state.batch.try_push(range).map_err(|_| ENOMEM)?;
            }
            count += state.batch.len();
            done(self.exchange(transport, Kind::Inflate, &state.batch)?)?;
        }
        drop(ranges);
        let bytes = state.blocks.bytes();
        transport.set_actual(bytes);
        self.account(&state.blocks);
        let inflate_us = micros_since(begin);

        let begin = Instant::<Monotonic>::now();
        self.stats.enter(Phase::Committing);
        // A host that wants nothing to begin with has nothing left to map. It may not even reach
        // the queues: in a VM without assigned devices it knows of no memory. What it wants later
        // says less: it leaves out what it could not map.
        if target > 0 {
            done(self.exchange(transport, Kind::Commit, &[])?)?;
        }
        let commit_us = micros_since(begin);

        self.stats.inflate_us.set(inflate_us);
        self.stats.commit_us.set(commit_us);
        self.stats.enter(resting(bytes));
        pr_info!(
            "{} MiB in {} ranges ballooned in {} ms, committed in {} ms\n",
            bytes >> 20,
            count,
            inflate_us / 1_000,
            commit_us / 1_000
        );
        Ok(())
    }

    /// Resets the device, if there is one, and gives all pages back. May sleep.
    ///
    /// The caller has to stop the worker afterwards: that may be about to do the same.
    pub(crate) fn stop(&self) {
        let mut guard = self.state.lock();
        let (transport, blocks) = guard.take();
        drop(guard);
        self.release(transport, blocks);
        self.stats.enter(Phase::Stopped);
    }

    /// Resets the device and frees the blocks, which show as ballooned until they are free.
    ///
    /// Without `state`: the host may take as long for the reset as it takes to map all of them.
    fn release(&self, transport: Option<Transport>, mut blocks: Blocks) {
        // The reset comes first; see the top of the file.
        drop(transport);
        self.silent.store(false, Relaxed);
        while let Some(node) = blocks.lowest_node() {
            let before = blocks.bytes();
            let Some(range) = blocks.lowest(node, knobs::step(), u64::MAX).next() else {
                break;
            };
            if blocks.release(range).is_err() {
                break;
            }
            self.account(&blocks);
            let freed = before.saturating_sub(blocks.bytes());
            self.stats.returned_bytes.add(freed);
            self.turn.signal();
        }
    }

    /// Sends one request and returns the answer.
    fn exchange(&self, transport: &mut Transport, kind: Kind, ranges: &[Range]) -> Result<Reply> {
        let reply = transport.exchange(queue_of(kind), &self.replied, encoded(kind, ranges))?;
        self.decode(&reply, ranges.len())
    }

    /// Understands the answer to a request with so many ranges.
    fn decode(&self, reply: &[u8], count: usize) -> Result<Reply> {
        self.silent.store(false, Relaxed);
        self.stats.messages_sent.add(1);
        self.stats.ranges_sent.add(count as u64);
        Reply::decode(reply, count as u32).map_err(|_| EPROTO)
    }

    /// Asks the host for the lowest `bytes` bytes of a node, or if none is named, of the lowest
    /// memory, which it maps first in the background. Nothing is sent while it owes an answer.
    fn ask(&self, state: &mut State, need: Need, bytes: u64, urgent: bool) -> Result<Step> {
        let transport = state.transport.as_mut().ok_or(ENODEV)?;
        if transport.is_waiting() {
            return Ok(Step::Waiting);
        }
        state.batch.clear();
        let Some(node) = need.node.or_else(|| state.blocks.lowest_node()) else {
            return Ok(Step::Nothing);
        };
        let ranges = state.blocks.lowest(node, bytes, need.below);
        for range in ranges.take(MAX_RANGES) {
            // There is room, so this does not allocate.
            state.batch.try_push(range).map_err(|_| ENOMEM)?;
        }
        if state.batch.is_empty() {
            return Ok(Step::Nothing);
        }
        if urgent {
            self.stats.urgent_requests.add(1);
        }
        self.stats.enter(Phase::Deflating);
        let kind = Kind::Deflate { urgent };
        match transport.send(queue_of(kind), encoded(kind, &state.batch)) {
            // Nothing was sent: there was no room to map the buffers for DMA (swiotlb).
            Err(ENOMEM) => Ok(self.refuse(state)),
            other => other.map(|()| Step::Waiting),
        }
    }

    /// Waits for the answer to a deflate request, and frees what the host has mapped.
    fn collect(&self, state: &mut State, patience: Msecs) -> Result<Step> {
        let transport = state.transport.as_mut().ok_or(ENODEV)?;
        let Some(reply) = transport.wait(&self.replied, patience)? else {
            self.silent.store(transport.is_late(), Relaxed);
            return Ok(Step::Waiting);
        };
        let reply = self.decode(&reply, state.batch.len())?;
        let before = state.blocks.bytes();
        for range in state.batch.iter().take(reply.done as usize) {
            state.blocks.release(*range)?;
        }
        let left = state.blocks.bytes();
        transport.set_actual(left);
        self.account(&state.blocks);
        self.stats.returned_bytes.add(before.saturating_sub(left));
        match reply.status {
            Status::Ok => {}
            Status::NoMap => return Ok(self.refuse(state)),
            // Asking again does not mend that.
            Status::Invalid => return Err(EINVAL),
        }
        state.retry = FIRST_RETRY;
        state.refused = None;
        self.stats.enter(resting(left));
        Ok(Step::Done)
    }

    /// Notes that the host has refused a request, and when it may be asked again.
    fn refuse(&self, state: &mut State) -> Step {
        self.stats.failed_deflates.add(1);
        self.stats.enter(Phase::Refused);
        state.refused = Some((Instant::now(), state.retry));
        state.retry = state.retry.saturating_mul(2).min(LAST_RETRY);
        Step::Refused
    }

    /// What the worker does in one turn.
    fn turn(&self, state: &mut State) -> Result<Next> {
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        let Some(transport) = state.transport.as_mut() else {
            return Ok(Next::Rest);
        };
        if !transport.is_waiting() {
            let held = state.blocks.bytes();
            if held == 0 {
                // Nothing is wanted of the device, whatever has become of it.
                self.stats.enter(resting(held));
                return Ok(Next::Rest);
            }
            transport.check()?;
            let target = transport.target();
            let pressed = self.pressed.xchg(NOWHERE, Relaxed);
            let node = state.blocks.node(pressed);
            let urgent = node.is_some();
            // The host kicks with each step of its own; that is no reason to ask sooner.
            let refused = state.refused.filter(|_| !urgent);
            if let Some(left) = refused.and_then(|(at, delay)| left(at, delay)) {
                return Ok(Next::In(left));
            }
            let step = if urgent {
                knobs::step()
            } else {
                pace::deflate_step(held, target, knobs::step())
            };
            if step == 0 {
                self.stats.enter(resting(held));
                return Ok(Next::Rest);
            }
            self.ask(state, Need { node, ..Need::ANY }, step, urgent)?;
        }
        if state.transport.as_ref().is_some_and(Transport::is_waiting) {
            self.collect(state, TURN)?;
        }
        Ok(Next::In(0))
    }
}

/// When the worker has its next turn, unless it is kicked before.
enum Next {
    /// In so many milliseconds.
    In(Msecs),
    /// There is nothing to do.
    Rest,
}

impl State {
    /// Takes out what has to be dropped in this order, without the lock.
    fn take(&mut self) -> (Option<Transport>, Blocks) {
        let blocks = core::mem::replace(&mut self.blocks, Blocks::new());
        self.failed = None;
        (self.transport.take(), blocks)
    }
}

/// Shrinks the balloon to what the host wants it to be, or if memory is short, a step at a time; and
/// resets a device that has failed.
impl Job for Balloon {
    fn run(&self) -> Option<Msecs> {
        // Not held from one turn to the next: whoever has run out of memory, or stops the device,
        // may come between.
        let mut guard = self.state.lock();
        let next = self.turn(&mut guard);
        let failed = next.as_ref().err().map(|error| (*error, guard.take()));
        drop(guard);
        if let Some((error, (transport, blocks))) = failed {
            pr_err!(
                "the balloon device has failed: {error:?}; resetting it, which gives all back\n"
            );
            self.release(transport, blocks);
            self.stats.enter(Phase::Broken);
        }
        self.turn.signal();
        match next {
            Ok(Next::In(delay)) => Some(delay),
            Ok(Next::Rest) | Err(_) => None,
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

/// The queue for a request.
fn queue_of(kind: Kind) -> Queue {
    match kind {
        Kind::Inflate | Kind::Commit => Queue::Inflate,
        Kind::Deflate { .. } => Queue::Deflate,
    }
}

/// Writes a request to a buffer.
fn encoded(kind: Kind, ranges: &[Range]) -> impl FnOnce(&mut [u8]) -> Result<usize> + '_ {
    move |page| {
        let request = protocol::encode(kind, ranges, page).ok_or(EINVAL)?;
        Ok(request.len())
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
    delay.checked_sub(millis_since(at)).filter(|left| *left > 0)
}

fn micros_since(begin: Instant<Monotonic>) -> u64 {
    u64::try_from(begin.elapsed().as_micros_ceil()).unwrap_or(0)
}
