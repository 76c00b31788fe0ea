// SPDX-License-Identifier: GPL-2.0-only

//! A balloon device whose queues are set up, and one message at a time to it.

use crate::{
    bindings,
    compat::EPROTO,
    event::Event,
    logic::protocol::{
        Queue,
        REPLY_LEN, //
    },
};
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    time::{
        Instant,
        Monotonic,
        Msecs, //
    },
};

/// How often a waiting task looks whether the device broke, for that wakes nobody.
const POLL: Msecs = 1_000;
/// After this long without an answer it is late, and the log says so.
const SLOW: Msecs = 10_000;
/// After this long without an answer the device is given up.
///
/// The host may have to allocate and zero gigabytes, and has its own time limits.
const LIMIT: Msecs = 600_000;

/// A request that the device has not answered yet.
struct Pending {
    vq: *mut bindings::virtqueue,
    since: Instant<Monotonic>,
    /// The log says that the answer is late.
    late: bool,
}

/// A balloon device that is bound to a driver of ours, has its queues, and is ours to talk to.
///
/// Dropping it resets the device and removes the queues.
///
/// # Invariants
///
/// `vdev` is bound, and `queues` are the live queues that `find_vqs()` has made for it. The device
/// owns `request` and `reply` while there is a `pending` request, in one of these queues, and at no
/// other time.
pub(crate) struct Transport {
    vdev: *mut bindings::virtio_device,
    queues: [*mut bindings::virtqueue; 2],
    // For DMA, so a kmalloc'ed buffer each. `Drop` resets the device before they go.
    request: KVec<u8>,
    reply: KVec<u8>,
    pending: Option<Pending>,
    /// It has failed: nothing can be sent any more.
    dead: bool,
}

// SAFETY: The device and its queues may be used from any thread, by one at a time; that nobody else
// has them, and `&mut self`, see to it.
unsafe impl Send for Transport {}

impl Transport {
    /// Sets up the queues of `vdev`, which call `used` in interrupt context.
    ///
    /// # Safety
    ///
    /// `vdev` must be bound to a driver of ours and have no queues, and both it and what `used`
    /// relies on must stay until this is dropped.
    pub(super) unsafe fn new(
        vdev: *mut bindings::virtio_device,
        used: unsafe extern "C" fn(*mut bindings::virtqueue),
    ) -> Result<Self> {
        let mut transport = Self {
            vdev,
            queues: [core::ptr::null_mut(); 2],
            request: KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?,
            reply: KVec::from_elem(0, REPLY_LEN, GFP_KERNEL)?,
            pending: None,
            dead: false,
        };
        let info = |name: &'static CStr| bindings::virtqueue_info {
            name: name.as_char_ptr(),
            callback: Some(used),
            ctx: false,
        };
        let mut info = [info(c"inflate"), info(c"deflate")];
        // SAFETY: `vdev` has no queues by the caller's promise; both arrays have two elements.
        let found = to_result(unsafe {
            bindings::virtio_find_vqs(vdev, 2, transport.queues.as_mut_ptr(), info.as_mut_ptr())
        });
        match found {
            // INVARIANT: A queue that has a name is never null after success.
            Ok(()) => Ok(transport),
            Err(error) => {
                // There are no queues to remove.
                transport.queues = [core::ptr::null_mut(); 2];
                Err(error)
            }
        }
    }

    /// Lets the device use the queues: nothing can be sent before. May sleep.
    pub(crate) fn ready(&mut self) {
        // SAFETY: Bound, with its queues, by the invariants.
        unsafe { bindings::virtio_device_ready(self.vdev) }
    }

    /// What the host wants to be in the balloon, in bytes: nothing of a device that needs a reset.
    /// May sleep.
    pub(crate) fn target(&self) -> u64 {
        let pages = self.pages().unwrap_or(0);
        u64::from(pages) << bindings::VIRTIO_BALLOON_PFN_SHIFT
    }

    /// The same in pages of 4 KiB; `None` if the device says there that it needs a reset, since not
    /// every VMM shows its status (QEMU keeps that of a vDPA device to itself).
    fn pages(&self) -> Option<u32> {
        // SAFETY: Bound by the invariants.
        let pages = unsafe { bindings::virtio_balloon_num_pages(self.vdev) };
        (pages != bindings::VIRTIO_BALLOON_DEFERRED_NEEDS_RESET).then_some(pages)
    }

    /// The guest-physical address below which all is mapped and nothing worth giving up. May sleep.
    pub(crate) fn lowest(&self) -> u64 {
        // SAFETY: Bound by the invariants.
        let mib = unsafe { bindings::virtio_balloon_lowest_mib(self.vdev) };
        u64::from(mib) << 20
    }

    /// Tells the host how many bytes are in the balloon. May sleep.
    pub(crate) fn set_actual(&mut self, bytes: u64) {
        let pages = bytes >> bindings::VIRTIO_BALLOON_PFN_SHIFT;
        // Such a balloon cannot have been asked for: the target is 32 bits wide as well.
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        // SAFETY: Bound by the invariants.
        unsafe { bindings::virtio_balloon_set_actual(self.vdev, pages) }
    }

    /// Whether the device can still be talked to; `EIO` once it wants to be reset, or is broken.
    ///
    /// May sleep. It tells by an interrupt for a change of its configuration, if at all.
    pub(crate) fn check(&mut self) -> Result {
        // SAFETY: Bound, with its queues, by the invariants.
        let (status, broken) = unsafe {
            (
                bindings::virtio_get_status(self.vdev),
                self.queues
                    .iter()
                    .any(|vq| bindings::virtqueue_is_broken(*vq)),
            )
        };
        self.dead |= broken || u32::from(status) & bindings::VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        self.dead |= self.pages().is_none();
        if self.dead {
            return Err(EIO);
        }
        Ok(())
    }

    /// Whether a request has not been answered yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether somebody has waited for the answer after it was late.
    pub(crate) fn is_late(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.late)
    }

    /// Sends what `fill` has written. The answer is left to [`Transport::wait`].
    ///
    /// `fill` gets a page of zeroes and returns the length of the request in bytes.
    ///
    /// Allocates nothing, does not sleep. Fails with `EIO` if the device has failed, `EBUSY` while
    /// another request is waiting, and `ENOMEM`, having sent nothing, if the buffers could not be
    /// mapped for DMA (swiotlb).
    pub(crate) fn send(
        &mut self,
        queue: Queue,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result {
        if self.dead {
            return Err(EIO);
        }
        if self.pending.is_some() {
            return Err(EBUSY);
        }
        self.request.fill(0);
        self.reply.fill(0);
        let len = fill(&mut self.request)?.min(self.request.len());
        let [inflate, deflate] = self.queues;
        let vq = match queue {
            Queue::Inflate => inflate,
            Queue::Deflate => deflate,
        };

        let request: *mut c_void = self.request.as_mut_ptr().cast();
        let reply: *mut c_void = self.reply.as_mut_ptr().cast();
        let mut out = bindings::scatterlist::default();
        let mut into = bindings::scatterlist::default();
        let mut sgs = [&raw mut out, &raw mut into];
        // SAFETY: By the invariants the queue is live and the buffers, which are kmalloc'ed, are
        // not in use. They stay until the device has given them back or was reset. Two descriptors
        // always fit into an empty queue, and without indirect descriptors adding them allocates
        // nothing.
        to_result(unsafe {
            bindings::sg_init_one(&mut out, request, len as u32);
            bindings::sg_init_one(&mut into, reply, REPLY_LEN as u32);
            bindings::virtqueue_add_sgs(vq, sgs.as_mut_ptr(), 1, 1, request, bindings::GFP_ATOMIC)
        })
        .inspect_err(|error| self.dead |= *error != ENOMEM)?;
        // INVARIANT: The device has both buffers from here on.
        self.pending = Some(Pending {
            vq,
            since: Instant::now(),
            late: false,
        });
        // SAFETY: The queue is live, by the invariants, and `&mut self` keeps everybody else out.
        unsafe { bindings::virtqueue_kick(vq) };
        Ok(())
    }

    /// Waits, `patience` milliseconds at most, for the answer to what was sent last; `None` if it
    /// has not come, so that this has to be called again.
    ///
    /// `replied` must be signalled by the callback of each queue, and when the configuration has
    /// changed.
    ///
    /// Sleeps, uninterruptibly, and allocates nothing. After an error nothing can be sent any more:
    /// `EIO` if the device is broken, was reset, or wants to be; `ETIMEDOUT` if it has not answered
    /// for ten minutes; `EPROTO` if its answer is too short; `ENOENT` if nothing was sent.
    pub(crate) fn wait(
        &mut self,
        replied: &Event,
        patience: Msecs,
    ) -> Result<Option<[u8; REPLY_LEN]>> {
        let begin = Instant::<Monotonic>::now();
        // Its status is behind an exit to the VMM: not read where the answer comes at once.
        let mut woken = false;
        loop {
            let seen = replied.count();
            let pending = self.pending.as_mut().ok_or(ENOENT)?;
            let mut written = 0;
            // SAFETY: The queue is live, by the invariants, and `&mut self` keeps everybody else
            // out.
            if !unsafe { bindings::virtqueue_get_buf(pending.vq, &mut written) }.is_null() {
                // INVARIANT: The device has given the buffers back.
                self.pending = None;
                if (written as usize) < REPLY_LEN {
                    self.dead = true;
                    return Err(EPROTO);
                }
                return Ok(Some(self.reply()));
            }
            let waited = millis_since(pending.since);
            if waited >= LIMIT {
                pr_err!(
                    "the host has not answered for {} s, giving up\n",
                    waited / 1_000
                );
                self.dead = true;
                return Err(ETIMEDOUT);
            }
            if waited >= SLOW && !pending.late {
                pending.late = true;
                pr_warn!("the host has not answered for {} s\n", waited / 1_000);
            }
            if woken {
                self.check()?;
            }
            let left = patience.saturating_sub(millis_since(begin));
            if left == 0 {
                return Ok(None);
            }
            replied.wait(seen, left.min(POLL));
            woken = true;
        }
    }

    /// What the device has answered.
    fn reply(&mut self) -> [u8; REPLY_LEN] {
        let reply: *mut [u8; REPLY_LEN] = self.reply.as_mut_ptr().cast();
        // SAFETY: The buffer is that long. Volatile, since a device that does not keep to the rules
        // may still be writing: what is checked must be what is used.
        unsafe { reply.read_volatile() }
    }

    /// Sends a request and waits for its answer, for as long as [`Transport::wait`] does; errors
    /// are those of both.
    pub(crate) fn exchange(
        &mut self,
        queue: Queue,
        replied: &Event,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<[u8; REPLY_LEN]> {
        self.send(queue, fill)?;
        loop {
            if let Some(reply) = self.wait(replied, LIMIT)? {
                return Ok(reply);
            }
        }
    }
}

/// Milliseconds since `begin`, as many as fit.
pub(crate) fn millis_since(begin: Instant<Monotonic>) -> Msecs {
    Msecs::try_from(begin.elapsed().as_millis()).unwrap_or(Msecs::MAX)
}

impl Drop for Transport {
    fn drop(&mut self) {
        if self.queues.contains(&core::ptr::null_mut()) {
            return;
        }
        // SAFETY: Bound by the invariants, with queues that find_vqs() has made. After the reset the
        // device touches no buffer and calls nobody back, so that the buffers can be detached, which
        // ends their DMA mapping, and the queues can go.
        unsafe {
            bindings::virtio_reset_device(self.vdev);
            for vq in self.queues {
                while !bindings::virtqueue_detach_unused_buf(vq).is_null() {}
            }
            bindings::virtio_del_vqs(self.vdev);
        }
    }
}
