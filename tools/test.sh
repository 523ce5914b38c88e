#!/usr/bin/env bash
# Installs what is missing, builds everything and runs every test. Arguments go
# to `bazel test`. Ends with one line of counts; exits non-zero on any failure.
# With --config=asan or --config=tsan first (tools/setup.sh --dev) only the tests
# that tools/sanitizers/run.sh lists; further arguments may name other targets.
set -uo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  --config=asan | --config=tsan) exec tools/sanitizers/run.sh "${1#--config=}" "${@:2}" ;;
esac
tools/setup.sh || exit

failed=0
# Reports of earlier runs must not be counted.
rm -rf bazel-testlogs/*/
# One configuration for tests, image and package: what is released.
architectures=--//kernels/cuda:architectures=all
bazel test --keep_going "$architectures" "$@" //... || failed=1
# What failed is said again at the end: much is printed in between.
failures=$(find -L bazel-testlogs -name test.xml -print0 |
  xargs -0 grep -lE '<(failure|error)' | sort)
read -r num_passed num_failed num_skipped < <(
  bazel query --noshow_progress 'tests(//...)' 2>/dev/null |
    python3 tools/count_test_cases.py
)

# The end-to-end tests use the official Python client, in an environment of
# their own.
venv=.venv/e2e
if ! cmp -s tests/e2e/requirements.txt "$venv/requirements.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv" &&
    "$venv/bin/pip" install -q -r tests/e2e/requirements.txt &&
    cp tests/e2e/requirements.txt "$venv/requirements.txt" || failed=1
fi
report=$(mktemp)
trap 'rm -f "$report"' EXIT
bazel build "$architectures" //cli:quire || failed=1
"$venv/bin/python" -m pytest -q -rs -p no:cacheprovider \
  tests/e2e tests/k8s | tee "$report"
((PIPESTATUS[0] == 0)) || failed=1
count() { tail -1 "$report" | grep -oE "[0-9]+ $1" | grep -oE '[0-9]+' || echo 0; }
num_passed=$((num_passed + $(count passed)))
num_failed=$((num_failed + $(count failed) + $(count error)))
num_skipped=$((num_skipped + $(count skipped)))

# The container image, where a machine may build one: as root, with mounts.
image=$(mktemp -d)
trap 'rm -rf "$report" "$image"' EXIT
if ((EUID == 0)) && mountpoint -q / && unshare --mount true 2>/dev/null; then
  if tools/image.sh --test --output "$image"; then
    num_passed=$((num_passed + 1))
  else
    num_failed=$((num_failed + 1))
  fi
else
  echo "skipped: the container image is built by root on a machine with mounts"
  num_skipped=$((num_skipped + 1))
fi
# The package, in a root with glibc only, where a machine makes user namespaces.
if unshare --user --map-root-user --net --mount true 2>/dev/null; then
  if tools/package.sh --test --output "$image"; then
    num_passed=$((num_passed + 1))
  else
    num_failed=$((num_failed + 1))
  fi
else
  echo "skipped: the package is run in a user namespace"
  num_skipped=$((num_skipped + 1))
fi

# The kernels of aarch64, emulated: a minute or two once it is built.
tools/cross_aarch64.sh
case $? in
  0) num_passed=$((num_passed + 1)) ;;
  69)
    echo "skipped: the kernels of aarch64 need tools/setup.sh --aarch64"
    num_skipped=$((num_skipped + 1))
    ;;
  *) num_failed=$((num_failed + 1)) ;;
esac
# A minute of fuzzing, from the committed corpus; minutes more to build.
tools/fuzz.sh --brief
case $? in
  0) num_passed=$((num_passed + 1)) ;;
  69)
    echo "skipped: fuzzing needs tools/setup.sh --dev"
    num_skipped=$((num_skipped + 1))
    ;;
  *) num_failed=$((num_failed + 1)) ;;
esac
# Whatever else went wrong is a failure, too.
((failed == 0 || num_failed > 0)) || num_failed=1
((num_failed == 0)) || failed=1

for failure in $failures; do
  echo "failed: ${failure%/test.xml}"
  tail -n 30 "${failure%.xml}.log"
done
echo "$num_passed passed, $num_failed failed, $num_skipped skipped"
exit "$failed"
