#!/usr/bin/env bash
# The tests under a sanitizer, built with clang-19: `run.sh asan [ARGUMENT...]`
# (addresses, leaks and undefined behaviour) or `run.sh tsan` (data races).
# Arguments go to `bazel test`; those that name targets take the place of the
# list below. Exits non-zero if a test fails or a sanitizer finds something.
set -uo pipefail
cd "$(dirname "$0")/../.."
kind=$1
shift
command -v clang-19 >/dev/null || { echo "sanitizers: needs tools/setup.sh --dev" >&2; exit 69; }

# Left out of both: what runs device code that nvcc has compiled, without the
# sanitizer.
targets=(//... -//tests/gpu/...)
if [[ $kind == tsan ]]; then
  # What has threads. Left out: the emulated GPU, whose fibers switch stacks that
  # this sanitizer is not told of; without a toolkit nothing of it is built.
  targets=(
    //server/... //engine/... //cli/... //kernels/cpu/...
    //kernels:host_communicator_test //benchmarks/serving/...
    //tokenizer:chat_template_test //tokenizer:tokenizer_test
    //tests/front_end/... //tests/ranks/...
    //tests:edge_cloud_faults_test //tests:edge_cloud_test
    //tests:engine_equivalence_test //tests:equivalence_test
    //tests:tensor_parallel_test
  )
fi
options=()
[[ $kind == tsan ]] && options+=(--repo_env=CUDA_HOME=/nonexistent)
given=()
for argument in "$@"; do
  case "$argument" in
    // | //* | -//*) given+=("$argument") ;;
    *) options+=("$argument") ;;
  esac
done
((${#given[@]} == 0)) || targets=("${given[@]}")

# Of the packages' libraries only: nothing of ours is suppressed.
suppressions=$PWD/tools/sanitizers
# clang-19 looks for a program of its own package, which another's replaces: it
# gives the frames of a report their names.
symbolizer=$(command -v llvm-symbolizer-19 llvm-symbolizer | head -n 1)
names=${symbolizer:+:external_symbolizer_path=$symbolizer}
# An output base of its own: another compiler would throw away the other's.
export CC=clang-19
bazel --output_base="${QUIRE_SANITIZER_DIR:-$HOME/.cache/quire/sanitizers}/$kind" \
  test --config="$kind" --symlink_prefix=/ --keep_going --test_timeout=3600 \
  --test_env="ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1$names" \
  --test_env="LSAN_OPTIONS=suppressions=$suppressions/lsan.supp" \
  --test_env="UBSAN_OPTIONS=print_stacktrace=1$names" \
  --test_env="TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$suppressions/tsan.supp$names" \
  --sandbox_add_mount_pair="$suppressions" \
  "${options[@]}" -- "${targets[@]}"
