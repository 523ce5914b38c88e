#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while, several at a
# time, beginning from the seeds and from what earlier runs on this machine have
# found. Adds the executions to tests/fuzz/README.md. Fails if one finds a crash,
# a leak, a timeout or too much memory; the input is kept.
#
#   tools/fuzz.sh [--seconds N] [--jobs N] [--no-count] [TARGET...]
#
# QUIRE_FUZZ_DIR: where corpora and findings are kept (~/.cache/quire/fuzz).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=60
jobs=$(nproc)
counts=1
targets=()
while (($# > 0)); do
  case "$1" in
    --seconds) seconds=$2 && shift 2 ;;
    --jobs) jobs=$2 && shift 2 ;;
    --no-count) counts=0 && shift ;;
    -*) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 64 ;;
    *) targets+=("$1") && shift ;;
  esac
done
export CC=clang-19
command -v "$CC" >/dev/null || { echo "fuzz: needs tools/setup.sh --dev" >&2; exit 69; }

# An output base of its own: other builds keep theirs, and their symlinks.
directory=${QUIRE_FUZZ_DIR:-$HOME/.cache/quire/fuzz}
mkdir -p "$directory"
bazel=(bazel "--output_base=$directory/build")
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <("${bazel[@]}" query --noshow_progress \
    'kind(cc_binary, //tests/fuzz:all)' 2>/dev/null | sed 's/.*://' | sort)
fi
"${bazel[@]}" build --config=fuzz --symlink_prefix=/ "${targets[@]/#///tests/fuzz:}"
binaries=$("${bazel[@]}" info --config=fuzz bazel-bin 2>/dev/null)/tests/fuzz

run_one() {
  local target=$1
  local corpus=$directory/corpus/$target found=$directory/found/$target
  mkdir -p "$corpus" "$found"
  # 20 s: a single input under sanitizers on a busy machine.
  "$binaries/$target" -max_total_time="$seconds" -timeout=20 \
    -rss_limit_mb=2048 -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$found/" "$corpus" "tests/fuzz/seeds/$target" \
    >"$directory/$target.log" 2>&1 ||
    { echo "fuzz: $target failed, see $directory/$target.log" >&2; return 1; }
}
export -f run_one
export directory seconds binaries
failed=0
printf '%s\n' "${targets[@]}" |
  xargs -P "$jobs" -I{} bash -c 'run_one {}' || failed=1
"${bazel[@]}" shutdown
python3 tools/fuzz_counts.py "$directory" "$counts" "${targets[@]}"
exit "$failed"
