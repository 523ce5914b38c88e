#!/usr/bin/env bash
# Cross-builds for aarch64 and runs tests of the CPU backend under qemu-user:
#   tools/cross_aarch64.sh [--all | --build-only] [bazel test options]
# The default is what takes a minute; --all adds the slow ones; --build-only
# builds the program, bazel-aarch64-bin/cli/quire. Run that with
#   qemu-aarch64 -cpu max -L ~/.cache/quire/aarch64-sysroot ...
# tools/setup.sh --aarch64 installs the compiler, qemu and the sysroot.
set -euo pipefail
cd "$(dirname "$0")/.."
sysroot=${QUIRE_AARCH64_SYSROOT:-$HOME/.cache/quire/aarch64-sysroot}

tests=(
  //engine/base:thread_pool_test
  //kernels:dtype_test //kernels:reference_test //kernels:sampling_test
  //kernels/cpu:cpu_backend_test //kernels/cpu:elementwise_test
  //kernels/cpu:isa_test //kernels/cpu:logit_processors_test
  //kernels/cpu:matmul_test //kernels/cpu:quant_matmul_test
  //tests:backend_conformance_test //tests:backend_invariance_test
)
slow_tests=(
  //kernels/cpu:attention_test //kernels/cpu:fp8_matmul_test
  //kernels/cpu:sampling_test
  //tests:backend_attention_test //tests:backend_pooling_test
  //tests:backend_sampling_test //tests:equivalence_test
  //tests:golden_embeddings_test //tests:golden_logits_test
)

if [[ ! -e "$sysroot/usr/include" ]] || ! command -v qemu-aarch64 >/dev/null ||
  ! command -v aarch64-linux-gnu-g++-12 >/dev/null; then
  echo "cross_aarch64: run tools/setup.sh --aarch64 first" >&2
  exit 69
fi
case ${1:-} in
  --build-only) shift && exec bazel build --config=aarch64 "$@" //cli:quire ;;
  --all) shift && tests+=("${slow_tests[@]}") ;;
esac
# -cpu max has every extension; the tests run each instruction set in turn. The
# emulated GPU is the same code on every host: emulating its host says nothing.
exec bazel test --config=aarch64 --keep_going --test_timeout=900 \
  --test_filter='-*cuda*' \
  --run_under="$(command -v qemu-aarch64) -cpu max -L $sysroot" \
  "$@" "${tests[@]}"
