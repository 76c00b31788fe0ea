// SPDX-License-Identifier: GPL-2.0-only

//! Build-time proof that `logic::protocol` says what `virtio_balloon_deferred.h` says.

use crate::{
    bindings,
    logic::protocol, //
};

macro_rules! same {
    ($($ours:ident = $theirs:ident,)*) => {
        $(const _: () = assert!(protocol::$ours as u64 == bindings::$theirs as u64);)*
    };
}

same! {
    FEATURE_BIT = VIRTIO_BALLOON_F_DEFERRED,
    MAX_RANGES = VIRTIO_BALLOON_DEFERRED_MAX_RANGES,
    TYPE_INFLATE = VIRTIO_BALLOON_DEFERRED_INFLATE,
    TYPE_COMMIT = VIRTIO_BALLOON_DEFERRED_COMMIT,
    TYPE_DEFLATE = VIRTIO_BALLOON_DEFERRED_DEFLATE,
    FLAG_URGENT = VIRTIO_BALLOON_DEFERRED_URGENT,
    STATUS_OK = VIRTIO_BALLOON_DEFERRED_OK,
    STATUS_INVALID = VIRTIO_BALLOON_DEFERRED_INVALID,
    STATUS_NOMAP = VIRTIO_BALLOON_DEFERRED_NOMAP,
}

macro_rules! same_size {
    ($($ours:ident = $theirs:ident,)*) => {
        $(const _: () = assert!(protocol::$ours == size_of::<bindings::$theirs>());)*
    };
}

same_size! {
    HEADER_LEN = virtio_balloon_deferred_hdr,
    RANGE_LEN = virtio_balloon_deferred_range,
    REPLY_LEN = virtio_balloon_deferred_reply,
}

const _: () =
    assert!(protocol::GRANULE.bytes() == bindings::VIRTIO_BALLOON_DEFERRED_GRANULE as u64);
