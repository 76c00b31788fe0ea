/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * virtio-balloon with VIRTIO_BALLOON_F_DEFERRED: the wire protocol.
 *
 * The one source of truth: bindgen makes the Rust types of both modules from
 * it.  Documentation/protocol.rst is the prose.
 */
#ifndef _UAPI_LINUX_VIRTIO_BALLOON_DEFERRED_H
#define _UAPI_LINUX_VIRTIO_BALLOON_DEFERRED_H

#include <linux/types.h>
#include <linux/virtio_types.h>

/*
 * Device-specific feature bit (0 to 23 are the device type's own, virtio 1.2
 * section 2.2; the standard balloon uses 0 to 5 and grows upwards).  With it,
 * the inflate queue (0) and the deflate queue (1) carry the messages below
 * instead of arrays of 32-bit PFNs.
 */
#define VIRTIO_BALLOON_F_DEFERRED	23

/* Every range is aligned to, and a multiple of, this many bytes. */
#define VIRTIO_BALLOON_DEFERRED_GRANULE	(2 * 1024 * 1024)

/* A message is one header and this many ranges at most: one 4 KiB page. */
#define VIRTIO_BALLOON_DEFERRED_MAX_RANGES	255

/* Message types: inflate queue. */
#define VIRTIO_BALLOON_DEFERRED_INFLATE	1 /* the driver gave up these ranges */
#define VIRTIO_BALLOON_DEFERRED_COMMIT	2 /* no more inflate; map all the rest */
/* Message types: deflate queue. */
#define VIRTIO_BALLOON_DEFERRED_DEFLATE	3 /* the driver wants these ranges back */

/* Flags of a DEFLATE message. */
#define VIRTIO_BALLOON_DEFERRED_URGENT	0x1 /* the guest is short of memory */

/* Answers. */
#define VIRTIO_BALLOON_DEFERRED_OK	0
#define VIRTIO_BALLOON_DEFERRED_INVALID	1 /* malformed */
#define VIRTIO_BALLOON_DEFERRED_NOMAP	2 /* the host could not map a range */

/*
 * As num_pages: the device needs a reset.  Not every VMM shows the driver its
 * DEVICE_NEEDS_RESET; all show it the configuration.
 */
#define VIRTIO_BALLOON_DEFERRED_NEEDS_RESET	0xffffffff

/*
 * The device configuration: that of the traditional balloon, whose last two
 * fields belong to features that exclude this one, and one field more.
 */
struct virtio_balloon_deferred_config {
	__le32 num_pages;	/* size that the device wants, in pages of 4 KiB */
	__le32 actual;		/* size that the driver has reached */
	__le32 unused[2];
	__le32 lowest_mib;	/* memory below is mapped: no use giving it up */
};

/* The device-readable part begins with this header. */
struct virtio_balloon_deferred_hdr {
	__le32 type;
	__le32 flags;
	__le32 count;		/* ranges that follow; 0 for COMMIT */
	__le32 reserved;	/* 0 */
};

/* Guest-physical addresses, in bytes. */
struct virtio_balloon_deferred_range {
	__le64 start;
	__le64 len;
};

/* The device-writable part. */
struct virtio_balloon_deferred_reply {
	__le32 status;
	__le32 done;		/* leading ranges that were carried out */
};

#endif /* _UAPI_LINUX_VIRTIO_BALLOON_DEFERRED_H */
