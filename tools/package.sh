#!/usr/bin/env bash
# Packs the program into a folder that runs on any x86-64 Linux of the same or a
# newer glibc, without installing anything:
#   tools/package.sh [--output DIRECTORY] [--architectures LIST]
#                    [--with-cuda-libraries | --check-only] [--test]
# DIRECTORY (default: package/) gets quire-VERSION-linux-x86_64/ and the same as
# a .tar.gz: the program, the shared libraries it needs, the demo models and,
# where there is a CUDA toolkit, the check of a GPU (gpu-check/check.sh).
# Kernels are compiled for every GPU that is supported; --architectures names
# some (kernels/cuda/BUILD.bazel). cuBLASLt and NCCL are left out, and found at
# run time where they are installed, unless --with-cuda-libraries copies them.
# --check-only packs nothing but the programs of that check, and leaves nothing
# but DIRECTORY/quire-check.tar.gz. With them the check runs from this tree, on a
# machine without a compiler: tests/gpu/check.sh --programs quire-check/bin.
# --test runs the packed program in a root of its own that has glibc and nothing
# else; with --check-only, the check from this tree: without a GPU it must say so.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# Of the archive, without the libraries of CUDA: for one architecture, and for
# all seven, whose kernels are in the program and in the tests of the device.
max_bytes_one=$((64 << 20)) max_bytes_all=$((72 << 20))
# Of programs and the tree's files, of which the latter have 41 MiB: what can be
# sent to a machine may be limited, too.
max_bytes_check_and_tree=$((63 << 20))

output=$root/package architectures=all has_libraries=0 is_check_only=0 is_test=0
while (($# > 0)); do
  case $1 in
    --output) output=${2:?package: --output needs a folder} && shift ;;
    --architectures) architectures=${2:?package: --architectures needs a list} && shift ;;
    --with-cuda-libraries) has_libraries=1 ;;
    --check-only) is_check_only=1 ;;
    --test) is_test=1 ;;
    *) echo "package: unknown argument $1" >&2 && exit 64 ;;
  esac
  shift
done
mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$root"
tools/setup.sh
cuda=${CUDA_HOME:-/usr/local/cuda}
targets=(//cli:quire)
checks=()
if [[ -x $cuda/bin/nvcc ]]; then
  checks=(wrapper_check_emulated wrapper_check_gpu device_tests_gpu nccl_test)
  targets+=("${checks[@]/#///tests/gpu:}")
elif ((is_check_only)); then
  echo "package: --check-only needs a CUDA toolkit (tools/setup.sh --cuda)" >&2
  exit 69
fi
bazel build "--//kernels/cuda:architectures=$architectures" "${targets[@]}"

version=$(bazel-bin/cli/quire --version | awk 'NR == 1 { print $2 }')
name=quire-$version-linux-$(uname -m)
((!is_check_only)) || name=quire-check
folder=$output/$name
rm -rf "$folder" "$output/$name.tar.gz"
mkdir -p "$folder"/{bin,lib,licenses}

# Symbols stay in the build's own files.
install -m 0755 bazel-bin/cli/quire "$folder/bin/quire"
for check in "${checks[@]}"; do
  install -m 0755 "bazel-bin/tests/gpu/$check" "$folder/bin/$check"
done
strip --strip-unneeded "$folder"/bin/*
if ((!is_check_only)); then
  mkdir "$folder/models"
  cp -rL models/demo models/demo-draft "$folder/models/"
fi
if ((${#checks[@]} > 0 && !is_check_only)); then
  mkdir -p "$folder/gpu-check/tests/testdata"
  install -m 0755 tests/gpu/check.sh "$folder/gpu-check/"
  cp -rL tests/testdata/goldens tests/testdata/quantized \
    "$folder/gpu-check/tests/testdata/"
  ln -s ../models "$folder/gpu-check/models"
fi

# The libraries, but for those of glibc, which belong to the system's loader:
# a program cannot bring another libc than its loader's. The programs find them
# by their rpath (.bazelrc).
is_of_glibc() {
  [[ $1 =~ ^(ld-linux.*|linux-vdso|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl|nsl|BrokenLocale))\.so ]]
}
declare -A libraries
while read -r library path; do
  is_of_glibc "$library" || libraries[$library]=$path
done < <(ldd "$folder"/bin/* | awk '$2 == "=>" { print $1, $3 }')
for library in "${!libraries[@]}"; do
  path=${libraries[$library]}
  install -m 0644 "$path" "$folder/lib/$library"
  owner=$(dpkg-query -S "$path" "/usr$path" "${path#/usr}" 2>/dev/null |
    head -1) || true
  notice=/usr/share/doc/${owner%%:*}/copyright
  if [[ -z $owner || ! -e $notice ]]; then
    echo "package: $path has no copyright notice" >&2
    exit 1
  fi
  cp -L "$notice" "$folder/licenses/${owner%%:*}"
done
cp LICENSE "$folder/licenses/quire"

if ((has_libraries)); then
  for library in libcublasLt.so.13 libnccl.so.2; do
    path=$(find -L "$cuda/lib64" /usr/lib/x86_64-linux-gnu -maxdepth 1 \
      -name "$library" 2>/dev/null | head -1)
    if [[ -z $path ]]; then
      echo "package: there is no $library" >&2
      exit 69
    fi
    install -m 0644 "$(readlink -f "$path")" "$folder/lib/$library"
  done
fi
((is_check_only)) || cat >"$folder/README" <<TEXT
quire $version. Needs glibc $(ldd --version | awk 'NR == 1 { print $NF }') or newer and nothing else:
  bin/quire serve                  the demo model on port 8080
  bin/quire serve /models/NAME     a model's directory
  gpu-check/check.sh               checks an NVIDIA GPU (driver 580 or newer)
licenses/ has the notices of what is in lib/.
TEXT

tar -C "$output" --sort=name --owner=0 --group=0 --numeric-owner \
  -cf - "$name" | gzip -9n >"$output/$name.tar.gz"
num_bytes=$(stat -c %s "$output/$name.tar.gz")
echo "$output/$name.tar.gz: $(du -sm "$folder" | cut -f1) MiB unpacked," \
  "$((num_bytes >> 20)) MiB compressed"
max_bytes=$max_bytes_one
[[ $architectures != all ]] || max_bytes=$max_bytes_all
if ((is_check_only)); then
  tree_bytes=$(git ls-files -z | xargs -0 stat -c %s | awk '{ n += $1 } END { print n }')
  max_bytes=$((max_bytes_check_and_tree - tree_bytes))
fi
if ((!has_libraries && num_bytes > max_bytes)); then
  echo "package: larger than $((max_bytes >> 20)) MiB" >&2
  exit 1
fi
if ((is_check_only)); then
  # What is sent along is the archive alone.
  rm -r "$folder"
  ((is_test)) || exit 0
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  tar -C "$work" -xzf "$output/$name.tar.gz"
  code=0
  tests/gpu/check.sh --no-bench --programs "$work/$name/bin" || code=$?
  ((code == 0 || code == 69))
elif ((is_test)); then
  tests/container/package_test.sh "$output/$name.tar.gz"
fi
