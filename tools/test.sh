#!/usr/bin/env bash
# Installs what is missing, builds everything and runs every test. Arguments go
# to `bazel test`. Ends with one line of counts; exits non-zero on any failure.
set -uo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh || exit

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

bazel test --test_summary=detailed --keep_going "$@" //... 2>&1 | tee "$log"
bazel_status=${PIPESTATUS[0]}
# "N tests passed" per target would count targets; test cases are what is told.
num_passed=$(sed -nE 's/^Test cases: finished with ([0-9]+) passing and ([0-9]+) failing.*/\1/p' "$log" | tail -1)
num_failed=$(sed -nE 's/^Test cases: finished with ([0-9]+) passing and ([0-9]+) failing.*/\2/p' "$log" | tail -1)
num_passed=${num_passed:-0}
num_failed=${num_failed:-0}
if ((bazel_status != 0)); then
  failed=1
  # A target that does not build, or times out, fails no test case.
  ((num_failed > 0)) || num_failed=1
fi

# The end-to-end tests use the official Python client, in an environment of
# their own.
venv=.venv/e2e
if ! cmp -s tests/e2e/requirements.txt "$venv/requirements.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv" &&
    "$venv/bin/pip" install -q -r tests/e2e/requirements.txt &&
    cp tests/e2e/requirements.txt "$venv/requirements.txt"
fi
bazel build //cli:quire 2>&1 | tail -3
e2e_log=$(mktemp)
trap 'rm -f "$log" "$e2e_log"' EXIT
"$venv/bin/python" -m pytest -q -rs -p no:cacheprovider tests/e2e 2>&1 |
  tee "$e2e_log"
((PIPESTATUS[0] == 0)) || failed=1
count() { grep -oE "[0-9]+ $1" "$e2e_log" | tail -1 | grep -oE '[0-9]+' || echo 0; }
num_passed=$((num_passed + $(count passed)))
num_failed=$((num_failed + $(count failed) + $(count error)))
num_skipped=$(count skipped)
((failed == 0 || num_failed > 0)) || num_failed=1

echo "$num_passed passed, $num_failed failed, $num_skipped skipped"
exit "$failed"
