#!/usr/bin/env bash
# Installs every Debian package that the build and the tests need. Idempotent;
# as root, or with sudo. `--dev` adds clang for sanitizers and fuzzers, `--image`
# what tools/image.sh needs.
set -euo pipefail

packages=(
  bazel-bootstrap bazel-rules-java bazel-rules-proto bazel-skylib
  chromium-headless-shell g++
  libabsl-dev libbrotli-dev libcli11-dev libcpp-httplib-dev libgmock-dev
  libgtest-dev libpcre2-dev libprotobuf-dev libsentencepiece-dev libspdlog-dev
  libssl-dev libutf8proc-dev libxxhash-dev libyaml-cpp-dev nlohmann-json3-dev
  pkg-config prometheus-cpp-dev python3 python3-venv zlib1g-dev
)
if [[ "${1:-}" == "--dev" ]]; then
  packages+=(clang-19 clang-format libclang-rt-19-dev)
elif [[ "${1:-}" == "--image" ]]; then
  packages+=(buildah mmdebstrap python3-yaml)
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [[ "$status" == "install ok installed" ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then exit 0; fi

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
