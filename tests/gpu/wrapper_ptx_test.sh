#!/usr/bin/env bash
# What nvcc makes of each wrapper of an instruction, run as PTX, against what the
# emulation makes of it: wrapper_ptx_test.sh EMULATED PTX
set -euo pipefail
"$1" --write "$TEST_TMPDIR/expected"
"$2" --compare "$TEST_TMPDIR/expected"
