#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while, several at a
# time, beginning from the seeds, from tests/fuzz/corpus and from what earlier
# runs on this machine have found. Adds the executions to tests/fuzz/README.md as
# each target ends; what an interrupted run did is added by the next one. Fails
# if one finds a crash, a leak, a timeout or too much memory; the input is kept.
#
#   tools/fuzz.sh [--fast] [--goal N] [--seconds N] [--timeout N] [--jobs N]
#                 [--processes N] [--no-count] [TARGET...]
#   tools/fuzz.sh --brief [--seconds N] [TARGET...]
#   tools/fuzz.sh --save [TARGET...]
#
# --fast: without sanitizers, with assertions, many times as fast, and on inputs
#   of 1 KiB or as long as the longest seed; then the whole corpus, with all that
#   it has found, runs under the sanitizers.
# --goal: no target runs beyond so many executions in all; the least executed
#   come first.
# --timeout: seconds that one input may take (20); more on a busy machine.
# --jobs: targets that run at a time (one for each core).
# --processes: of each target (1); they share what they find.
# --brief: the form of the tests: what clients and model files reach first, for a
#   minute, all at once, sanitized, from seeds and tests/fuzz/corpus alone.
# --save: what the corpora reach beyond the seeds goes to tests/fuzz/corpus.
# QUIRE_FUZZ_DIR: where corpora and findings are kept (~/.cache/quire/fuzz).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=sanitized
goal=0
seconds=60
timeout=20
jobs=$(nproc)
processes=1
counts=1
saves=0
brief=0
targets=()
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
while (($# > 0)); do
  case "$1" in
    --fast) mode=fast && shift ;;
    --goal) goal=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --timeout) timeout=$2 && shift 2 ;;
    --jobs) jobs=$2 && shift 2 ;;
    --processes) processes=$2 && shift 2 ;;
    --no-count) counts=0 && shift ;;
    --brief) brief=1 && shift ;;
    --save) saves=1 && mode=fast && shift ;;
    --help) usage && exit ;;
    -*) usage >&2 && exit 64 ;;
    *) targets+=("$1") && shift ;;
  esac
done
export CC=clang-19
command -v "$CC" >/dev/null || { echo "fuzz: needs tools/setup.sh --dev" >&2; exit 69; }

# An output base of its own: other builds keep theirs, and their symlinks.
directory=${QUIRE_FUZZ_DIR:-$HOME/.cache/quire/fuzz}
mkdir -p "$directory"
bazel=(bazel "--output_base=$directory/build")
if ((brief == 1)); then
  # Findings aside, nothing is kept: every run has the same start.
  mode=sanitized counts=0 goal=0 timeout=300
  directory=$(mktemp -d)
  trap 'rm -rf "$directory"' EXIT
  # All at once in 4 GB: freed memory is held back for less long.
  export ASAN_OPTIONS=quarantine_size_mb=32
  ((${#targets[@]} > 0)) || targets=({api_request,chat_template,command_line,gguf,http_head}_fuzz
    {safetensors,sse_writer,stop_strings,tokenizer}_fuzz)
  jobs=${#targets[@]}
fi
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <("${bazel[@]}" query --noshow_progress \
    'kind(cc_binary, //tests/fuzz:all)' 2>/dev/null | sed 's/.*://' | sort)
fi
build() {
  # The linker warns of each symbol of the sanitizers; errors are shown.
  "${bazel[@]}" build "--config=$1" --symlink_prefix=/ --output_filter='^none$' \
    "${targets[@]/#///tests/fuzz:}"
}
binaries() {
  echo "$("${bazel[@]}" info "--config=$1" bazel-bin 2>/dev/null)/tests/fuzz"
}
fast_binaries=
sanitized_binaries=
if [[ $mode == fast ]]; then
  build fuzz_fast
  fast_binaries=$(binaries fuzz_fast)
fi
if ((saves == 0)); then
  build fuzz
  sanitized_binaries=$(binaries fuzz)
fi
"${bazel[@]}" shutdown

# The least inputs that together reach every edge that the corpus does.
save_one() {
  local target=$1 merged
  merged=$(mktemp -d)
  cp "tests/fuzz/seeds/$target"/* "$merged"
  "$fast_binaries/$target" -merge=1 -set_cover_merge=1 -use_counters=0 \
    -timeout="$timeout" "$merged" "$directory/corpus/$target" \
    >"$directory/$target.merge.log" 2>&1 &&
    python3 tools/fuzz_corpus.py pack "$merged" "$target"
  local status=$?
  rm -r "$merged"
  return "$status"
}

# `fuzz BINARY MODE TARGET NUM_RUNS OPTION...` leaves TARGET.MODE.K.log of each
# process K, which fuzz_counts.py moves out of the way when it is counted.
fuzz() {
  local binary=$1/$3 log=$directory/$3.$2 num_runs=$4
  shift 4
  ((num_runs < 0)) || num_runs=$(((num_runs + processes - 1) / processes))
  local pids=() k failed=0
  for ((k = 0; k < processes; ++k)); do
    "$binary" "$@" -runs="$num_runs" >"$log.$k.log" 2>&1 &
    pids+=($!)
  done
  for ((k = 0; k < processes; ++k)); do
    wait "${pids[k]}" || { failed=1; echo "fuzz: failed, see $log.$k.log" >&2; }
  done
  return "$failed"
}

run_one() {
  local target=$1 num_runs=$2 failed=0
  local corpus=$directory/corpus/$target found=$directory/found/$target
  mkdir -p "$corpus" "$found"
  python3 tools/fuzz_corpus.py unpack "$corpus" "$target"
  local options=(-timeout="$timeout" -rss_limit_mb=2048 -print_final_stats=1
    -verbosity=1 -artifact_prefix="$found/" "$corpus" "tests/fuzz/seeds/$target")
  local longest
  longest=$(find "tests/fuzz/seeds/$target" -type f -printf '%s\n' | sort -n | tail -1)
  local length=$((longest > 1024 ? longest : 1024))
  if [[ $mode == fast ]]; then
    fuzz "$fast_binaries" fast "$target" "$num_runs" \
      -max_total_time="$seconds" -max_len="$length" "${options[@]}" || failed=1
    "$sanitized_binaries/$target" -runs=0 "${options[@]}" \
      >"$directory/$target.replay.log" 2>&1 ||
      { failed=1; echo "fuzz: failed, see $directory/$target.replay.log" >&2; }
  else
    fuzz "$sanitized_binaries" sanitized "$target" "$num_runs" \
      -max_total_time="$seconds" "${options[@]}" || failed=1
  fi
  if ((brief == 1 && failed == 1)); then
    # Whole: the files are soon gone.
    tail -n 60 "$directory/$target.sanitized.0.log"
    find "$found" -type f -printf '%p\n' -exec base64 {} \;
  fi
  python3 tools/fuzz_counts.py add "$directory" "$counts" "$target"
  return "$failed"
}
export -f fuzz run_one save_one
export directory seconds timeout processes fast_binaries sanitized_binaries mode counts brief
failed=0
if ((saves == 1)); then
  printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c 'save_one {}' || failed=1
else
  # Of runs that were interrupted.
  for target in "${targets[@]}"; do
    python3 tools/fuzz_counts.py add "$directory" "$counts" "$target"
  done
  python3 tools/fuzz_counts.py order "$goal" "${targets[@]}" |
    xargs -r -P "$jobs" -L 1 bash -c 'run_one "$@"' run_one || failed=1
fi
exit "$failed"
