#!/usr/bin/env bash
# Installs what is missing, builds the optimized binary and serves the demo model
# on port 8080. Further arguments go to `quire serve`: a model, --port, ...
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/tools/setup.sh"
(cd "$root" && bazel build //cli:quire)
# From the caller's folder, to which a relative path of a model belongs.
exec "$root/bazel-bin/cli/quire" serve "$@"
