#!/usr/bin/env bash
# Installs every Debian package that the build and the tests need. Idempotent;
# as root, or with sudo. `--dev` adds clang for sanitizers and fuzzers, `--image`
# what tools/image.sh needs, `--aarch64` what tools/cross_aarch64.sh needs: the
# cross compiler, qemu-user, and the libraries unpacked into a sysroot
# (QUIRE_AARCH64_SYSROOT, or ~/.cache/quire/aarch64-sysroot).
set -euo pipefail

libraries=(
  libabsl-dev libbrotli-dev libcli11-dev libcpp-httplib-dev libgmock-dev
  libgtest-dev libpcre2-dev libprotobuf-dev libsentencepiece-dev libspdlog-dev
  libssl-dev libutf8proc-dev libxxhash-dev libyaml-cpp-dev nlohmann-json3-dev
  prometheus-cpp-dev zlib1g-dev
)
packages=(
  bazel-bootstrap bazel-rules-java bazel-rules-proto bazel-skylib
  chromium-headless-shell g++ iproute2 pkg-config python3 python3-venv
  "${libraries[@]}"
)
if [[ "${1:-}" == "--dev" ]]; then
  packages+=(clang-19 clang-format libclang-rt-19-dev)
elif [[ "${1:-}" == "--image" ]]; then
  packages+=(buildah mmdebstrap python3-yaml)
elif [[ "${1:-}" == "--aarch64" ]]; then
  packages+=(g++-12-aarch64-linux-gnu mmdebstrap qemu-user)
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ "$status" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]} > 0)); then
  as_root=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "setup: not root and no sudo; install: ${missing[*]}" >&2
      exit 69
    fi
    as_root=(sudo)
  fi
  echo "setup: installing ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}" >&2
fi

# Only unpacked, by whoever runs this: no package of the other architecture is
# installed and none of its scripts run.
if [[ "${1:-}" == "--aarch64" ]]; then
  sysroot=${QUIRE_AARCH64_SYSROOT:-$HOME/.cache/quire/aarch64-sysroot}
  if [[ ! -e "$sysroot/usr/include" ]]; then
    echo "setup: unpacking $sysroot" >&2
    mkdir -p "$(dirname "$sysroot")"
    unpacked=$(mktemp -d "$(dirname "$sysroot")/unpacked.XXXXXX")
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --arch=arm64 --variant=extract --format=directory \
      --include="$(printf '%s,' "${libraries[@]}")libstdc++-12-dev" \
      --skip=output/dev,output/mknod "$suite" "$unpacked/root" >&2
    mv "$unpacked/root" "$sysroot"
    rmdir "$unpacked"
  fi
fi

if [[ "${1:-}" == "--cuda" ]]; then
  if [[ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]]; then exit 0; fi
  cuda=$(cd "$(dirname "$0")/.." && pwd)/.cache/cuda
  if [[ ! -x "$cuda/nvidia/cu13/bin/nvcc" ]]; then
    echo "setup: unpacking the CUDA toolkit to $cuda" >&2
    unpacked=$cuda.$$
    mkdir -p "$unpacked"
    python3 -m venv "$unpacked/venv"
    "$unpacked/venv/bin/pip" install -q --target "$unpacked/packages" \
      'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' \
      'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
      'nvidia-cuda-cccl==13.0.*' 'nvidia-cublas==13.1.*' \
      'nvidia-nccl-cu13==2.28.*' >&2
    # As a toolkit is laid out.
    toolkit=$unpacked/packages/nvidia/cu13
    ln -s lib "$toolkit/lib64"
    ln -s ../../nccl/include/nccl.h "$toolkit/include/"
    ln -s ../../nccl/lib/libnccl.so.2 "$toolkit/lib/"
    rm -rf "$cuda"
    mv "$unpacked/packages" "$cuda"
    rm -rf "$unpacked"
  fi
  echo "setup: export CUDA_HOME=$cuda/nvidia/cu13" >&2
fi
