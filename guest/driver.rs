// SPDX-License-Identifier: GPL-2.0-only

//! What is bound to a balloon device: the balloon, and who calls it when.

use crate::{
    balloon::Balloon,
    kobject::Directory,
    logic::protocol::FEATURE_BIT,
    oom,
    order::Coming,
    pm,
    shrinker::Shrinker,
    stats::{
        self,
        Stats, //
    },
    virtio::{
        self,
        Device,
        Reason,
        Transport, //
    },
    work::Worker,
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A balloon device that we drive.
#[pin_data]
pub(crate) struct Driver {
    balloon: Arc<Balloon>,
    /// Deflates when the host has changed the target or memory is short, and resets a device that has
    /// failed.
    worker: Arc<Worker<Balloon>>,
    _shrinker: Shrinker<Worker<Balloon>>,
    #[pin]
    _oom: oom::Notifier<Worker<Balloon>>,
    #[pin]
    _pm: pm::Notifier<Worker<Balloon>>,
    _directory: Directory<Stats>,
}

// SAFETY: `Balloon::start` puts the transport where `Balloon::stop` or the worker takes and drops it,
// or drops it on an error before that; and `stop` waits for the worker.
unsafe impl virtio::Driver for Driver {
    const NAME: &'static CStr = crate::NAME;
    const DEVICE_ID: u32 = crate::bindings::VIRTIO_ID_BALLOON;
    const FEATURE: u32 = FEATURE_BIT;

    fn new(device: &Device) -> Result<Pin<KBox<Self>>> {
        let stats = Arc::new(Stats::new(), GFP_KERNEL)?;
        let balloon = Arc::pin_init(Balloon::new(stats.clone())?, GFP_KERNEL)?;
        let directory = stats::directory(device.kobject()?, stats)?;
        let worker = Arc::pin_init(Worker::new(crate::NAME, balloon.clone())?, GFP_KERNEL)?;
        let shrinker = Shrinker::new(crate::NAME, worker.clone())?;
        KBox::try_pin_init(
            try_pin_init!(Self {
                _shrinker: shrinker,
                _oom <- oom::Notifier::new(worker.clone()),
                _pm <- pm::Notifier::new(worker.clone()),
                worker,
                _directory: directory,
                balloon,
            }),
            GFP_KERNEL,
        )
    }

    fn start(&self, transport: Transport, reason: Reason) -> Result {
        {
            // No driver is bound to another device while the system resumes.
            let _coming = (reason == Reason::Probe).then(Coming::new);
            self.balloon.start(transport, reason)?;
        }
        // The target may have changed while nobody listened.
        self.worker.kick();
        Ok(())
    }

    fn stop(&self) {
        self.balloon.stop();
        // It may be about to reset a device that has failed, and then has the transport.
        self.worker.stop();
    }

    fn used(&self) {
        self.balloon.replied();
    }

    fn config_changed(&self) {
        // It may want to be reset, and whoever waits for it has to know.
        self.balloon.replied();
        self.worker.kick();
    }
}
