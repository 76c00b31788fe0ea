// SPDX-License-Identifier: GPL-2.0-only

//! The balloon's back end: what the guest's messages make the host do.
//!
//! A thread of the VMM's own process (so that guest memory is its user memory)
//! serves both queues, one message at a time:
//!
//! 1. take a chain and copy its request,
//! 2. map what a commit or a deflation asks for, which may take long,
//! 3. enter an inflation into the tables, answer, and interrupt the driver.
//!
//! Steps 1 and 3 hold [`BalloonThread::io`], under which they first make sure that no
//! reset has come between. A reset makes the outdated known and then takes the
//! lock once: after that nothing of an old message reaches a ring, which may be
//! other memory by then, or the tables. Step 2 gives up when its message is
//! outdated, so that neither the next driver nor the end of the device waits for
//! what nobody wants any more. A chain that is not answered because the device was
//! suspended is taken again after `resume`: all messages may be repeated.
//!
//! Lock order: `Balloon::bound`; `BalloonThread::request` -> `BalloonThread::io` ->
//! `Vm::state`, the mmap lock (page faults), the locks of [`Front`].
//! `Balloon::task` is irq-safe and a leaf; it is taken under eventfds' locks.

mod memory;

use kernel::{
    fmt, new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

use crate::{
    bindings,
    compat::{
        spinlock_irq,
        SpinLockIrq, //
    },
    logic::{
        memory::Fault,
        protocol::{
            self,
            Kind,
            Reply,
            Request,
            Status, //
        },
        vring::{
            Layout,
            Ring,
            RingError, //
        },
    },
    vdpa::{
        spec,
        Backend,
        Front,
        Session,
        Snapshot, //
    },
    vm::{
        BalloonTarget,
        Vm, //
    },
    wrap::task::{
        Task,
        Work, //
    },
};

use memory::GuestMemory;

// The logic restates the header, which is the source of truth.
const _: () = {
    assert!(protocol::FEATURE_BIT == bindings::VIRTIO_BALLOON_F_DEFERRED);
    assert!(protocol::GRANULE.bytes() == bindings::VIRTIO_BALLOON_DEFERRED_GRANULE as u64);
    assert!(protocol::MAX_RANGES == bindings::VIRTIO_BALLOON_DEFERRED_MAX_RANGES as usize);
    assert!(protocol::TYPE_INFLATE == bindings::VIRTIO_BALLOON_DEFERRED_INFLATE);
    assert!(protocol::TYPE_COMMIT == bindings::VIRTIO_BALLOON_DEFERRED_COMMIT);
    assert!(protocol::TYPE_DEFLATE == bindings::VIRTIO_BALLOON_DEFERRED_DEFLATE);
    assert!(protocol::FLAG_URGENT == bindings::VIRTIO_BALLOON_DEFERRED_URGENT);
    assert!(protocol::STATUS_OK == bindings::VIRTIO_BALLOON_DEFERRED_OK);
    assert!(protocol::STATUS_INVALID == bindings::VIRTIO_BALLOON_DEFERRED_INVALID);
    assert!(protocol::STATUS_NOMAP == bindings::VIRTIO_BALLOON_DEFERRED_NOMAP);
    assert!(protocol::HEADER_LEN == size_of::<bindings::virtio_balloon_deferred_hdr>());
    assert!(protocol::RANGE_LEN == size_of::<bindings::virtio_balloon_deferred_range>());
    assert!(protocol::REPLY_LEN == size_of::<bindings::virtio_balloon_deferred_reply>());
};

/// Why the queues cannot be served any more: the driver's, or its VMM's, doing.
enum Broken {
    /// The queue's size, or the address of a part of it.
    Layout,
    /// What the driver wrote to the ring.
    Ring(RingError),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout => f.write_str("bad size or alignment"),
            // There is no VFIO device, or it comes first on the command line: then
            // nothing was deferred, and the balloon is of no use.
            Self::Ring(RingError::Fault) => {
                f.write_str("not in RAM that VFIO has mapped since the balloon was opened")
            }
            Self::Ring(error) => fmt::Debug::fmt(error, f),
        }
    }
}

impl From<RingError> for Broken {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Ring(fault.into())
    }
}

impl BalloonTarget for Session {
    fn set_target(&self, bytes: u64) {
        Session::set_target(self, bytes);
    }
}

/// A VM that this balloon is bound to; unbound on drop.
struct BoundVm(Arc<Vm>);

impl Drop for BoundVm {
    fn drop(&mut self) {
        self.0.unbind();
    }
}

/// The back end of one balloon device.
#[pin_data]
pub(crate) struct Balloon {
    front: Arc<Front>,
    /// While a process has the device. The worker goes before its VM.
    #[pin]
    bound: Mutex<Option<(Arc<BalloonThread>, BoundVm)>>,
    /// The worker's thread; there whenever `bound` is, except in between.
    #[pin]
    task: SpinLockIrq<Option<Task<BalloonThread>>>,
}

impl Balloon {
    fn worker(&self) -> Option<Arc<BalloonThread>> {
        self.bound.lock().as_ref().map(|(worker, _)| worker.clone())
    }
}

impl Backend for Balloon {
    fn new(front: Arc<Front>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                front,
                bound <- new_mutex!(None),
                task <- spinlock_irq(None),
            }),
            GFP_KERNEL,
        )
    }

    fn bind(&self) -> Result {
        let target = KBox::new(self.front.session(), GFP_KERNEL)?;
        let vm = BoundVm(Vm::bind(target)?);
        let worker = BalloonThread::new(self.front.clone(), vm.0.clone())?;
        let task = Task::spawn(worker.clone(), c"vfio-balloon")?;
        *self.bound.lock() = Some((worker, vm));
        *self.task.lock() = Some(task);
        Ok(())
    }

    fn unbind(&self) {
        // Both sleep, so neither may happen under the lock: the thread's end, and
        // what the VM does without its balloon.
        let task = self.task.lock().take();
        drop(task);
        let bound = self.bound.lock().take();
        drop(bound);
    }

    fn kick(&self) {
        if let Some(task) = self.task.lock().as_ref() {
            task.wake();
        }
    }

    fn driver_ok(&self, features: u64) -> Result {
        let worker = self.worker().ok_or(ENODEV)?;
        // Firmware has no driver for a balloon.
        worker.vm.driver_seen();
        if features & spec::F_DEFERRED != 0 {
            let session = self.front.session();
            session.set_lowest(worker.vm.lowest_unmapped());
            session.set_target(worker.vm.balloon_target());
            return Ok(());
        }
        // Any other driver gets a plain balloon whose target stays 0 (I4).
        worker.vm.map_on();
        Ok(())
    }

    fn quiesce(&self) {
        if let Some(worker) = self.worker() {
            worker.vm.look_again();
            drop(worker.io.lock());
        }
    }

    fn reset(&self) -> Result {
        if let Some(worker) = self.worker() {
            worker.vm.balloon_reset();
        }
        Ok(())
    }
}

/// What the thread works on.
#[pin_data]
struct BalloonThread {
    front: Arc<Front>,
    vm: Arc<Vm>,
    /// The request at hand; the thread's own.
    #[pin]
    request: Mutex<KVec<u8>>,
    /// Held while rings and tables are changed on behalf of a message.
    #[pin]
    io: Mutex<()>,
}

impl BalloonThread {
    fn new(front: Arc<Front>, vm: Arc<Vm>) -> Result<Arc<Self>> {
        let request = KVec::from_elem(0, protocol::MAX_REQUEST_LEN, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                front,
                vm,
                request <- new_mutex!(request),
                io <- new_mutex!(()),
            }),
            GFP_KERNEL,
        )
    }

    /// Serves one message of a queue. Returns whether there was one.
    fn serve(&self, buf: &mut [u8], index: usize, queue: protocol::Queue) -> bool {
        let Some(snapshot) = self.front.snapshot(index) else {
            return false;
        };
        self.serve_queue(buf, index, queue, &snapshot)
            .unwrap_or_else(|broken| {
                if self.front.fail(&snapshot) {
                    let front = &self.front;
                    front.warn(fmt!("queue {index} is broken: {broken}"));
                }
                false
            })
    }

    fn serve_queue(
        &self,
        buf: &mut [u8],
        index: usize,
        queue: protocol::Queue,
        snapshot: &Snapshot,
    ) -> Result<bool, Broken> {
        let memory = GuestMemory(&self.vm);
        let at = &snapshot.queue;
        let layout = Layout::new(at.size, at.desc, at.avail, at.used).ok_or(Broken::Layout)?;
        let mut ring = Ring::new(layout, at.next);

        let io = self.io.lock();
        if !self.front.is_current(snapshot) {
            return Ok(false);
        }
        let Some(chain) = ring.pop(&memory)? else {
            return Ok(false);
        };
        let mut request = None;
        if snapshot.deferred {
            let bytes = chain.read_all(&memory, buf)?;
            request = bytes.and_then(|bytes| protocol::decode(queue, bytes).ok());
        }
        drop(io);

        let reply = self.map(request, || self.front.is_current(snapshot));

        let io = self.io.lock();
        if !self.front.is_current(snapshot) {
            return Ok(false);
        }
        self.inflate(request);
        // PFNs of a driver of another kind need no answer but their buffer back.
        let written = match snapshot.deferred {
            true => chain.write_reply(&memory, &reply.encode())?,
            false => 0,
        };
        ring.push(&memory, chain, written)?;
        self.front.advance(index, ring.next_used(), snapshot);
        let interrupt = ring.wants_interrupt(&memory)?;
        drop(io);

        if interrupt {
            self.front.interrupt(index);
        }
        // What was inflated is missing no more. The mapping threads may all be busy.
        self.vm.tell_news();
        Ok(true)
    }

    /// Maps what the request asks for (contract I2), and says how that went.
    ///
    /// Comes back early, with whatever answer, if it is not `wanted` any more.
    fn map(&self, request: Option<Request<'_>>, wanted: impl Fn() -> bool) -> Reply {
        let Some(Request { kind, ranges }) = request else {
            return reply(Status::Invalid, 0);
        };
        self.vm.count_message();
        match kind {
            Kind::Inflate => reply(Status::Ok, ranges.len()),
            Kind::Commit => match self.vm.commit(wanted) {
                Ok(()) => reply(Status::Ok, 0),
                Err(_) => reply(Status::NoMap, 0),
            },
            Kind::Deflate { urgent } => {
                let mapped = |range| self.vm.deflate(range, urgent, &wanted).is_ok();
                let done = ranges.take_while(|range| mapped(*range)).count();
                match done == ranges.len() {
                    true => reply(Status::Ok, done),
                    false => reply(Status::NoMap, done),
                }
            }
        }
    }

    /// Enters what the driver gave up into the tables.
    ///
    /// Without memory for that, a range is left outside the balloon: the commit
    /// maps it, which is more than the driver needs and no harm.
    fn inflate(&self, request: Option<Request<'_>>) {
        if let Some(Request {
            kind: Kind::Inflate,
            ranges,
        }) = request
        {
            for range in ranges {
                let _ = self.vm.inflate(range);
            }
        }
    }
}

fn reply(status: Status, done: usize) -> Reply {
    Reply {
        status,
        done: u32::try_from(done).unwrap_or(u32::MAX),
    }
}

impl Work for BalloonThread {
    fn run(&self) -> bool {
        let buf = &mut *self.request.lock();
        // A guest that wants memory back goes first.
        let deflated = self.serve(buf, spec::DEFLATE, protocol::Queue::Deflate);
        let inflated = self.serve(buf, spec::INFLATE, protocol::Queue::Inflate);
        deflated || inflated
    }

    /// The VM is gone, and its device's file with it: `unbind` follows.
    fn killed(&self) {}
}
