/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef DEFERRED_KSYM_H
#define DEFERRED_KSYM_H

int deferred_find_data(const char *name, unsigned long *addr);

#endif /* DEFERRED_KSYM_H */
