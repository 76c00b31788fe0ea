// SPDX-License-Identifier: GPL-2.0-only
/* Requests and addresses, in order or not; see main.c. */

#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/sizes.h>

#include <linux/virtio_balloon_deferred.h>

#include "hostile.h"

/* Addresses for the device to write to: never memory of this kernel. */
u64 no_memory(struct hostile *h)
{
	switch (below(h, 6)) {
	case 0:
		return h->ram_end + below(h, SZ_1G);
	case 1:
		/* Interrupts of the processor. */
		return 0xfee00000 + below(h, SZ_4K);
	case 2:
		/* Another device's registers, which VFIO may have mapped. */
		return h->other_bar ? h->other_bar + below(h, SZ_4K) : 0xfed00000;
	case 3:
		return U64_MAX - below(h, 64);
	case 4:
		return random64(h) | BIT_ULL(below(h, 16) + 48);
	default:
		return max(h->ram_end, SZ_4G) + below(h, 1 << 20) * SZ_2M;
	}
}

u64 arena_address(struct hostile *h)
{
	return h->arena_pa + below(h, ARENA - SZ_4K);
}

/* Addresses to read from: all there are, those at the edges above all. */
u64 any_address(struct hostile *h)
{
	switch (below(h, 4)) {
	case 0:
		return h->ram_end - below(h, 64);
	case 1:
		return arena_address(h);
	case 2:
		return below(h, SZ_2M);
	default:
		return no_memory(h);
	}
}

static void random_range(struct hostile *h, bool deflate,
			 struct virtio_balloon_deferred_range *range)
{
	u64 granules = div_u64(h->ram_end, GRANULE);
	u64 within = granules;
	u64 start, len = GRANULE;

	if (deflate && !h->late)
		within = max(div_u64(granules * h->done, h->cases), 1);
	start = (u64)below(h, within) * GRANULE;
	switch (below(h, 40)) {
	case 0 ... 15:
		break;
	case 16 ... 23:
		len *= 1 + below(h, deflate ? 3 : 32);
		break;
	case 24 ... 25:
		len *= 1 + below(h, deflate && !h->late ? 4 : granules);
		break;
	case 26:
		len = 0;
		break;
	case 27:
		start += 1 + below(h, GRANULE - 1);
		break;
	case 28:
		len += below(h, 2) ? SZ_4K : 1;
		break;
	case 29:
		len = 1 + below(h, GRANULE - 1);
		break;
	case 30:
		start = -GRANULE;
		len = GRANULE;
		break;
	case 31:
		len = -GRANULE;
		start = below(h, 2) ? start + 2 * GRANULE : 0;
		/* Sound if it starts at 0, and then it is all there is. */
		if (deflate && !h->late)
			start += 2 * GRANULE;
		break;
	case 32 ... 33:
		/* Where there is no memory. */
		start = h->ram_end + (u64)below(h, 1 << 20) * GRANULE;
		len *= 1 + below(h, 1 << 20);
		break;
	case 34:
		/* Across the end. */
		start = (granules - 1) * GRANULE;
		len *= 2 + below(h, 1 << 10);
		break;
	case 35 ... 37:
		start = h->last_start;
		len = h->last_len;
		break;
	case 38:
		start = random64(h);
		len = random64(h);
		break;
	default:
		start = random64(h) & -GRANULE;
		len = GRANULE;
	}
	h->last_start = start;
	h->last_len = len;
	range->start = cpu_to_le64(start);
	range->len = cpu_to_le64(len);
}

/* What protocol.rst says of a request that came through queue @index whole. */
bool is_sound(const u8 *message, u32 len, unsigned int index)
{
	const struct virtio_balloon_deferred_hdr *hdr = (void *)message;
	const struct virtio_balloon_deferred_range *ranges = (void *)(hdr + 1);
	u32 type, count, flags = 0, i;

	if (len < sizeof(*hdr))
		return false;
	type = le32_to_cpu(hdr->type);
	count = le32_to_cpu(hdr->count);
	if (index == DEFLATE_QUEUE) {
		if (type != VIRTIO_BALLOON_DEFERRED_DEFLATE)
			return false;
		flags = VIRTIO_BALLOON_DEFERRED_URGENT;
	} else if (type != VIRTIO_BALLOON_DEFERRED_INFLATE &&
		   (type != VIRTIO_BALLOON_DEFERRED_COMMIT || count)) {
		return false;
	}
	if (count > VIRTIO_BALLOON_DEFERRED_MAX_RANGES || hdr->reserved ||
	    (le32_to_cpu(hdr->flags) & ~flags) ||
	    len != sizeof(*hdr) + count * sizeof(*ranges))
		return false;
	for (i = 0; i < count; i++) {
		u64 start = le64_to_cpu(ranges[i].start);
		u64 bytes = le64_to_cpu(ranges[i].len);

		if (!bytes || (start | bytes) % GRANULE || start + bytes < start)
			return false;
	}
	return true;
}

/* Makes up a request, in order or not; returns how long it is. */
u32 random_message(struct hostile *h, unsigned int index, u8 *message)
{
	struct virtio_balloon_deferred_hdr *hdr = (void *)message;
	struct virtio_balloon_deferred_range *ranges = (void *)(hdr + 1);
	u32 count = one_in(h, 16) ? below(h, 256) : 1 + below(h, 4);
	u32 type = VIRTIO_BALLOON_DEFERRED_INFLATE, i;
	u32 len;

	if (index == DEFLATE_QUEUE) {
		type = VIRTIO_BALLOON_DEFERRED_DEFLATE;
		if (!h->late)
			count = 1 + below(h, 2);
	}
	len = sizeof(*hdr) + count * sizeof(*ranges);
	for (i = 0; i < count; i++)
		random_range(h, index == DEFLATE_QUEUE, &ranges[i]);
	/* Most have all ranges sound, or few requests would be. */
	if (!one_in(h, 4)) {
		for (i = 0; i < count; i++)
			while (!le64_to_cpu(ranges[i].len) ||
			       (le64_to_cpu(ranges[i].start) |
				le64_to_cpu(ranges[i].len)) % GRANULE ||
			       le64_to_cpu(ranges[i].start) +
			       le64_to_cpu(ranges[i].len) < le64_to_cpu(ranges[i].len))
				random_range(h, index == DEFLATE_QUEUE, &ranges[i]);
	}
	hdr->flags = 0;
	if (index == DEFLATE_QUEUE && one_in(h, 4))
		hdr->flags = cpu_to_le32(VIRTIO_BALLOON_DEFERRED_URGENT);
	hdr->reserved = 0;
	switch (below(h, 24)) {
	case 0:
		type = below(h, 5);
		/* A commit has its own kind of case. */
		if (type == VIRTIO_BALLOON_DEFERRED_COMMIT && !h->late)
			type = 0;
		break;
	case 1:
		type = random32(h) | 8;
		break;
	case 2:
		hdr->flags = cpu_to_le32(random32(h));
		break;
	case 3:
		hdr->reserved = cpu_to_le32(random32(h));
		break;
	case 4:
		count += below(h, 3) - 1;
		break;
	case 5:
		count = one_in(h, 2) ? 256 : random32(h);
		break;
	case 6:
		len = below(h, len);
		break;
	case 7:
		len += 1 + below(h, 2 * SZ_4K - len - 1);
		break;
	}
	hdr->type = cpu_to_le32(type);
	hdr->count = cpu_to_le32(count);
	return len;
}
