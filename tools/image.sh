#!/usr/bin/env bash
# Builds the container image as an OCI archive, without a daemon:
#   tools/image.sh [--test] [--cuda] [--name NAME] [--output DIRECTORY]
# NAME (default: quire) gets the program's version as its tag; the archive is
# DIRECTORY/quire-VERSION.tar (default: image/). --cuda adds cuBLASLt and NCCL of
# this machine for NVIDIA GPUs, and -cuda to the tag. --test also runs the image,
# as tests/container/image_test.py says. Where there is a CUDA toolkit, either
# image has kernels for every GPU that is supported. Needs root, and Debian packages from the
# network; tools/setup.sh --image installs buildah and mmdebstrap.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# Of the unpacked files; the archive is compressed.
max_bytes=120000000

name=quire output=$root/image is_test=0 has_cuda=0
while (($# > 0)); do
  case $1 in
    --test) is_test=1 ;;
    --cuda) has_cuda=1 ;;
    --name) name=$2 && shift ;;
    --output) output=$2 && shift ;;
    *) echo "image: unknown argument $1" >&2 && exit 64 ;;
  esac
  shift
done

if ((EUID != 0)); then
  echo "image: needs root, so that the image's files are root's" >&2
  exit 69
fi
cd "$root"
tools/setup.sh --image
bazel build --//kernels/cuda:architectures=all //cli:quire
binary=bazel-bin/cli/quire
version=$("$binary" --version | awk 'NR == 1 { print $2 }')
description="LLM inference server" tag=$version
cuda_libraries=()
if ((has_cuda)); then
  if ! "$binary" --version | grep -q '^backends:.*cuda'; then
    echo "image: --cuda needs a CUDA toolkit (tools/setup.sh --cuda)" >&2
    exit 69
  fi
  for library in libcublasLt.so.13 libnccl.so.2; do
    path=$(find -L "${CUDA_HOME:-/usr/local/cuda}/lib64" \
      /usr/lib/x86_64-linux-gnu -maxdepth 1 -name "$library" 2>/dev/null |
      head -1)
    if [[ -z "$path" ]]; then
      echo "image: there is no $library" >&2
      exit 69
    fi
    cuda_libraries+=("$path")
  done
  max_bytes=$((max_bytes + 1000000000))
  tag=$version-cuda
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Equal sources and equal packages give an equal image.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y "$binary")
export SOURCE_DATE_EPOCH

# The packages that own the libraries which the program was linked with. What
# ldd finds below /usr/lib a package may have put below /lib, and vice versa.
packages=()
for library in $(ldd "$binary" | awk '$3 ~ /^\// { print $3 }'); do
  owner=$(dpkg-query -S "$library" "/usr$library" "${library#/usr}" \
    2>/dev/null | head -1) || true
  if [[ -z "$owner" ]]; then
    echo "image: $library belongs to no package" >&2
    exit 1
  fi
  packages+=("${owner%%:*}")
done
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")

# Only unpacked: no package's scripts run, and nothing of Debian is "installed".
context=$work/context
base=$context/base
mkdir "$context"
mmdebstrap --quiet --variant=extract --format=directory \
  --include="$(printf '%s,' "${packages[@]}")base-files" \
  --skip=output/dev,output/mknod,cleanup/apt "$suite" "$base"
# Scanners read versions here, where there is no package manager.
mkdir -p "$base/var/lib/dpkg/status.d"
for package in "$base"/var/cache/apt/archives/*.deb; do
  package_name=$(dpkg-deb -f "$package" Package)
  dpkg-deb -f "$package" >"$base/var/lib/dpkg/status.d/$package_name"
done
# Copyright notices stay. What goes: the awk that base-files wants, conversion
# tables, modules that nobody loads, documentation, and traces of this machine.
rm -rf "${base:?}"/usr/bin/* "$base"/var/lib/dpkg/status.d/mawk \
  "$base"/usr/share/doc/mawk "$base"/usr/lib/*/{gconv,ossl-modules,engines-3} \
  "$base"/usr/share/{base-files,gcc,gdb,info,lintian,locale,man} \
  "$base"/var/{backups,cache,log,lib/apt,lib/dpkg/status} "${base:?}"/dev/* \
  "$base"/etc/{apt,fstab,hostname,resolv.conf,skel,update-motd.d}
find "$base/usr/share/doc" -type f ! -name copyright -delete
find "$base/usr/share/doc" -type d -empty -delete
install -m 0755 "$binary" "$context/quire"
mkdir "$context/models"
cp -rL models/demo models/demo-draft "$context/models/"
chmod -R u=rwX,go=rX "$context/models"
cp deploy/container/Containerfile "$context/Containerfile"
if ((has_cuda)); then
  for path in "${cuda_libraries[@]}"; do
    install -m 0644 "$path" "$base/usr/lib/x86_64-linux-gnu/${path##*/}"
  done
  # What NVIDIA's container runtime goes by.
  cat >>"$context/Containerfile" <<'TEXT'
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
TEXT
fi

build=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
"${build[@]}" bud --quiet --isolation chroot --layers=false \
  --timestamp "$SOURCE_DATE_EPOCH" \
  --label org.opencontainers.image.title=quire \
  --label org.opencontainers.image.description="$description" \
  --label org.opencontainers.image.version="$tag" \
  --label org.opencontainers.image.revision="$(git describe --always --abbrev=40 --dirty 2>/dev/null)" \
  --label org.opencontainers.image.licenses=Apache-2.0 \
  --file "$context/Containerfile" --tag "$name:$tag" \
  "$context" >/dev/null

mkdir -p "$output"
archive=$output/quire-$tag.tar
rm -f "$archive"
"${build[@]}" push --quiet "$name:$tag" "oci-archive:$archive:$name:$tag"

container=$("${build[@]}" from --quiet "$name:$tag")
num_bytes=$(du -sb "$("${build[@]}" mount "$container")" | cut -f1)
"${build[@]}" rm "$container" >/dev/null
echo "$archive: $name:$tag, $((num_bytes / 1000000)) MB unpacked," \
  "$(($(stat -c %s "$archive") / 1000000)) MB compressed"
if ((num_bytes > max_bytes)); then
  echo "image: larger than $((max_bytes / 1000000)) MB" >&2
  exit 1
fi
if ((is_test)); then
  python3 tests/container/image_test.py "$archive"
fi
