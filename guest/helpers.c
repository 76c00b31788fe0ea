// SPDX-License-Identifier: GPL-2.0-only
/* Inline functions and macros of the kernel's headers that Rust cannot call. */

#include <linux/cred.h>
#include <linux/device/devres.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/virtio.h>
#include <linux/virtio_balloon_deferred.h>
#include <linux/virtio_config.h>
#include <linux/wait.h>

#include "../include/version.h"
#include "../include/wrap/compat.h"

/*
 * Tools that build an initramfs pack the transport too. Not a soft dependency:
 * "modprobe -r" of this module would remove the transport as well, and with it
 * the devices of all others.
 */
MODULE_WEAKDEP("virtio_pci");

MODULE_VERSION(DEFERRED_VERSION);

bool rust_helper___virtio_test_bit(const struct virtio_device *vdev,
				   unsigned int bit)
{
	return __virtio_test_bit(vdev, bit);
}

int rust_helper_virtio_find_vqs(struct virtio_device *vdev, unsigned int n,
				struct virtqueue *vqs[],
				struct virtqueue_info info[])
{
	return virtio_find_vqs(vdev, n, vqs, info, NULL);
}

void rust_helper_virtio_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

void rust_helper_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

/* The state in which the core offers a device to a driver. */
static void renew(void *vdev)
{
	virtio_reset_device(vdev);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
}

/* Once probe() has failed and the core has said so in the status. */
int rust_helper_virtio_renew_later(struct virtio_device *vdev)
{
	return devm_add_action(&vdev->dev, renew, vdev);
}

u8 rust_helper_virtio_get_status(struct virtio_device *vdev)
{
	return vdev->config->get_status(vdev);
}

u32 rust_helper_virtio_balloon_num_pages(struct virtio_device *vdev)
{
	u32 pages;

	virtio_cread_le(vdev, struct virtio_balloon_deferred_config, num_pages,
			&pages);
	return pages;
}

u32 rust_helper_virtio_balloon_lowest_mib(struct virtio_device *vdev)
{
	u32 mib;

	virtio_cread_le(vdev, struct virtio_balloon_deferred_config, lowest_mib,
			&mib);
	return mib;
}

void rust_helper_virtio_balloon_set_actual(struct virtio_device *vdev,
					   u32 pages)
{
	virtio_cwrite_le(vdev, struct virtio_balloon_deferred_config, actual,
			 &pages);
}

int rust_helper_next_memory_node(int node)
{
	return next_node(node, node_states[N_MEMORY]);
}

unsigned int rust_helper_node_numbers(void)
{
	return nr_node_ids;
}

/* The address at which the highest zone of a node ends that serves "gfp". */
phys_addr_t rust_helper_node_end(int node, gfp_t gfp)
{
	phys_addr_t end = 0;
	int i;

	for (i = 0; i <= gfp_zone(gfp); i++) {
		const struct zone *zone = &NODE_DATA(node)->node_zones[i];

		if (populated_zone(zone))
			end = max(end, PFN_PHYS(zone_end_pfn(zone)));
	}
	return end;
}

/*
 * How many pages are free in those zones of a node that end above "lowest", and
 * above the watermark at which reclaim would rest; negative if there are fewer.
 */
long rust_helper_node_spare(int node, phys_addr_t lowest)
{
	long spare = 0;
	int i;

	for (i = 0; i < MAX_NR_ZONES; i++) {
		struct zone *zone = &NODE_DATA(node)->node_zones[i];

		if (populated_zone(zone) && PFN_PHYS(zone_end_pfn(zone)) > lowest)
			spare += (long)zone_page_state(zone, NR_FREE_PAGES) -
				 (long)high_wmark_pages(zone);
	}
	return spare;
}

struct pglist_data *rust_helper_node_data_of(int node)
{
	return NODE_DATA(node);
}

unsigned long rust_helper_node_present_pages(int node)
{
	return node_present_pages(node);
}

/* Whether this task has to free memory itself before it gets any. */
bool rust_helper_is_direct_reclaim(void)
{
	return current->reclaim_state && !current_is_kswapd();
}

void rust_helper_mm_account_reclaimed_pages(unsigned long pages)
{
	mm_account_reclaimed_pages(pages);
}

void rust_helper_cond_resched(void)
{
	cond_resched();
}

/* Whether any user but root has a process. */
bool rust_helper_users_but_root(void)
{
	const struct task_struct *process, *thread;
	bool found = false;

	rcu_read_lock();
	for_each_process_thread(process, thread) {
		if (!uid_eq(task_uid(thread), GLOBAL_ROOT_UID)) {
			found = true;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* A macro that has the profile of allocations name this line. */
struct page *rust_helper_alloc_block(int node, gfp_t gfp, unsigned int order)
{
	return alloc_pages_node(node, gfp, order);
}

phys_addr_t rust_helper_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

struct page *rust_helper_phys_to_page(phys_addr_t addr)
{
	return pfn_to_page(PHYS_PFN(addr));
}

phys_addr_t rust_helper_page_zone_end(const struct page *page)
{
	return PFN_PHYS(zone_end_pfn(page_zone(page)));
}

struct pglist_data *rust_helper_page_pgdat(const struct page *page)
{
	return page_pgdat(page);
}

/* For all pages of a block: from Rust it would be a call for each. */
void rust_helper_set_pages_offline(struct page *page, unsigned int count,
				   bool offline)
{
	for (; count--; page++) {
		if (offline)
			__SetPageOffline(page);
		else
			__ClearPageOffline(page);
	}
}

/* As long as "*value" is "same", or until the time is over. */
long rust_helper_wait_while(struct wait_queue_head *queue, const u64 *value,
			    u64 same, unsigned long timeout)
{
	return wait_event_timeout(*queue, READ_ONCE(*value) != same, timeout);
}

/* Tasks that bind a driver to a PCI device and wait for a balloon; see order.rs. */
static DECLARE_WAIT_QUEUE_HEAD(binders);

/* The kernel crate's condition variables cannot wait killably with a time limit. */
long rust_helper_wait_until_zero(const int *count, unsigned long timeout)
{
	return wait_event_killable_timeout(binders, !READ_ONCE(*count),
					   timeout);
}

void rust_helper_wake_binders(void)
{
	wake_up_all(&binders);
}
