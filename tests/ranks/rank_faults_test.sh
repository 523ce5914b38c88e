#!/usr/bin/env bash
# Faults of ranks, a short form of tools/rank_faults.sh.
set -euo pipefail
export QUIRE_DEMO_MODEL=$PWD/models/demo
exec python3 tests/ranks/rank_faults.py --quire "$1" --repetitions 10 --seed 4
