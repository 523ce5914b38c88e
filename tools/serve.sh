#!/usr/bin/env bash
# Installs what is missing, builds the optimized binary and serves the demo model
# on port 8080. Further arguments go to `quire serve`: a model, --port, ...
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
bazel build //cli:quire
exec bazel-bin/cli/quire serve "$@"
