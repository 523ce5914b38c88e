#!/usr/bin/env bash
# Holds the promises of the front end in full and measures their times: streams
# at scale, attacks, disconnects, shutdowns, failing calls, memory. Prints each
# figure beside its target; exits non-zero if a promise is broken. --brief: every
# figure in about four minutes; --only NAME: one part. With --config=asan or
# --config=tsan first (tools/setup.sh --dev) counts, leaks and order only.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  --config=asan | --config=tsan) kind=${1#--config=} && shift ;;
  *) kind= ;;
esac
# Thousands of connections on both sides.
ulimit -n "$(ulimit -Hn)"
if [[ -z $kind ]]; then
  bazel build //tests/front_end:soak
  binaries=$PWD/bazel-bin
else
  command -v clang-19 >/dev/null || { echo "soak: needs tools/setup.sh --dev" >&2; exit 69; }
  # As tools/sanitizers/run.sh, whose output it uses.
  export CC=clang-19
  bazel=(bazel "--output_base=${QUIRE_SANITIZER_DIR:-$HOME/.cache/quire/sanitizers}/$kind")
  options=("--config=$kind")
  [[ $kind == tsan ]] && options+=(--repo_env=CUDA_HOME=/nonexistent)
  "${bazel[@]}" build "${options[@]}" --symlink_prefix=/ //tests/front_end:soak
  binaries=$("${bazel[@]}" info "${options[@]}" bazel-bin 2>/dev/null)
  symbolizer=$(command -v llvm-symbolizer-19 llvm-symbolizer | head -n 1 || true)
  names=${symbolizer:+:external_symbolizer_path=$symbolizer}
  export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1$names
  export UBSAN_OPTIONS=print_stacktrace=1$names
  export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/tools/sanitizers/tsan.supp$names
fi
export QUIRE_RUNFILES=$binaries/tests/front_end/soak.runfiles/quire
exec "$binaries/tests/front_end/soak" "$@"
