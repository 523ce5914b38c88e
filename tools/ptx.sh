#!/usr/bin/env bash
# Runs the tests of a GPU's program on the host: real host code, and kernels as
# nvcc compiled them, in PTX (tests/gpu/ptx). Without arguments about half an
# hour on four cores:
#   tools/ptx.sh [ARCHITECTURE [GTEST_FILTER]]
# ARCHITECTURE (default: 90a): one of those of kernels/cuda/BUILD.bazel; below 80
# there are only the tests in f16. NCCL needs a GPU: its tests are left out; for
# cuBLASLt there is one of the host.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
architecture=${1:-90a}
filter=${2:-'*cuda*:Cuda*:*/Cuda*:*StreamOrder*:LibraryLinearTest*:RefusingLibraryTest*:*GoldenTest*:*GoldenEmbeddingsTest*:*PromptLogprobsTest*:*GgufGoldenTest*:*QuantizedCheckpointTest.Logprobs*:*QuantizedModelTest*'}
filter+="-CudaGroupTest.OneRank*:CudaGroupTest.*SilentRank*"
device=cuda
if ((${architecture%[af]} < 80)); then
  device=cuda_f16
  filter=$(sed 's/\*cuda\*/*cuda_f16*/; s/:Cuda[*]:[^:]*Cuda[*]//' <<<"$filter")
fi

cd "$root"
tools/setup.sh
bazel build "--//kernels/cuda:architectures=$architecture" \
  //tests/gpu:device_tests_ptx //tests/gpu:wrapper_check_ptx \
  //tests/gpu:wrapper_check_emulated
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bazel-bin/tests/gpu/wrapper_check_emulated --write "$work/expected"
wrappers=$root/bazel-bin/tests/gpu/wrapper_check_ptx
(cd "$wrappers.runfiles/quire" && "$wrappers" --compare "$work/expected")

export QUIRE_TEST_DEVICE=$device QUIRE_PTX_SMS=${QUIRE_PTX_SMS:-4}
export QUIRE_CUDA_LIBS=tests/gpu/ptx
export GTEST_TOTAL_SHARDS
GTEST_TOTAL_SHARDS=$(nproc)
program=$root/bazel-bin/tests/gpu/device_tests_ptx
cd "$program.runfiles/quire"
shards=()
for ((shard = 0; shard < GTEST_TOTAL_SHARDS; ++shard)); do
  GTEST_SHARD_INDEX=$shard "$program" --gtest_filter="$filter" \
    >"$work/$shard" 2>&1 &
  shards+=($!)
done
failed=0
for shard in "${!shards[@]}"; do
  wait "${shards[shard]}" || failed=1
done
if ((failed)); then
  grep -hE -B 40 '^\[ +FAILED' "$work"/[0-9]* || tail -n 30 "$work"/[0-9]*
fi
num_passed=$(cat "$work"/[0-9]* | grep -cE '^\[ +OK ') || failed=1  # None.
echo "ptx: $num_passed passed on $architecture, exit code $failed"
exit "$failed"
