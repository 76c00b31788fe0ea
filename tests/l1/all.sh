#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# All tests that run in L1, in one boot of it. Those of the guest's driver come
# first: they want memory as it is after boot.

set -uo pipefail

status=0
/payload/tests/guest/balloon.py || status=1
/payload/tests/l1/suite.py || status=1
exit "$status"
