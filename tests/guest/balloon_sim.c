// SPDX-License-Identifier: GPL-2.0-only
/*
 * A balloon device for tests, in the same kernel as its driver: it plays the
 * host, keeps account of what is in the balloon, counts every breach of the
 * protocol, and misbehaves when told to.
 *
 * debugfs, /sys/kernel/debug/balloon_sim/:
 *   target_mib  rw  num_pages of the device; a write is a configuration change
 *   fault       rw  how the next requests are answered, see fault_names
 *   limit       rw  for "nomap": ranges of a request that are still carried out
 *   delay_ms    rw  how long each answer takes
 *   control     w   "freeze", "restore", "break" or "shutdown" the device, or
 *                   have it say that it needs a reset: "needs_reset", or
 *                   "needs_reset_quietly", without an interrupt
 *   stat        r   what was seen, as name=value
 */

#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/irq_work.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/seq_file.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <linux/workqueue.h>

#include <linux/virtio_balloon_deferred.h>

#define GRANULE		VIRTIO_BALLOON_DEFERRED_GRANULE
#define GRANULES	(SZ_1T / GRANULE)
#define QUEUE_SIZE	64

static bool offer = true;
module_param(offer, bool, 0444);
MODULE_PARM_DESC(offer, "Offer VIRTIO_BALLOON_F_DEFERRED");

static unsigned int target_mib;
module_param(target_mib, uint, 0444);
MODULE_PARM_DESC(target_mib, "Size that the balloon is to have at first, in MiB");

static unsigned int lowest_mib = 4096;
module_param(lowest_mib, uint, 0444);
MODULE_PARM_DESC(lowest_mib, "Address below which nothing shall be inflated, in MiB");

static char *first_fault = "none";
module_param(first_fault, charp, 0444);
MODULE_PARM_DESC(first_fault, "Fault that is active from the beginning");

static unsigned int holes;
module_param(holes, uint, 0444);
MODULE_PARM_DESC(holes, "Blocks that the device itself takes, every other one, so that ranges are short");

enum fault {
	FAULT_NONE,
	FAULT_NOMAP,		/* DEFLATE: carry out `limit` ranges, then NOMAP */
	FAULT_COMMIT,		/* COMMIT: NOMAP */
	FAULT_INFLATE,		/* INFLATE: INVALID */
	FAULT_SHORT,		/* answer with half a reply */
	FAULT_OVERDONE,		/* claim one range more than there was */
	FAULT_STATUS,		/* an unknown status */
	FAULT_SILENT,		/* no answer until the fault is over */
	FAULT_QUEUES,		/* queues cannot be set up */
	FAULTS
};

static const char * const fault_names[FAULTS] = {
	"none", "nomap", "commit", "inflate", "short", "overdone", "status",
	"silent", "queues",
};

struct sim {
	struct virtio_device vdev;
	struct device *parent;
	struct dentry *dir;
	struct virtio_balloon_deferred_config config;
	u8 status;

	/* The device's side of the queues; all run from `work`. */
	struct virtqueue *vq[2];
	u16 last_avail[2];
	struct work_struct work;
	struct irq_work irq;
	unsigned long *ballooned;	/* a bit per granule */
	bool committed;
	u64 last_deflated;

	struct list_head holes;

	enum fault fault;
	u32 limit;
	u32 delay_ms;

	/* Counters since the module was loaded. */
	u64 inflates, commits, deflates, urgent, ranges, granules;
	u64 low, errors, descending, resets;
};

static struct sim *sim;

static struct sim *to_sim(struct virtio_device *vdev)
{
	return container_of(vdev, struct sim, vdev);
}

static struct device *count_breach(struct sim *s)
{
	s->errors++;
	return &s->vdev.dev;
}

/* One breach of the protocol by the driver. */
#define breach(s, fmt, ...)	\
	dev_err(count_breach(s), "breach: " fmt "\n", ##__VA_ARGS__)

static bool check_range(struct sim *s, u64 start, u64 len)
{
	if (len && IS_ALIGNED(start | len, GRANULE) &&
	    start < SZ_1T && len <= SZ_1T - start)
		return true;
	breach(s, "range %#llx+%#llx", start, len);
	return false;
}

/* What is inflated must be memory of the driver's own, and marked so. */
static u32 inflate(struct sim *s, u64 start, u64 len)
{
	u64 addr;

	for (addr = start; addr < start + len; addr += PAGE_SIZE) {
		if (!pfn_valid(PHYS_PFN(addr)) ||
		    !PageOffline(pfn_to_page(PHYS_PFN(addr)))) {
			breach(s, "%#llx inflated, but not taken", addr);
			return VIRTIO_BALLOON_DEFERRED_INVALID;
		}
	}
	if (start < (u64)lowest_mib * SZ_1M)
		breach(s, "%#llx inflated, which is low", start);
	if (start < SZ_4G)
		s->low += len / GRANULE;
	if (s->committed)
		breach(s, "%#llx inflated after commit", start);
	if (find_next_bit(s->ballooned, (start + len) / GRANULE,
			  start / GRANULE) < (start + len) / GRANULE)
		breach(s, "%#llx inflated twice", start);
	bitmap_set(s->ballooned, start / GRANULE, len / GRANULE);
	return VIRTIO_BALLOON_DEFERRED_OK;
}

/* What is deflated must still be in the balloon, and nobody's. */
static u32 deflate(struct sim *s, u64 start, u64 len)
{
	u64 addr;

	if (find_next_zero_bit(s->ballooned, (start + len) / GRANULE,
			       start / GRANULE) < (start + len) / GRANULE) {
		breach(s, "%#llx deflated, but not in the balloon", start);
		return VIRTIO_BALLOON_DEFERRED_INVALID;
	}
	for (addr = start; addr < start + len; addr += PAGE_SIZE) {
		if (!PageOffline(pfn_to_page(PHYS_PFN(addr)))) {
			breach(s, "%#llx used while in the balloon", addr);
			break;
		}
	}
	if (start < s->last_deflated)
		s->descending++;
	s->last_deflated = start;
	bitmap_clear(s->ballooned, start / GRANULE, len / GRANULE);
	s->granules += len / GRANULE;
	return VIRTIO_BALLOON_DEFERRED_OK;
}

static void serve(struct sim *s, int queue, const void *buf, u32 len,
		  struct virtio_balloon_deferred_reply *reply)
{
	const struct virtio_balloon_deferred_hdr *hdr = buf;
	const struct virtio_balloon_deferred_range *range = buf + sizeof(*hdr);
	u32 status = VIRTIO_BALLOON_DEFERRED_OK, done = 0;
	u32 type, count, flags, right_queue;

	if (len < sizeof(*hdr)) {
		breach(s, "request of %u bytes", len);
		return;
	}
	type = le32_to_cpu(hdr->type);
	flags = le32_to_cpu(hdr->flags);
	count = le32_to_cpu(hdr->count);
	right_queue = type == VIRTIO_BALLOON_DEFERRED_DEFLATE;
	if (hdr->reserved || count > VIRTIO_BALLOON_DEFERRED_MAX_RANGES ||
	    len != sizeof(*hdr) + count * sizeof(*range) ||
	    queue != right_queue) {
		breach(s, "header %*ph on queue %d, %u bytes",
		       (int)sizeof(*hdr), hdr, queue, len);
		return;
	}

	switch (type) {
	case VIRTIO_BALLOON_DEFERRED_INFLATE:
		s->inflates++;
		break;
	case VIRTIO_BALLOON_DEFERRED_COMMIT:
		s->commits++;
		s->committed = true;
		break;
	case VIRTIO_BALLOON_DEFERRED_DEFLATE:
		s->deflates++;
		s->urgent += !!(flags & VIRTIO_BALLOON_DEFERRED_URGENT);
		break;
	default:
		breach(s, "type %u", type);
	}
	if (flags && (type != VIRTIO_BALLOON_DEFERRED_DEFLATE ||
		      flags != VIRTIO_BALLOON_DEFERRED_URGENT))
		breach(s, "flags %#x of type %u", flags, type);

	s->ranges += count;
	for (; done < count && status == VIRTIO_BALLOON_DEFERRED_OK; range++) {
		u64 start = le64_to_cpu(range->start);
		u64 size = le64_to_cpu(range->len);

		if (!check_range(s, start, size))
			status = VIRTIO_BALLOON_DEFERRED_INVALID;
		else if (type == VIRTIO_BALLOON_DEFERRED_INFLATE)
			status = s->fault == FAULT_INFLATE ?
				 VIRTIO_BALLOON_DEFERRED_INVALID :
				 inflate(s, start, size);
		else if (s->fault == FAULT_NOMAP && done == s->limit)
			status = VIRTIO_BALLOON_DEFERRED_NOMAP;
		else
			status = deflate(s, start, size);
		done += status == VIRTIO_BALLOON_DEFERRED_OK;
	}
	if (type == VIRTIO_BALLOON_DEFERRED_COMMIT && s->fault == FAULT_COMMIT)
		status = VIRTIO_BALLOON_DEFERRED_NOMAP;
	if (s->fault == FAULT_STATUS)
		status = 77;
	if (s->fault == FAULT_OVERDONE)
		done++;
	reply->status = cpu_to_le32(status);
	reply->done = cpu_to_le32(done);
}

/* The driver talks to us as the stock one does. */
static bool is_stock(const struct sim *s)
{
	return !__virtio_test_bit(&s->vdev, VIRTIO_BALLOON_F_DEFERRED);
}

/* Gives a buffer back to the driver. */
static void use(struct sim *s, int queue, u16 head, u32 written)
{
	const struct vring *ring = virtqueue_get_vring(s->vq[queue]);
	u16 idx = le16_to_cpu((__force __le16)ring->used->idx);
	struct vring_used_elem *elem = &ring->used->ring[idx % ring->num];

	elem->id = (__force __virtio32)cpu_to_le32(head);
	elem->len = (__force __virtio32)cpu_to_le32(written);
	/* The entry is written before the index. */
	virtio_wmb(true);
	WRITE_ONCE(ring->used->idx, (__force __virtio16)cpu_to_le16(idx + 1));
	irq_work_queue(&s->irq);
}

/* Handles one request of a queue, if there is one and it is to be answered. */
static bool serve_queue(struct sim *s, int queue)
{
	const struct vring *ring = virtqueue_get_vring(s->vq[queue]);
	struct virtio_balloon_deferred_reply *reply;
	u16 head;
	struct vring_desc *out, *in;
	u32 written = sizeof(*reply);

	if (s->fault == FAULT_SILENT || s->last_avail[queue] ==
	    le16_to_cpu((__force __le16)READ_ONCE(ring->avail->idx)))
		return false;
	/* The ring's entry is written before its index. */
	virtio_rmb(true);
	head = le16_to_cpu((__force __le16)
			   ring->avail->ring[s->last_avail[queue]++ % ring->num]);
	out = &ring->desc[head % ring->num];
	if (is_stock(s)) {
		/* The stock driver's PFNs, which need no answer. */
		use(s, queue, head, 0);
		return true;
	}
	in = &ring->desc[le16_to_cpu((__force __le16)out->next) % ring->num];
	if (le16_to_cpu((__force __le16)out->flags) != VRING_DESC_F_NEXT ||
	    le16_to_cpu((__force __le16)in->flags) != VRING_DESC_F_WRITE ||
	    le32_to_cpu((__force __le32)in->len) != sizeof(*reply)) {
		breach(s, "chain %u on queue %d", head, queue);
		return false;
	}
	if (s->delay_ms)
		msleep(s->delay_ms);
	/* Without F_ACCESS_PLATFORM these are physical addresses. */
	reply = phys_to_virt(le64_to_cpu((__force __le64)in->addr));
	serve(s, queue, phys_to_virt(le64_to_cpu((__force __le64)out->addr)),
	      le32_to_cpu((__force __le32)out->len), reply);
	if (s->fault == FAULT_SHORT)
		written /= 2;
	use(s, queue, head, written);
	return true;
}

static void sim_work(struct work_struct *work)
{
	struct sim *s = container_of(work, struct sim, work);
	int queue;

	/* One that has failed does nothing any more, for nobody. */
	if (!(s->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
	    s->status & VIRTIO_CONFIG_S_FAILED)
		return;
	for (queue = 0; queue < 2; queue++)
		while (s->vq[queue] && serve_queue(s, queue))
			;
}

static void sim_irq(struct irq_work *irq)
{
	struct sim *s = container_of(irq, struct sim, irq);

	vring_interrupt(0, s->vq[0]);
	vring_interrupt(0, s->vq[1]);
}

static bool sim_notify(struct virtqueue *vq)
{
	queue_work(system_dfl_wq, &to_sim(vq->vdev)->work);
	return true;
}

static u64 sim_get_features(struct virtio_device *vdev)
{
	return BIT_ULL(VIRTIO_F_VERSION_1) |
	       (offer ? BIT_ULL(VIRTIO_BALLOON_F_DEFERRED) : 0);
}

static int sim_finalize_features(struct virtio_device *vdev)
{
	vring_transport_features(vdev);
	return 0;
}

static void sim_get(struct virtio_device *vdev, unsigned int offset, void *buf,
		    unsigned int len)
{
	struct sim *s = to_sim(vdev);

	if (offset >= sizeof(s->config) || len > sizeof(s->config) - offset)
		breach(s, "configuration read at %u+%u", offset, len);
	else
		memcpy(buf, (void *)&s->config + offset, len);
}

static void sim_set(struct virtio_device *vdev, unsigned int offset,
		    const void *buf, unsigned int len)
{
	struct sim *s = to_sim(vdev);

	if (offset != offsetof(struct virtio_balloon_deferred_config, actual) ||
	    len != sizeof(s->config.actual))
		breach(s, "configuration written at %u+%u", offset, len);
	else
		memcpy(&s->config.actual, buf, len);
}

static u8 sim_get_status(struct virtio_device *vdev)
{
	return to_sim(vdev)->status;
}

static void sim_set_status(struct virtio_device *vdev, u8 status)
{
	struct sim *s = to_sim(vdev);

	s->status = status;
	queue_work(system_dfl_wq, &s->work);
}

/* As the host does: all memory is outside the balloon from now on. */
static void sim_reset(struct virtio_device *vdev)
{
	struct sim *s = to_sim(vdev);
	unsigned long bit;

	s->status = 0;
	cancel_work_sync(&s->work);
	irq_work_sync(&s->irq);
	for_each_set_bit(bit, s->ballooned, GRANULES)
		if (!PageOffline(pfn_to_page(PHYS_PFN((u64)bit * GRANULE))))
			breach(s, "granule %lu freed before the reset", bit);
	bitmap_zero(s->ballooned, GRANULES);
	s->committed = false;
	s->last_deflated = 0;
	s->config.actual = 0;
	s->resets++;
}

static void sim_del_vqs(struct virtio_device *vdev)
{
	struct sim *s = to_sim(vdev);
	int i;

	if (s->status)
		breach(s, "queues removed with status %#x", s->status);
	for (i = 0; i < 2; i++) {
		if (s->vq[i])
			vring_del_virtqueue(s->vq[i]);
		s->vq[i] = NULL;
	}
}

static int sim_find_vqs(struct virtio_device *vdev, unsigned int n,
			struct virtqueue *vqs[], struct virtqueue_info info[],
			struct irq_affinity *desc)
{
	struct sim *s = to_sim(vdev);
	unsigned int i;

	if (s->fault == FAULT_QUEUES)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		vqs[i] = NULL;
		if (!info[i].name)
			continue;
		if (i >= 2)
			return -EINVAL;
		s->last_avail[i] = 0;
		s->vq[i] = vring_create_virtqueue(i, QUEUE_SIZE, SMP_CACHE_BYTES,
						  vdev, true, false, false,
						  sim_notify, info[i].callback,
						  info[i].name);
		if (!s->vq[i]) {
			sim_del_vqs(vdev);
			return -ENOMEM;
		}
		s->vq[i]->num_max = QUEUE_SIZE;
		vqs[i] = s->vq[i];
	}
	return 0;
}

static const struct virtio_config_ops sim_ops = {
	.get = sim_get,
	.set = sim_set,
	.get_status = sim_get_status,
	.set_status = sim_set_status,
	.reset = sim_reset,
	.find_vqs = sim_find_vqs,
	.del_vqs = sim_del_vqs,
	.get_features = sim_get_features,
	.finalize_features = sim_finalize_features,
};

static void set_target(struct sim *s, u64 mib)
{
	s->config.num_pages = cpu_to_le32(mib << (20 - VIRTIO_BALLOON_PFN_SHIFT));
}

static int target_set(void *data, u64 mib)
{
	struct sim *s = data;

	set_target(s, mib);
	virtio_config_changed(&s->vdev);
	return 0;
}

static int target_get(void *data, u64 *mib)
{
	struct sim *s = data;

	*mib = le32_to_cpu(s->config.num_pages) >>
	       (20 - VIRTIO_BALLOON_PFN_SHIFT);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(target_fops, target_get, target_set, "%llu\n");

static int set_fault(struct sim *s, const char *name)
{
	int fault = match_string(fault_names, FAULTS, name);

	if (fault < 0)
		return fault;
	s->fault = fault;
	queue_work(system_dfl_wq, &s->work);
	return 0;
}

/* Copies a word that was written to a file. */
static ssize_t word_from_user(char *word, size_t size, const char __user *buf,
			      size_t len)
{
	if (len >= size)
		return -EINVAL;
	if (copy_from_user(word, buf, len))
		return -EFAULT;
	word[len] = '\0';
	strim(word);
	return len;
}

static ssize_t fault_write(struct file *file, const char __user *buf,
			   size_t len, loff_t *pos)
{
	char word[16];
	ssize_t ret = word_from_user(word, sizeof(word), buf, len);

	return ret < 0 ? ret : set_fault(sim, word) ?: ret;
}

static int fault_show(struct seq_file *seq, void *unused)
{
	seq_printf(seq, "%s\n", fault_names[sim->fault]);
	return 0;
}

static int fault_open(struct inode *inode, struct file *file)
{
	return single_open(file, fault_show, NULL);
}

static const struct file_operations fault_fops = {
	.owner = THIS_MODULE,
	.open = fault_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
	.write = fault_write,
};

static ssize_t control_write(struct file *file, const char __user *buf,
			     size_t len, loff_t *pos)
{
	char word[24];
	ssize_t ret = word_from_user(word, sizeof(word), buf, len);
	int err = -EINVAL;

	if (ret < 0)
		return ret;
	if (!strcmp(word, "freeze")) {
		err = virtio_device_freeze(&sim->vdev);
	} else if (!strcmp(word, "restore")) {
		err = virtio_device_restore(&sim->vdev);
	} else if (!strcmp(word, "break")) {
		virtio_break_device(&sim->vdev);
		err = 0;
	} else if (!strcmp(word, "shutdown")) {
		sim->vdev.dev.bus->shutdown(&sim->vdev.dev);
		err = 0;
	} else if (!strncmp(word, "needs_reset", strlen("needs_reset"))) {
		sim->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
		if (strcmp(word, "needs_reset_quietly"))
			virtio_config_changed(&sim->vdev);
		err = 0;
	}
	return err ?: ret;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = control_write,
};

static int stat_show(struct seq_file *seq, void *unused)
{
	struct sim *s = sim;

	seq_printf(seq, "status=%u\n", s->status);
	seq_printf(seq, "ballooned_mib=%u\n",
		   bitmap_weight(s->ballooned, GRANULES) * (GRANULE / SZ_1M));
	seq_printf(seq, "actual_mib=%u\n", le32_to_cpu(s->config.actual) >>
		   (20 - VIRTIO_BALLOON_PFN_SHIFT));
	seq_printf(seq, "inflates=%llu\ncommits=%llu\ndeflates=%llu\n",
		   s->inflates, s->commits, s->deflates);
	seq_printf(seq, "urgent=%llu\nranges=%llu\n", s->urgent, s->ranges);
	seq_printf(seq, "deflated_mib=%llu\n", s->granules * (GRANULE / SZ_1M));
	seq_printf(seq, "low_mib=%llu\n", s->low * (GRANULE / SZ_1M));
	seq_printf(seq, "descending=%llu\nresets=%llu\nerrors=%llu\n",
		   s->descending, s->resets, s->errors);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stat);

static void free_blocks(struct list_head *blocks)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, blocks, lru) {
		list_del(&page->lru);
		__free_pages(page, get_order(GRANULE));
	}
}

/* Takes blocks and gives every other one back. */
static int take_holes(struct sim *s, unsigned int count)
{
	LIST_HEAD(others);
	struct page *page;
	unsigned int i;
	int nid, last = 0;

	/* The last node has the memory from which balloons are filled. */
	for_each_node_state(nid, N_MEMORY)
		last = nid;
	for (i = 0; i < 2 * count; i++) {
		page = alloc_pages_node(last, GFP_KERNEL | __GFP_NORETRY | __GFP_THISNODE,
					get_order(GRANULE));
		if (!page)
			break;
		/* By address, not in the order of allocation. */
		list_add(&page->lru,
			 page_to_phys(page) / GRANULE % 2 ? &s->holes : &others);
	}
	free_blocks(&others);
	return i < 2 * count ? -ENOMEM : 0;
}

static void sim_free(struct sim *s)
{
	free_blocks(&s->holes);
	bitmap_free(s->ballooned);
	kfree(s);
}

static void sim_release(struct device *dev)
{
	sim_free(to_sim(dev_to_virtio(dev)));
}

static int __init sim_init(void)
{
	struct sim *s = kzalloc(sizeof(*s), GFP_KERNEL);
	int err;

	if (!s)
		return -ENOMEM;
	INIT_LIST_HEAD(&s->holes);
	INIT_WORK(&s->work, sim_work);
	init_irq_work(&s->irq, sim_irq);
	s->ballooned = bitmap_zalloc(GRANULES, GFP_KERNEL);
	s->parent = root_device_register("balloon_sim");
	err = !s->ballooned ? -ENOMEM : PTR_ERR_OR_ZERO(s->parent);
	err = err ?: set_fault(s, first_fault) ?: take_holes(s, holes);
	if (err) {
		if (!IS_ERR(s->parent))
			root_device_unregister(s->parent);
		sim_free(s);
		return err;
	}
	set_target(s, target_mib);
	s->config.lowest_mib = cpu_to_le32(lowest_mib);
	s->vdev.id.device = VIRTIO_ID_BALLOON;
	s->vdev.dev.parent = s->parent;
	s->vdev.dev.release = sim_release;
	s->vdev.config = &sim_ops;
	sim = s;

	/* Before the device: probe() may already meet faults to be lifted. */
	s->dir = debugfs_create_dir("balloon_sim", NULL);
	debugfs_create_file("target_mib", 0600, s->dir, s, &target_fops);
	debugfs_create_file("fault", 0600, s->dir, s, &fault_fops);
	debugfs_create_u32("limit", 0600, s->dir, &s->limit);
	debugfs_create_u32("delay_ms", 0600, s->dir, &s->delay_ms);
	debugfs_create_file("control", 0200, s->dir, s, &control_fops);
	debugfs_create_file("stat", 0400, s->dir, s, &stat_fops);

	err = register_virtio_device(&s->vdev);
	if (err) {
		struct device *parent = s->parent;

		debugfs_remove(s->dir);
		put_device(&s->vdev.dev);
		root_device_unregister(parent);
	}
	return err;
}

static void __exit sim_exit(void)
{
	struct device *parent = sim->parent;

	debugfs_remove(sim->dir);
	unregister_virtio_device(&sim->vdev);
	root_device_unregister(parent);
}

module_init(sim_init);
module_exit(sim_exit);
MODULE_DESCRIPTION("Balloon device in the same kernel as its driver, for tests");
MODULE_LICENSE("GPL");
