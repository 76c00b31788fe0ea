// SPDX-License-Identifier: GPL-2.0-only

//! Directories of attributes in sysfs.
//!
//! A [`Directory`] owns a kobject, the files in it and an [`Arc`] to the object
//! that they show. Dropping it removes the files, waits for callbacks that are
//! running, and only then lets the object go.
//!
//! No locks are taken here. kernfs calls `show` and `store` in process context,
//! holding an active reference to the file; they may sleep.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h),
//! [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

#![allow(dead_code, reason = "each module uses a part of it")]

use crate::{
    bindings,
    compat, //
};
use core::{
    marker::PhantomData,
    ops::RangeInclusive,
    ptr::NonNull,
    slice,
    str, //
};
use kernel::{
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// Text of one attribute on its way to user space: less than a page.
///
/// What does not fit is cut off, as `sysfs_emit()` does.
pub(crate) struct Writer<'a> {
    page: &'a mut [u8],
    len: usize,
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.page.iter_mut().skip(self.len);
        let mut copied = 0;
        for (to, from) in room.zip(text.bytes()) {
            *to = from;
            copied += 1;
        }
        self.len += copied;
        Ok(())
    }
}

/// What fills a file: writes the value and its newline.
pub(crate) type Show<T> = fn(&T, &mut Writer<'_>) -> Result;

/// What takes text that was written to a file; white space around it is gone.
pub(crate) type Store<T> = fn(&T, &str) -> Result;

/// One file of a [`Directory`], for a static table.
pub(crate) struct Attribute<T> {
    name: &'static CStr,
    mode: u16,
    show: Option<Show<T>>,
    store: Option<Store<T>>,
}

impl<T> Attribute<T> {
    /// A file that everybody may read.
    pub(crate) const fn ro(name: &'static CStr, show: Show<T>) -> Self {
        Self {
            name,
            mode: 0o444,
            show: Some(show),
            store: None,
        }
    }

    /// A file that everybody may read and root may write.
    pub(crate) const fn rw(name: &'static CStr, show: Show<T>, store: Store<T>) -> Self {
        Self {
            name,
            mode: 0o644,
            show: Some(show),
            store: Some(store),
        }
    }

    /// A file that root may write and nobody can read.
    pub(crate) const fn wo(name: &'static CStr, store: Store<T>) -> Self {
        Self {
            name,
            mode: 0o200,
            show: None,
            store: Some(store),
        }
    }

    /// The file's name.
    pub(crate) const fn name(&self) -> &'static CStr {
        self.name
    }

    /// What a write of `text` to the file does; `EIO` if it cannot be written.
    pub(crate) fn set(&self, object: &T, text: &str) -> Result {
        self.store.ok_or(EIO)?(object, text.trim())
    }

    /// Replaces the permission bits.
    pub(crate) const fn mode(mut self, mode: u16) -> Self {
        self.mode = mode & 0o777;
        self
    }
}

/// The kobject under which a [`Directory`] is created.
#[derive(Clone, Copy)]
pub(crate) struct Parent<'a>(
    NonNull<bindings::kobject>,
    PhantomData<&'a bindings::kobject>,
);

impl<'a> Parent<'a> {
    /// `/sys/kernel`.
    pub(crate) fn kernel() -> Result<Self> {
        // SAFETY: `kernel_kobj` is set once, at boot, before any module runs.
        let kobj = unsafe { bindings::kernel_kobj };
        Ok(Self(NonNull::new(kobj).ok_or(ENODEV)?, PhantomData))
    }

    /// Another directory.
    ///
    /// If it goes away first, the files below it go with it, and dropping the
    /// child is still sound: a kobject holds its parent and its kernfs node.
    pub(crate) fn directory<T>(directory: &'a Directory<T>) -> Self {
        Self(directory.kobj, PhantomData)
    }

    /// Any kobject, such as a device's.
    ///
    /// # Safety
    ///
    /// `kobj` must be null or point to a kobject that stays in sysfs for `'a`.
    pub(crate) unsafe fn from_raw(kobj: *mut bindings::kobject) -> Result<Self> {
        Ok(Self(NonNull::new(kobj).ok_or(ENODEV)?, PhantomData))
    }
}

/// What the kernel gets a pointer to: the C attribute and what its callbacks need.
#[repr(C)]
struct File<T: 'static> {
    // First, so that a pointer to it is a pointer to the whole.
    attr: bindings::kobj_attribute,
    attribute: &'static Attribute<T>,
    object: *const T,
}

impl<T: 'static> File<T> {
    fn new(attribute: &'static Attribute<T>, object: *const T) -> Self {
        let mut attr = bindings::kobj_attribute::default();
        attr.attr.name = attribute.name.as_char_ptr();
        attr.attr.mode = attribute.mode;
        #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
        {
            // What sysfs_attr_init() does: the attribute is on the heap, its class is not. Only
            // the address counts, of as many bytes as there are subclasses, so each row of a
            // static table is a class of its own.
            const _: () =
                assert!(size_of::<Attribute<()>>() >= size_of::<bindings::lock_class_key>());
            attr.attr.key = core::ptr::from_ref(attribute).cast_mut().cast();
        }
        compat::set_callbacks(
            &mut attr,
            attribute.show.map(|_| Self::show as compat::Show),
            attribute.store.map(|_| Self::store as compat::Store),
        );
        Self {
            attr,
            attribute,
            object,
        }
    }

    /// # Safety
    ///
    /// Called by kernfs alone, for an attribute in a `File<T>` of a live
    /// [`Directory`]; `buf` is a page.
    unsafe extern "C" fn show(
        _kobj: *mut bindings::kobject,
        attr: *mut bindings::kobj_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: `attr` is the first field of a `File<T>` with C layout. The
        // directory keeps it and the object until kernfs has drained callbacks.
        let (file, object) = unsafe {
            let file = &*attr.cast::<Self>();
            (file, &*file.object)
        };
        // One byte less than the page: sysfs takes a full one for an overflow.
        // SAFETY: sysfs_kf_seq_show() passes a zeroed page of its own.
        let page = unsafe { slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE - 1) };
        let mut writer = Writer { page, len: 0 };
        match file.attribute.show.ok_or(EIO) {
            Ok(show) => match show(object, &mut writer) {
                Ok(()) => writer.len as isize,
                Err(error) => error.to_errno() as isize,
            },
            Err(error) => error.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by kernfs alone, for an attribute in a `File<T>` of a live
    /// [`Directory`]; `buf` holds `count` bytes.
    unsafe extern "C" fn store(
        _kobj: *mut bindings::kobject,
        attr: *mut bindings::kobj_attribute,
        buf: *const c_char,
        count: usize,
    ) -> isize {
        // SAFETY: as in `show`.
        let (file, object) = unsafe {
            let file = &*attr.cast::<Self>();
            (file, &*file.object)
        };
        // SAFETY: kernfs_fop_write_iter() has copied `count` bytes into `buf`.
        let bytes = unsafe { slice::from_raw_parts(buf.cast::<u8>(), count) };
        let stored = str::from_utf8(bytes)
            .map_err(|_| EINVAL)
            .and_then(|text| file.attribute.set(object, text));
        match stored {
            Ok(()) => count as isize,
            Err(error) => error.to_errno() as isize,
        }
    }
}

/// A sysfs directory whose files show, and change, a `T`.
///
/// It must not be dropped from within one of its own callbacks (kernfs would
/// wait for itself), nor be owned by the object it shows (neither would go).
///
/// # Invariants
///
/// `kobj` is a kobject in sysfs of which we hold the reference that created it.
/// Every file that sysfs knows in it is an element of `files`, whose buffer does
/// not move and whose `object` points to what `_object` keeps alive.
pub(crate) struct Directory<T: 'static> {
    kobj: NonNull<bindings::kobject>,
    // `Drop` takes the directory out of sysfs before either of these goes.
    files: KVec<File<T>>,
    _object: Arc<T>,
}

// SAFETY: All but `_object` is used by its constructor and `drop` alone, and sysfs
// is free to call back in any thread: so `T` must be usable from all of them.
unsafe impl<T: Send + Sync> Send for Directory<T> {}
// SAFETY: `&Directory` gives access to `kobj` as a parent only, which sysfs locks.
unsafe impl<T: Send + Sync> Sync for Directory<T> {}

impl<T: Send + Sync> Directory<T> {
    /// Creates `name` under `parent` with a file for each of `attributes`.
    ///
    /// May sleep. Fails with `ENOMEM` where C says no more than null (a name that
    /// is taken is one cause) and with what `sysfs_create_file()` gives.
    pub(crate) fn new(
        parent: Parent<'_>,
        name: &CStr,
        object: Arc<T>,
        attributes: &'static [Attribute<T>],
    ) -> Result<Self> {
        let mut files = KVec::with_capacity(attributes.len(), GFP_KERNEL)?;
        for attribute in attributes {
            files.push(File::new(attribute, Arc::as_ptr(&object)), GFP_KERNEL)?;
        }
        // SAFETY: `name` is copied; `parent` is in sysfs, see `Parent`.
        let kobj =
            unsafe { bindings::kobject_create_and_add(name.as_char_ptr(), parent.0.as_ptr()) };
        // INVARIANT: just created, and no file is in it.
        let directory = Self {
            kobj: NonNull::new(kobj).ok_or(ENOMEM)?,
            files,
            _object: object,
        };
        for file in &directory.files {
            // SAFETY: The kobject is ours and in sysfs; `file` stays where it is
            // until the directory has been dropped, which removes it from sysfs.
            kernel::error::to_result(unsafe {
                bindings::sysfs_create_file_ns(
                    directory.kobj.as_ptr(),
                    &file.attr.attr,
                    core::ptr::null_mut(),
                )
            })?;
        }
        Ok(directory)
    }
}

impl<T> Drop for Directory<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariants the reference is ours. kobject_del() takes the
        // directory and its files out of sysfs and waits for their callbacks, even
        // when a child still refers to the kobject; nothing reads `files` after it.
        unsafe {
            bindings::kobject_del(self.kobj.as_ptr());
            bindings::kobject_put(self.kobj.as_ptr());
        }
    }
}

/// Reads a decimal number within `range`; anything else is `EINVAL`.
pub(crate) fn parse_u64(text: &str, range: RangeInclusive<u64>) -> Result<u64> {
    let value = text.parse().map_err(|_| EINVAL)?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(EINVAL)
    }
}

/// Reads a truth value as `kstrtobool()` does (`1`, `0`, `y`, `n`, `on`, `off`, …).
pub(crate) fn parse_bool(text: &str) -> Result<bool> {
    kernel::str::kstrtobool_bytes(text.as_bytes())
}
