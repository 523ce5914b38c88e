#!/usr/bin/env bash
# Kills, stops, stalls and restarts the ranks of a model at random moments and
# checks what is promised; arguments as tests/ranks/rank_faults.py says. By default 100
# repetitions, some five minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
bazel build //cli:quire
exec python3 tests/ranks/rank_faults.py --quire bazel-bin/cli/quire "$@"
