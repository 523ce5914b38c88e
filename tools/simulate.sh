#!/usr/bin/env bash
# Runs the engine's simulation (tests/engine_simulation) for longer than the
# tests do, or looks at one seed. Arguments: --seed S --steps N --jobs J
# [--drafted-cases N] [--trace] [--no-shrink]; --bug NAME switches on a planted bug.
set -euo pipefail
cd "$(dirname "$0")/.."
target=simulate
case " $*" in *" --bug"*) target=simulate_with_planted_bugs ;; esac
bazel build "//tests/engine_simulation:$target"
exec "bazel-bin/tests/engine_simulation/$target" "$@"
