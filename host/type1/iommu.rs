// SPDX-License-Identifier: GPL-2.0-only

//! type1's side of a container: what the mapping threads use of it.
//!
//! No locks are taken here but type1's own.

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

use crate::{
    logic::{
        range::Range,
        table::Chunk, //
    },
    type1::info::Info,
    type1::uapi::{
        DmaMap,
        DmaUnmap, //
    },
    type1::{
        self,
        Inner, //
    },
    wrap::user::UserPage, //
};

static NEXT_ID: Atomic<u64> = Atomic::new(0);

/// Tells containers apart; never used again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContainerId(u64);

impl ContainerId {
    /// The number itself; they rise from 0.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// A container of type1 with a name.
pub(crate) struct Iommu {
    id: ContainerId,
    inner: Inner,
}

impl Iommu {
    /// Names a container. Errors: `ENOMEM`.
    pub(crate) fn new(inner: Inner) -> Result<Arc<Self>> {
        let id = ContainerId(NEXT_ID.fetch_add(1, Relaxed));
        Ok(Arc::new(Self { id, inner }, GFP_KERNEL)?)
    }

    /// Tells it from all others.
    pub(crate) fn id(&self) -> ContainerId {
        self.id
    }

    /// type1's container.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// What type1 says of itself. Context: an ioctl of the VMM.
    pub(crate) fn info(&self) -> Result<Option<Info>> {
        let page = UserPage::new()?;
        page.write(&Info::request(PAGE_SIZE as u32))?;
        if self.inner.ioctl(type1::GET_INFO, page.addr()) != 0 {
            return Ok(None);
        }
        let mut bytes = KVec::from_elem(0u8, PAGE_SIZE, GFP_KERNEL)?;
        page.read(&mut bytes)?;
        Info::parse(&bytes).map_err(|_| ENOMEM)
    }

    /// Unmaps all pieces inside `range`. Context: an ioctl of the VMM.
    pub(crate) fn unmap(&self, range: Range) -> Result {
        let page = UserPage::new()?;
        page.write(&DmaUnmap::bytes(range, 0))?;
        match self.inner.ioctl(type1::UNMAP_DMA, page.addr()) {
            0 => Ok(()),
            ret => Err(Error::from_errno(ret as i32)),
        }
    }

    /// Takes their addresses from all pieces inside `range`, each of which has one.
    ///
    /// Errors are type1's. Context: an ioctl of the VMM.
    pub(crate) fn invalidate(&self, range: Range) -> Result {
        let page = UserPage::new()?;
        page.write(&DmaUnmap::bytes(range, DmaUnmap::VADDR))?;
        match self.inner.ioctl(type1::UNMAP_DMA, page.addr()) {
            0 => Ok(()),
            ret => Err(Error::from_errno(ret as i32)),
        }
    }

    /// Maps a piece of a deferred map.
    ///
    /// Errors are type1's. Context: a thread of the VM's process, no locks held.
    pub(crate) fn map_chunk(&self, chunk: &Chunk) -> Result {
        let page = UserPage::new()?;
        let map = DmaMap {
            argsz: DmaMap::SIZE as u32,
            flags: DmaMap::READ_WRITE,
            vaddr: chunk.vaddr(),
            iova: chunk.range().start(),
            size: chunk.range().len(),
        };
        page.write(&map.bytes())?;
        match self.inner.ioctl(type1::MAP_DMA, page.addr()) {
            0 => Ok(()),
            ret => Err(Error::from_errno(ret as i32)),
        }
    }
}
