// SPDX-License-Identifier: GPL-2.0-only
/*
 * A balloon driver that stops half way: it negotiates the feature, says that it
 * is ready, gives up `mib` MiB in 2 MiB blocks (0: nothing), and never commits.
 *
 * parameters, /sys/module/half_balloon/parameters/:
 *   mib    at insmod: how much to give up
 *   last   read-only: address of the last block that was given up
 */

#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include <linux/virtio_balloon_deferred.h>

#define ORDER		9
#define ANSWER_LIMIT	(30 * HZ)

static unsigned int mib;
module_param(mib, uint, 0444);
static ullong last;
module_param(last, ullong, 0444);

struct message {
	struct virtio_balloon_deferred_hdr hdr;
	struct virtio_balloon_deferred_range range;
	struct virtio_balloon_deferred_reply reply;
};

struct half {
	struct virtqueue *vqs[2];
	struct completion answered;
	struct list_head pages;
	struct message message;
};

static void half_answered(struct virtqueue *vq)
{
	struct half *half = vq->vdev->priv;

	complete(&half->answered);
}

/* Gives up one block. */
static int half_inflate(struct half *half)
{
	struct message *message = &half->message;
	struct scatterlist request, reply, *sgs[] = { &request, &reply };
	struct page *page;
	unsigned int i, len;
	int err;

	page = alloc_pages(GFP_KERNEL | __GFP_NORETRY, ORDER);
	if (!page)
		return -ENOMEM;
	/* As edu_dma knows what is in a balloon by. */
	for (i = 0; i < 1 << ORDER; i++)
		__SetPageOffline(page + i);
	list_add(&page->lru, &half->pages);
	last = page_to_phys(page);

	message->hdr.type = cpu_to_le32(VIRTIO_BALLOON_DEFERRED_INFLATE);
	message->hdr.count = cpu_to_le32(1);
	message->range.start = cpu_to_le64(page_to_phys(page));
	message->range.len = cpu_to_le64(PAGE_SIZE << ORDER);
	sg_init_one(&request, message, offsetof(struct message, reply));
	sg_init_one(&reply, &message->reply, sizeof(message->reply));
	err = virtqueue_add_sgs(half->vqs[0], sgs, 1, 1, message, GFP_KERNEL);
	if (err)
		return err;
	virtqueue_kick(half->vqs[0]);
	if (!wait_for_completion_timeout(&half->answered, ANSWER_LIMIT))
		return -ETIMEDOUT;
	if (!virtqueue_get_buf(half->vqs[0], &len))
		return -EIO;
	return message->reply.status == cpu_to_le32(VIRTIO_BALLOON_DEFERRED_OK) ?
	       0 : -EPROTO;
}

static void half_remove(struct virtio_device *vdev)
{
	struct half *half = vdev->priv;
	struct page *page, *next;
	unsigned int i;

	/* The host has mapped what it has to when this comes back. */
	virtio_reset_device(vdev);
	vdev->config->del_vqs(vdev);
	list_for_each_entry_safe(page, next, &half->pages, lru) {
		for (i = 0; i < 1 << ORDER; i++)
			__ClearPageOffline(page + i);
		__free_pages(page, ORDER);
	}
	kfree(half);
}

static int half_probe(struct virtio_device *vdev)
{
	struct virtqueue_info info[] = {
		{ "inflate", half_answered }, { "deflate", half_answered },
	};
	struct half *half = kzalloc(sizeof(*half), GFP_KERNEL);
	unsigned int blocks = mib / 2;
	int err;

	if (!half)
		return -ENOMEM;
	INIT_LIST_HEAD(&half->pages);
	init_completion(&half->answered);
	vdev->priv = half;
	err = virtio_find_vqs(vdev, ARRAY_SIZE(half->vqs), half->vqs, info, NULL);
	if (err) {
		kfree(half);
		return err;
	}
	virtio_device_ready(vdev);
	while (!err && blocks--)
		err = half_inflate(half);
	if (err)
		half_remove(vdev);
	return err;
}

static const struct virtio_device_id half_ids[] = {
	{ VIRTIO_ID_BALLOON, VIRTIO_DEV_ANY_ID },
	{ }
};

static const unsigned int half_features[] = { VIRTIO_BALLOON_F_DEFERRED };

static struct virtio_driver half_driver = {
	.driver.name = KBUILD_MODNAME,
	.id_table = half_ids,
	.feature_table = half_features,
	.feature_table_size = ARRAY_SIZE(half_features),
	.probe = half_probe,
	.remove = half_remove,
};
module_virtio_driver(half_driver);

MODULE_DESCRIPTION("A balloon driver that stops half way, for tests");
MODULE_LICENSE("GPL");
