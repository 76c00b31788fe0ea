// SPDX-License-Identifier: GPL-2.0-only

//! A balloon device whose queues are set up, and one message at a time to it.

use crate::{
    bindings,
    compat::EPROTO,
    event::Event,
    logic::protocol::Queue, //
};
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    time::Msecs, //
};

/// How often a waiting task looks whether the device broke, for that wakes nobody.
const POLL: Msecs = 1_000;
/// After this long without an answer the log says so.
const SLOW: Msecs = 10_000;
/// After this long without an answer the device is given up.
///
/// The host may have to allocate and zero gigabytes, and has its own time limits.
const LIMIT: Msecs = 600_000;

/// A balloon device that is bound to a driver of ours, has its queues, and is ours to talk to.
///
/// Dropping it resets the device and removes the queues.
///
/// # Invariants
///
/// `vdev` is bound, and `queues` are the live queues that `find_vqs()` has made for it. Unless
/// `dead`, the device owns neither `request` nor `reply` while no method runs.
pub(crate) struct Transport {
    vdev: *mut bindings::virtio_device,
    queues: [*mut bindings::virtqueue; 2],
    // For DMA, so a kmalloc'ed buffer each. `Drop` resets the device before they go.
    request: KVec<u8>,
    reply: KVec<u8>,
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
        let reply = size_of::<bindings::virtio_balloon_deferred_reply>();
        let mut transport = Self {
            vdev,
            queues: [core::ptr::null_mut(); 2],
            request: KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?,
            reply: KVec::from_elem(0, reply, GFP_KERNEL)?,
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

    /// What the host wants to be in the balloon, in bytes. May sleep.
    pub(crate) fn target(&self) -> u64 {
        // SAFETY: Bound by the invariants.
        let pages = unsafe { bindings::virtio_balloon_num_pages(self.vdev) };
        u64::from(pages) << bindings::VIRTIO_BALLOON_PFN_SHIFT
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

    /// Sends what `fill` has written and returns the device's answer.
    ///
    /// `fill` gets a page of zeroes and returns the length of the request in bytes. `replied` must
    /// be signalled by the queue's callback.
    ///
    /// Sleeps, uninterruptibly, and allocates nothing. Fails with `EIO` if the device is broken or
    /// reset, `ETIMEDOUT` if it does not answer (nothing can be sent after either), and `EPROTO` if
    /// its answer is too short.
    pub(crate) fn exchange(
        &mut self,
        queue: Queue,
        replied: &Event,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<&[u8]> {
        if self.dead {
            return Err(EIO);
        }
        self.request.fill(0);
        self.reply.fill(0);
        let len = fill(&mut self.request)?.min(self.request.len());
        let [inflate, deflate] = self.queues;
        let vq = match queue {
            Queue::Inflate => inflate,
            Queue::Deflate => deflate,
        };

        let mut out = bindings::scatterlist::default();
        let mut into = bindings::scatterlist::default();
        let mut sgs = [&raw mut out, &raw mut into];
        // SAFETY: By the invariants the queue is live and the buffers, which are kmalloc'ed, are
        // not in use. They stay until the device has given them back or was reset: if this returns
        // without them, `dead` is set. Two descriptors always fit into an empty queue, and without
        // indirect descriptors adding them allocates nothing.
        to_result(unsafe {
            bindings::sg_init_one(&mut out, self.request.as_ptr().cast(), len as u32);
            bindings::sg_init_one(
                &mut into,
                self.reply.as_ptr().cast(),
                self.reply.len() as u32,
            );
            bindings::virtqueue_add_sgs(
                vq,
                sgs.as_mut_ptr(),
                1,
                1,
                self.request.as_mut_ptr().cast(),
                bindings::GFP_ATOMIC,
            )
        })?;
        self.dead = true;
        let written = Self::kick_and_wait(vq, replied)?;
        self.dead = false;
        if written < self.reply.len() {
            return Err(EPROTO);
        }
        Ok(&self.reply)
    }

    /// Waits for the one buffer in `vq` to be used; the number of bytes that were written to it.
    fn kick_and_wait(vq: *mut bindings::virtqueue, replied: &Event) -> Result<usize> {
        let mut waited: Msecs = 0;
        let mut len = 0;
        // SAFETY: The queue is live, by the invariants of the only caller, whose `&mut self` keeps
        // everybody else out.
        unsafe { bindings::virtqueue_kick(vq) };
        loop {
            // SAFETY: As above.
            if !unsafe { bindings::virtqueue_get_buf(vq, &mut len) }.is_null() {
                return Ok(len as usize);
            }
            // SAFETY: As above.
            if unsafe { bindings::virtqueue_is_broken(vq) } {
                return Err(EIO);
            }
            if waited >= LIMIT {
                pr_err!(
                    "the host has not answered for {} s, giving up\n",
                    waited / 1_000
                );
                return Err(ETIMEDOUT);
            }
            if waited == SLOW {
                pr_warn!("the host has not answered for {} s\n", waited / 1_000);
            }
            if !replied.wait(POLL) {
                waited = waited.saturating_add(POLL);
            }
        }
    }
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
