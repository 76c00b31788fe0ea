// SPDX-License-Identifier: GPL-2.0-only

//! A growable array whose growth can fail.
//!
//! In a module it stands on `KVVec`, on the build machine on `std`'s `Vec`, where a test can make
//! the n-th allocation fail.

use core::ops::{
    Deref,
    DerefMut, //
};

#[cfg(MODULE)]
type Backing<T> = kernel::alloc::KVVec<T>;
#[cfg(not(MODULE))]
type Backing<T> = std::vec::Vec<T>;

/// An allocation failed, and the operation that needed it has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

/// A growable array.
///
/// In a module its memory is charged to the memory cgroup of the caller, because what it holds is
/// driven by the guest; the methods that return [`NoMemory`] may sleep, the others do not.
#[derive(Debug)]
pub(crate) struct Vector<T>(Backing<T>);

impl<T> Vector<T> {
    /// An empty array, without an allocation.
    pub(crate) const fn new() -> Self {
        Self(Backing::new())
    }

    /// Makes room, so that the next `additional` insertions cannot fail.
    pub(crate) fn try_reserve(&mut self, additional: usize) -> Result<(), NoMemory> {
        backing::reserve(&mut self.0, additional)
    }

    /// Appends `value`.
    pub(crate) fn try_push(&mut self, value: T) -> Result<(), NoMemory> {
        backing::push(&mut self.0, value)
    }

    /// Inserts `value` before the element at `index`, or appends it where there is none.
    pub(crate) fn try_insert(&mut self, index: usize, value: T) -> Result<(), NoMemory> {
        self.try_push(value)?;
        if let Some(tail) = self.0.get_mut(index..) {
            if !tail.is_empty() {
                tail.rotate_right(1);
            }
        }
        Ok(())
    }

    /// Takes out the element at `index`.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        self.0
            .get_mut(index..)
            .filter(|t| !t.is_empty())?
            .rotate_left(1);
        self.0.pop()
    }

    /// Removes the elements `first..end`, as far as they exist.
    pub(crate) fn remove_range(&mut self, first: usize, end: usize) {
        let left = self.0.len();
        let count = end.min(left).saturating_sub(first);
        let tail = self.0.get_mut(first..).unwrap_or_default();
        if count == 0 || count > tail.len() {
            return;
        }
        tail.rotate_left(count);
        self.0.truncate(left.saturating_sub(count));
    }

    /// Moves the elements from `at` on to the end of `to`.  Changes nothing if there is no room.
    pub(crate) fn move_tail(&mut self, at: usize, to: &mut Self) -> Result<(), NoMemory> {
        to.try_reserve(self.0.len().saturating_sub(at))?;
        let before = to.0.len();
        while self.0.len() > at {
            if let Some(value) = self.0.pop() {
                to.try_push(value)?;
            }
        }
        if let Some(moved) = to.0.get_mut(before..) {
            moved.reverse();
        }
        Ok(())
    }

    /// Takes out the last element.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Removes all elements and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> Deref for Vector<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Vector<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// What differs between the two: how memory is asked for.
#[cfg(MODULE)]
mod backing {
    use super::{
        Backing,
        NoMemory, //
    };
    use kernel::alloc::{
        flags::{
            GFP_KERNEL_ACCOUNT,
            __GFP_NOWARN, //
        },
        AllocError, //
    };

    impl From<AllocError> for NoMemory {
        fn from(_: AllocError) -> Self {
            Self
        }
    }

    pub(super) fn reserve<T>(v: &mut Backing<T>, additional: usize) -> Result<(), NoMemory> {
        Ok(v.reserve(additional, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?)
    }

    pub(super) fn push<T>(v: &mut Backing<T>, value: T) -> Result<(), NoMemory> {
        Ok(v.push(value, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?)
    }
}

/// On the build machine every growth is exact, so that a missing reservation shows at once.
#[cfg(not(MODULE))]
mod backing {
    use super::{
        Backing,
        NoMemory, //
    };

    pub(super) fn reserve<T>(v: &mut Backing<T>, additional: usize) -> Result<(), NoMemory> {
        if v.capacity().saturating_sub(v.len()) < additional {
            super::injection::allocate()?;
        }
        v.try_reserve_exact(additional).map_err(|_| NoMemory)
    }

    pub(super) fn push<T>(v: &mut Backing<T>, value: T) -> Result<(), NoMemory> {
        reserve(v, 1)?;
        v.push(value);
        Ok(())
    }
}

/// Failing allocations, on demand and per thread.
#[cfg(not(MODULE))]
pub(crate) mod injection {
    use super::NoMemory;
    use std::cell::Cell;

    std::thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets `successes` more allocations of this thread succeed and the one after them fail, once.
    pub(crate) fn fail_after(successes: u32) {
        LEFT.set(Some(successes));
    }

    /// Lets all allocations succeed again; true if none was made to fail since [`fail_after`].
    pub(crate) fn disarm() -> bool {
        LEFT.take().is_some()
    }

    pub(super) fn allocate() -> Result<(), NoMemory> {
        let left = LEFT.get();
        LEFT.set(left.and_then(|n| n.checked_sub(1)));
        match left {
            Some(0) => Err(NoMemory),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(n: u32) -> Vector<u32> {
        let mut v = Vector::new();
        for i in 0..n {
            v.try_push(i).unwrap();
        }
        v
    }

    #[test]
    fn insert_and_remove() {
        let mut v = vector(3);
        v.try_insert(1, 9).unwrap();
        assert_eq!(*v, [0, 9, 1, 2]);
        v.try_insert(99, 7).unwrap();
        assert_eq!(*v, [0, 9, 1, 2, 7]);
        assert_eq!(v.remove(0), Some(0));
        assert_eq!(v.remove(4), None);
        assert_eq!(v.remove(99), None);
        assert_eq!(*v, [9, 1, 2, 7]);
        assert_eq!(v.pop(), Some(7));
    }

    #[test]
    fn remove_range_is_clamped() {
        for (first, end, left) in [
            (0, 0, &[0, 1, 2, 3][..]),
            (1, 3, &[0, 3]),
            (2, 99, &[0, 1]),
            (0, 4, &[]),
            (3, 1, &[0, 1, 2, 3]),
            (9, 12, &[0, 1, 2, 3]),
        ] {
            let mut v = vector(4);
            v.remove_range(first, end);
            assert_eq!(*v, *left);
        }
    }

    #[test]
    fn move_tail() {
        let (mut v, mut to) = (vector(4), vector(1));
        v.move_tail(1, &mut to).unwrap();
        assert_eq!((&*v, &*to), (&[0][..], &[0, 1, 2, 3][..]));
        v.move_tail(9, &mut to).unwrap();
        injection::fail_after(0);
        assert_eq!(v.move_tail(0, &mut to), Err(NoMemory));
        assert_eq!((v.len(), to.len()), (1, 4));
    }

    #[test]
    fn failed_growth_changes_nothing() {
        let mut v = vector(2);
        injection::fail_after(0);
        assert_eq!(v.try_insert(0, 5), Err(NoMemory));
        assert!(!injection::disarm());
        assert_eq!(*v, [0, 1]);
        v.try_reserve(1).unwrap();
        injection::fail_after(0);
        v.try_insert(0, 5).unwrap();
        assert!(injection::disarm());
    }
}
