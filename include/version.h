/* SPDX-License-Identifier: GPL-2.0-only */
/* The one version of both modules and of what they are packaged in; see NEWS. */
#ifndef DEFERRED_VERSION
#define DEFERRED_VERSION "0.9.0"
#endif
