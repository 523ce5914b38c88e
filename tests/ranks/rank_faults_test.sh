#!/usr/bin/env bash
# Faults of ranks, a short form of tools/rank_faults.sh. The machine may be busy
# with other tests: what is promised may take half as long again.
set -euo pipefail
export QUIRE_DEMO_MODEL=$PWD/models/demo
exec python3 tests/ranks/rank_faults.py --quire "$1" --cover --seed 4 --allowance 1.5
