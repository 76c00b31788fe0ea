// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VFIO device without an IOMMU, as a vGPU is: /sys/devices/faux/emulated.
 *
 * Its driver pins the pages that the device reaches and lets go of them when it is
 * told of an unmap.  As in i915's GVT-g, one lock is held while it pins, and an unmap
 * waits for it.
 *
 * read(), write()    DMA, by the CPU; the file's offset is the IOVA
 * EMULATED_PIN       pins a page of IOVA, given by its number
 * EMULATED_PIN_LATE  the same, but with the lock held an unmap is waited for first:
 *                    ETIMEDOUT if none comes in TIMEOUT_MS
 *
 * parameter, /sys/module/emulated/parameters/:
 *   waiting  read-only: 1 while such a pin waits
 */

#include <linux/completion.h>
#include <linux/device/faux.h>
#include <linux/err.h>
#include <linux/iommu.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>
#include <linux/workqueue.h>

#define EMULATED_PIN		_IO('e', 1)
#define EMULATED_PIN_LATE	_IO('e', 2)
#define TIMEOUT_MS		60000
#define MAX_PINS		16

static int waiting;
module_param(waiting, int, 0444);

struct emulated {
	/* First, as vfio_alloc_device() demands. */
	struct vfio_device vdev;
	/* Protects pins and count; held while a page is pinned. */
	struct mutex lock;
	struct completion told;
	/* Pages that are pinned, by IOVA. */
	dma_addr_t pins[MAX_PINS];
	unsigned int count;
	/* What is being unmapped. */
	struct work_struct unpin;
	u64 iova, length;
	struct completion unpinned;
};

static struct emulated *to_emulated(struct vfio_device *vdev)
{
	return container_of(vdev, struct emulated, vdev);
}

/* Lets go of what is pinned from an IOVA on. */
static void emulated_unpin(struct emulated *emulated, u64 iova, u64 length)
{
	unsigned int i, kept = 0;

	for (i = 0; i < emulated->count; i++) {
		dma_addr_t pin = emulated->pins[i];

		if (pin - iova < length)
			vfio_unpin_pages(&emulated->vdev, pin, 1);
		else
			emulated->pins[kept++] = pin;
	}
	emulated->count = kept;
}

static void emulated_unpin_work(struct work_struct *work)
{
	struct emulated *emulated = container_of(work, struct emulated, unpin);

	mutex_lock(&emulated->lock);
	emulated_unpin(emulated, emulated->iova, emulated->length);
	mutex_unlock(&emulated->lock);
	complete(&emulated->unpinned);
}

/* By a work: type1 calls with the second of two locks that it takes at a registration,
 * and unpinning takes the first, which lockdep would report.
 */
static void emulated_dma_unmap(struct vfio_device *vdev, u64 iova, u64 length)
{
	struct emulated *emulated = to_emulated(vdev);

	complete_all(&emulated->told);
	emulated->iova = iova;
	emulated->length = length;
	reinit_completion(&emulated->unpinned);
	schedule_work(&emulated->unpin);
	wait_for_completion(&emulated->unpinned);
}

static int emulated_init_device(struct vfio_device *vdev)
{
	struct emulated *emulated = to_emulated(vdev);

	mutex_init(&emulated->lock);
	init_completion(&emulated->told);
	init_completion(&emulated->unpinned);
	INIT_WORK(&emulated->unpin, emulated_unpin_work);
	return 0;
}

static int emulated_open(struct vfio_device *vdev)
{
	reinit_completion(&to_emulated(vdev)->told);
	return 0;
}

static void emulated_close(struct vfio_device *vdev)
{
	struct emulated *emulated = to_emulated(vdev);

	mutex_lock(&emulated->lock);
	emulated_unpin(emulated, 0, U64_MAX);
	mutex_unlock(&emulated->lock);
}

static int emulated_wait(struct emulated *emulated)
{
	unsigned long left;

	WRITE_ONCE(waiting, 1);
	left = wait_for_completion_timeout(&emulated->told, msecs_to_jiffies(TIMEOUT_MS));
	WRITE_ONCE(waiting, 0);
	return left ? 0 : -ETIMEDOUT;
}

static int emulated_pin(struct emulated *emulated, dma_addr_t iova)
{
	struct page *page;
	int ret;

	if (emulated->count == MAX_PINS)
		return -ENOSPC;
	ret = vfio_pin_pages(&emulated->vdev, iova, 1, IOMMU_READ | IOMMU_WRITE, &page);
	if (ret < 0)
		return ret;
	emulated->pins[emulated->count++] = iova;
	return 0;
}

static long emulated_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct emulated *emulated = to_emulated(vdev);
	int ret = 0;

	if (cmd != EMULATED_PIN && cmd != EMULATED_PIN_LATE)
		return -ENOTTY;
	mutex_lock(&emulated->lock);
	if (cmd == EMULATED_PIN_LATE)
		ret = emulated_wait(emulated);
	if (!ret)
		ret = emulated_pin(emulated, (dma_addr_t)arg << PAGE_SHIFT);
	mutex_unlock(&emulated->lock);
	return ret;
}

static ssize_t emulated_dma(struct vfio_device *vdev, char __user *buf, size_t count,
			    loff_t iova, bool write)
{
	void *data __free(kvfree) = kvzalloc(count, GFP_KERNEL);
	int ret;

	if (!data)
		return -ENOMEM;
	if (write && copy_from_user(data, buf, count))
		return -EFAULT;
	ret = vfio_dma_rw(vdev, iova, data, count, write);
	if (ret)
		return ret;
	if (!write && copy_to_user(buf, data, count))
		return -EFAULT;
	return count;
}

static ssize_t emulated_read(struct vfio_device *vdev, char __user *buf, size_t count,
			     loff_t *pos)
{
	return emulated_dma(vdev, buf, count, *pos, false);
}

static ssize_t emulated_write(struct vfio_device *vdev, const char __user *buf, size_t count,
			      loff_t *pos)
{
	return emulated_dma(vdev, (char __user *)buf, count, *pos, true);
}

static const struct vfio_device_ops emulated_ops = {
	.name		= "emulated",
	.bind_iommufd	= vfio_iommufd_emulated_bind,
	.unbind_iommufd	= vfio_iommufd_emulated_unbind,
	.attach_ioas	= vfio_iommufd_emulated_attach_ioas,
	.detach_ioas	= vfio_iommufd_emulated_detach_ioas,
	.init		= emulated_init_device,
	.open_device	= emulated_open,
	.close_device	= emulated_close,
	.read		= emulated_read,
	.write		= emulated_write,
	.ioctl		= emulated_ioctl,
	.dma_unmap	= emulated_dma_unmap,
};

static struct faux_device *parent;
static struct emulated *device;

static int __init emulated_init(void)
{
	int ret;

	parent = faux_device_create("emulated", NULL, NULL);
	if (!parent)
		return -ENODEV;
	device = vfio_alloc_device(emulated, vdev, &parent->dev, &emulated_ops);
	if (IS_ERR(device)) {
		ret = PTR_ERR(device);
		goto destroy;
	}
	ret = vfio_register_emulated_iommu_dev(&device->vdev);
	if (ret)
		goto put;
	return 0;

put:
	vfio_put_device(&device->vdev);
destroy:
	faux_device_destroy(parent);
	return ret;
}
module_init(emulated_init);

static void __exit emulated_exit(void)
{
	vfio_unregister_group_dev(&device->vdev);
	vfio_put_device(&device->vdev);
	faux_device_destroy(parent);
}
module_exit(emulated_exit);

MODULE_DESCRIPTION("An emulated VFIO device, for tests");
MODULE_LICENSE("GPL");
