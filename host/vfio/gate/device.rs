// SPDX-License-Identifier: GPL-2.0-only

//! One device behind the gate: its `PCI_COMMAND`, and the first touch after the guest has asked.
//!
//! Writes of the register are made one at a time, so that threads of a VMM that write at once do
//! not get a device past the gate. [`logic::command`] decides what a write means; the register
//! itself says what came of it. What is known of the register is as follows.
//!
//! - A reset (FLR, `VFIO_DEVICE_RESET`, a hot reset) and a suspension of the device by the host
//!   put back what was there before; vfio-pci and the PCI core keep writes away meanwhile.
//! - Coming back from D3 puts back what was there on the way to D3, whatever was written in
//!   between. So no write in D3 closes the gate, and what the gate could not change in D3 it
//!   changes when the device is awake again ([`GatedDevice::look`]).
//!
//! Lock order: a *claim* ([`GatedDevice::claim`]) → `barrier` → the locks of page tables. The mmap
//! lock → `barrier` → vfio-pci's `memory_lock`. `state` and what the VM locks are leaves. A claim
//! may be waited for with `Container::ops` held: its holder takes no `ops`. Nobody waits for memory
//! with the barrier.
//!
//! Source: `drivers/vfio/pci/vfio_pci_config.c`, `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! [`logic::command`]: crate::logic::command

use core::fmt::Write;

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

use crate::{
    admin::knobs::KNOBS,
    logic::{
        command::{
            Command,
            Intent,
            Lost,
            Need,
            Phase,
            MASTER, //
        },
        config_space::OwnDwords, //
    },
    vfio::container::Container,
    vm::{
        BusMaster,
        MasterId, //
    },
    wrap::{
        kobject::Writer,
        time::now,
        wait::{
            new_wait_queue,
            WaitQueue, //
        },
    },
};

use super::{
    bars::Bars,
    bytes::Bytes,
    register::Register, //
};

struct GateState {
    command: Command,
    /// Somebody changes the register.
    claimed: bool,
    /// No descriptor of the device is left.
    closed: bool,
    /// The bit was changed while the device slept: what it has when it is awake again is to be
    /// looked at.
    asleep: bool,
    /// What the guest asked for could not be mapped: nobody waits.
    refused: bool,
    /// The guest may use the device in ways that the gate does not see: who sets the bit waits.
    untrapped: bool,
}

impl GateState {
    /// Whether who uses the device has to wait.
    fn is_waited_for(&self) -> bool {
        self.command.is_asked() && !self.refused && !self.closed
    }
}

/// An open device.
#[pin_data]
pub(super) struct GatedDevice {
    id: MasterId,
    container: Arc<Container>,
    register: Register,
    /// Where the device interprets config space itself.
    own: OwnDwords,
    /// Held while a page of a BAR is entered into page tables after a look at `state`, and while
    /// that look is made to say no.
    #[pin]
    barrier: Mutex<Bars>,
    #[pin]
    state: Mutex<GateState>,
    /// Notified when a claim ends, and when nobody has to wait any more.
    #[pin]
    changed: WaitQueue,
}

/// The right to change the register; given back on drop.
struct Claim<'a>(&'a GatedDevice);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.state.lock().claimed = false;
        self.0.changed.notify();
    }
}

impl GatedDevice {
    /// A device in its first open, behind a closed gate. Errors: `ENOMEM`.
    pub(super) fn new(
        register: Register,
        bars: Bars,
        container: Arc<Container>,
    ) -> Result<Arc<Self>> {
        let own = OwnDwords::new(&register.pci().config());
        Arc::pin_init(
            pin_init!(Self {
                id: MasterId::new(),
                container,
                register,
                own,
                barrier <- new_mutex!(bars),
                state <- new_mutex!(GateState {
                    command: Command::new(),
                    claimed: false,
                    closed: false,
                    asleep: false,
                    refused: false,
                    untrapped: false,
                }),
                changed <- new_wait_queue!("vfio_iommu_deferred: gate"),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether a write at `offset` of config space is for the device itself to interpret.
    pub(super) fn is_own_capability(&self, offset: u64) -> bool {
        self.own.contain(offset)
    }

    /// Waits until no other thread changes the register; `EINTR` after a fatal signal.
    fn claim(&self) -> Result<Claim<'_>> {
        self.changed.wait(&self.state, |state| {
            (!core::mem::replace(&mut state.claimed, true)).then_some(())
        })?;
        Ok(Claim(self))
    }

    /// As [`GatedDevice::claim`], whatever signal comes. A write ends soon, or when the mapping
    /// that it waits for does.
    fn claim_in_any_case(&self) -> Claim<'_> {
        self.changed.wait_uninterruptible(&self.state, |state| {
            (!core::mem::replace(&mut state.claimed, true)).then_some(())
        });
        Claim(self)
    }

    /// Makes a write that covers the register's low byte.
    ///
    /// `bytes`: a copy of what the VMM writes, without the bit if that is to be kept from the
    /// device. Returns what `forward` does, which makes the write, or why it was not made.
    /// Context: a `write()` of the VMM; waits for memory only if the device is *untrapped*.
    pub(super) fn write_command(
        self: &Arc<Self>,
        bytes: &mut Bytes,
        forward: impl FnOnce(&Bytes) -> isize,
    ) -> Result<isize> {
        let claim = self.claim()?;
        let byte = bytes.command()?;
        let phase = self.container.phase();
        let intent = self.state.lock().command.intent(byte, phase);
        let mut asked = None;
        match intent {
            Intent::Pass => {}
            Intent::Mask => bytes.set_command(byte & !MASTER)?,
            Intent::Ask(need) => match self.try_grant(need)? {
                Some(need) => self.state.lock().command.admit(need),
                None => {
                    bytes.set_command(byte & !MASTER)?;
                    asked = Some(need);
                }
            },
        }
        let awake = self.register.pci().is_awake();
        let written = forward(bytes);
        // In D3 before or after: what was written may be undone.
        let awake = awake && self.register.pci().is_awake();
        let hardware = self.register.pci().command();
        let outcome = {
            let mut state = self.state.lock();
            let done = written > 0;
            state.command.written(byte, done, hardware, awake, phase)
        };
        if outcome.clear {
            self.clear();
        }
        if outcome.lost.is_some() {
            self.lost(outcome.lost);
        }
        if let (Some(need), true) = (asked, written > 0) {
            self.ask(need, phase == Phase::System)?;
        }
        drop(claim);
        self.look();
        // The device may decode its BARs now.
        self.barrier.lock().zap_ones();
        if outcome.system {
            self.system_seen();
        }
        Ok(written)
    }

    /// Lets the device master the bus if it may; an untrapped one waits until it may.
    fn try_grant(self: &Arc<Self>, need: Need) -> Result<Option<Need>> {
        let device: Arc<dyn BusMaster> = self.clone();
        if self.state.lock().untrapped {
            self.container.grant_when_mapped(&device, need)?;
            return Ok(Some(need));
        }
        self.container.try_grant(&device, need)
    }

    /// The guest has asked, and the bit was kept from the device: from here on its use is noticed.
    ///
    /// A claim is held, so that the VM's answer waits until the device knows that it has asked;
    /// who uses the device finds it known to the VM.
    fn ask(self: &Arc<Self>, need: Need, urgent: bool) -> Result {
        let vm = self.container.vm_now().ok_or(ENODEV)?;
        let device: Arc<dyn BusMaster> = self.clone();
        self.state.lock().refused = false;
        vm.ask(&device, need, urgent)?;
        let bars = self.barrier.lock();
        self.state.lock().command.ask(need);
        bars.zap();
        Ok(())
    }

    /// The register was read: returns its low byte as the guest is to see it.
    pub(super) fn command_read(&self, byte: u8) -> u8 {
        let mut state = self.state.lock();
        state.command.read();
        state.command.shown(byte)
    }

    /// All ones were written to a BAR.
    pub(super) fn bar_sized(&self) {
        let phase = self.container.phase();
        if self.state.lock().command.sizes_bar(phase) {
            self.system_seen();
        }
    }

    fn system_seen(&self) {
        if let Some(vm) = self.container.vm_now() {
            vm.system_seen();
        }
    }

    /// Whether who uses the device has to wait first: see [`GatedDevice::touch`].
    pub(super) fn is_waited_for(&self) -> bool {
        self.state.lock().is_waited_for() && KNOBS.trap()
    }

    /// The guest uses the device: waits until it may master the bus, if it has asked to, or until
    /// it is clear that it will not.
    ///
    /// Errors: `EINTR` after a fatal signal. Context: process context without the mmap lock; a
    /// descriptor or a mapping of the device is held, so that it stays open.
    pub(super) fn touch(&self) -> Result {
        if !self.is_waited_for() {
            return Ok(());
        }
        let Some(vm) = self.container.vm_now() else {
            return Ok(());
        };
        self.state.lock().command.touch();
        if vm.touch(self.id).is_err() {
            self.refuse();
        }
        let started = now();
        let result = self
            .changed
            .wait(&self.state, |state| (!state.is_waited_for()).then_some(()));
        vm.touched(self.id, now().saturating_sub(started));
        result
    }

    /// From here on the guest may use the device in ways that the gate does not see.
    pub(super) fn untrap(&self) {
        self.state.lock().untrapped = true;
    }

    /// Enters a page of a BAR into page tables by `insert`, unless who needs it has to wait
    /// first; a `remote` fault is no use of the device.
    pub(super) fn insert_page<R>(
        &self,
        remote: bool,
        insert: impl FnOnce(&mut Bars) -> R,
    ) -> Option<R> {
        let mut bars = self.barrier.lock();
        if !remote && self.is_waited_for() {
            return None;
        }
        Some(insert(&mut bars))
    }

    /// The device is being closed: its driver must not be called any more. Waits for who changes
    /// the register. The second time it changes nothing.
    pub(super) fn closed(&self) {
        let claim = self.claim_in_any_case();
        let lost = {
            // Who zaps looks at `closed` under the barrier.
            let mut bars = self.barrier.lock();
            bars.close();
            let mut state = self.state.lock();
            state.closed = true;
            state.command.withdraw()
        };
        drop(claim);
        self.lost(lost);
    }

    /// The VM need not know of the device any more.
    fn lost(&self, lost: Option<Lost>) {
        if lost.is_some() {
            self.container.release(self.id);
            self.changed.notify();
        }
    }

    /// Takes the bit away, for good unless the device sleeps. A claim is held.
    fn clear(&self) {
        let awake = self.register.pci().is_awake();
        if let Err(e) = self.register.set_master(false) {
            if awake {
                kernel::pr_warn_once!("a device keeps its bus-master bit: {e:?}\n");
            }
        }
        if !awake {
            self.state.lock().asleep = true;
        }
    }

    /// What may have woken the device has happened: gives it the bit that it is to have.
    pub(super) fn look(&self) {
        if !self.state.lock().asleep {
            return;
        }
        let claim = self.claim_in_any_case();
        let masters = {
            let mut state = self.state.lock();
            if state.closed || !self.register.pci().is_awake() {
                return;
            }
            state.asleep = false;
            state.command.masters()
        };
        if self.register.set_master(masters).is_err() {
            kernel::pr_warn_once!("a device has not the bus-master bit that it should\n");
        }
        drop(claim);
    }
}

impl BusMaster for GatedDevice {
    fn id(&self) -> MasterId {
        self.id
    }

    fn name(&self, out: &mut Writer<'_>) -> Result {
        let name = self.register.pci().name().to_str().map_err(|_| EIO)?;
        out.write_str(name).map_err(|_| EIO)
    }

    fn grant(&self, need: Need) {
        let claim = self.claim_in_any_case();
        // It may have been taken back since the VM decided: by the guest, which may even have asked
        // again, or by a reset of the balloon that could not map all.
        let holds = self.container.vm_now();
        let holds = holds.is_some_and(|vm| vm.is_granted(self.id));
        let granted = {
            let mut state = self.state.lock();
            holds && !state.closed && state.command.grant(need)
        };
        if !granted {
            return;
        }
        let awake = self.register.pci().is_awake();
        let set = self.register.set_master(true);
        let mut lost = None;
        {
            let mut state = self.state.lock();
            if !awake {
                state.asleep = true;
            } else if set.is_err() {
                lost = state.command.withdraw();
            }
        }
        drop(claim);
        if lost.is_some() {
            kernel::pr_warn_once!("a device has not taken its bus-master bit\n");
            self.container.release(self.id);
        }
        self.changed.notify();
    }

    fn refuse(&self) {
        self.state.lock().refused = true;
        self.changed.notify();
    }

    fn withdraw(&self) {
        let claim = self.claim_in_any_case();
        let lost = {
            let mut state = self.state.lock();
            match state.command.masters() && !state.closed {
                true => state.command.withdraw(),
                false => None,
            }
        };
        match (lost, self.container.vm_now()) {
            (Some(_), _) => self.clear(),
            // It may be about to be told that it may.
            (None, Some(vm)) => vm.revoke(self.id),
            (None, None) => {}
        }
        drop(claim);
        self.lost(lost);
    }

    fn forget(&self) {
        let claim = self.claim_in_any_case();
        let lost = {
            let mut state = self.state.lock();
            match state.closed {
                true => None,
                false => state.command.forget(),
            }
        };
        if lost == Some(Lost::Mastership) {
            self.clear();
        }
        drop(claim);
        self.lost(lost);
    }

    fn hand_over(&self) {
        let _claim = self.claim_in_any_case();
        let (early, asked) = {
            let bars = self.barrier.lock();
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            let early = state.command.hand_over();
            let asked = state.command.is_asked();
            drop(state);
            if early {
                bars.zap();
            }
            (early, asked)
        };
        if early {
            self.clear();
        }
        if asked {
            if let Some(vm) = self.container.vm_now() {
                vm.ask_all(self.id);
            }
        }
    }

    fn pages_mapped(&self) {
        let bars = self.barrier.lock();
        if self.state.lock().is_waited_for() {
            bars.zap();
        }
    }
}
