// SPDX-License-Identifier: GPL-2.0-only
/*
 * The indices of a ring in one access: copy_from_user() and copy_to_user() may
 * go byte by byte, and get_user() and put_user() are macros.
 */

#include <linux/types.h>
#include <linux/uaccess.h>

int rust_helper_get_user_u16(u16 *value, unsigned long address);
int rust_helper_put_user_u16(u16 value, unsigned long address);

int rust_helper_get_user_u16(u16 *value, unsigned long address)
{
	return get_user(*value, (u16 __user *)address);
}

int rust_helper_put_user_u16(u16 value, unsigned long address)
{
	return put_user(value, (u16 __user *)address);
}
