#!/usr/bin/env bash
# Holds the promises of the front end in full and measures their times: streams
# at scale, attacks, disconnects, shutdowns, failing calls, memory. Prints each
# figure beside its target; exits non-zero if a promise is broken. --brief: every
# figure within a quarter of an hour; --only NAME: one part.
set -euo pipefail
cd "$(dirname "$0")/.."
bazel build //tests/front_end:soak
# Thousands of connections on both sides.
ulimit -n "$(ulimit -Hn)"
export QUIRE_RUNFILES=$PWD/bazel-bin/tests/front_end/soak.runfiles/quire
exec bazel-bin/tests/front_end/soak "$@"
