// SPDX-License-Identifier: GPL-2.0-only

//! A copy of what a VMM writes.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::wrap::user::{
    self,
    UserPage, //
};

/// What a VMM writes over `PCI_COMMAND`: a copy, so that it stays what it was looked at.
pub(super) struct Bytes {
    page: UserPage,
    len: usize,
    /// Which of them is the low byte of the register.
    command: usize,
}

impl Bytes {
    /// Copies `len` bytes from the user address `from`; more than there are in a page, and in any
    /// config space, are left out. Errors: `EFAULT`, and those of [`UserPage::new`].
    pub(super) fn copy(from: usize, len: usize, command: usize) -> Result<Self> {
        let len = len.min(PAGE_SIZE);
        let page = UserPage::new()?;
        let mut bytes = KVec::from_elem(0u8, len, GFP_KERNEL)?;
        user::read(from, &mut bytes)?;
        page.write(&bytes)?;
        Ok(Self { page, len, command })
    }

    /// Where the copy is in user memory, and how long it is.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.page.addr(), self.len)
    }

    /// What is written to the low byte of the register.
    pub(super) fn command(&self) -> Result<u8> {
        let mut byte = [0];
        user::read(self.page.addr() + self.command, &mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    /// Has another value written there.
    pub(super) fn set_command(&mut self, byte: u8) -> Result {
        user::write(self.page.addr() + self.command, &[byte])
    }
}
