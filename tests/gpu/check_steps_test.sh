#!/usr/bin/env bash
# check_steps_test.sh CHECK: what check.sh makes of programs that hang, die, fail
# and lack libraries. The programs are invented, and behave as the file
# `behaviour` beside them says; that the script's commands are right is what
# `check.sh --emulated` tests.
set -euo pipefail
check=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
programs=$work/programs
mkdir -p "$programs" "$work/site/nvidia/cublas/lib"
touch "$work/site/nvidia/cublas/lib/libcublasLt.so.13"

# Programs know the script's steps by their filters and options.
write_program() {  # name
  cat >"$programs/$1"
  chmod +x "$programs/$1"
}
write_program wrapper_check_emulated <<'SH'
#!/bin/bash
: >"$2"
SH
write_program wrapper_check_gpu <<'SH'
#!/bin/bash
behaviour=$(cat "${0%/*}/behaviour")
if [[ $behaviour == no_gpu ]]; then echo "no device" >&2; exit 69; fi
echo "24 wrappers, 0 failed, 0 skipped on compute capability 9.0"
SH
write_program nccl_test <<'SH'
#!/bin/bash
behaviour=$(cat "${0%/*}/behaviour")
# What it started holds on to the output, too.
[[ $behaviour != bad ]] || { trap '' TERM; tail -f /dev/null & wait; tail -f /dev/null; }
echo "NCCL 2.28.9, 1 rank"
SH
write_program device_tests_gpu <<'SH'
#!/bin/bash
behaviour=$(cat "${0%/*}/behaviour") filter=${1#--gtest_filter=} num=0 code=0
run() {  # name
  [[ ":${filter#*-}" != *":$1:"* || $filter != *-* ]] || return 1
  echo "[ RUN      ] $1"
}
pass() { run "$1" && num=$((num + 1)) && echo "[       OK ] $1 (0 ms)"; }
if [[ $behaviour == bad && $filter == '*cuda*'* ]]; then
  pass Cuda/ConformanceTest.Norm/cuda_bf16
  if run Cuda/ConformanceTest.Linear/cuda_bf16; then
    echo "the cause of it"
    kill -ABRT $$
  fi
elif [[ $behaviour == bad && $filter == *GraphsTest* ]]; then
  run CudaGraphsTest.Replays
  trap '' TERM
  while :; do tail -f /dev/null; done
elif [[ $behaviour == bad && $filter == CudaRoundingTest* ]]; then
  seq -f 'line %.0f of many' 300
  run CudaRoundingTest.OfACache
  echo "[  FAILED  ] CudaRoundingTest.OfACache (1 ms)"
  code=1
fi
pass Cuda/SomeTest.Last/cuda_bf16
echo "[==========] $((num + code)) tests from 1 test suite ran. (0 ms total)"
echo "[  PASSED  ] $num tests."
exit $code
SH
write_program quire <<'SH'
#!/bin/bash
behaviour=$(cat "${0%/*}/behaviour")
library=", cuBLASLt 13.1.0"
[[ -e ${QUIRE_CUDA_LIBS-}/libcublasLt.so.13 ]] || library=
case "$1 ${2-} $*" in
  generate*)
    [[ -n $library ]] || echo "quire: without cuBLASLt: it is in none of them" >&2
    echo "7 + 5 = 12"
    ;;
  "serve "*)
    echo "what the server said" >&2
    [[ $behaviour != bad ]] || { trap '' TERM; exec -a "$0" tail -f /dev/null; }
    exec python3 -u "${0%/*}/server.py"
    ;;
  *--filter\ ceilings*)
    echo "cuda (NVIDIA X, compute capability 9.0, 132 SMs$library), weights bf16"
    ;;
  *--save-model*) echo "{}" >"${*: -1}/config.json" ;;
  *--save-head*) ;;
  "bench kernels "*)
    echo "ceilings    read 3500.0 [1.0, 2.0] GB/s, copy 2900.0 [1.0, 2.0] GB/s, bf16 700.0 TFLOP/s"
    echo "qwen3-8b attention 16x1 of 4096   100.0 us  2700.0 GB/s  1.000 TFLOP/s  77 [1, 2] % of read"
    echo "ceilings    read 3500.0 [1.0, 2.0] GB/s, copy 3100.0 [1.0, 2.0] GB/s, bf16 700.0 TFLOP/s"
    ;;
  "bench drafter "*) echo "Cost of the drafter: 1.0 ms, 14.0 % of the whole step" ;;
  "bench throughput "*) echo "Host per step: 40.0 us, at most 4.0 us of it" ;;
  "bench startup "*) echo "exec to ready        900.0 [1.0, 2.0] ms" ;;
  "bench serve "*) echo "Median TTFT (ms):    8.00" ;;
  "bench model "*)
    echo "| m | 1 GiB | 1 B | cuda | tg128 | 171.00 ± 1.00 | 80 % | 86 % | - |"
    for num_seqs in 64 128 256; do
      for gen in 256 1024; do
        echo "| m | 1 GiB | 1 B | cuda | tg$gen x $num_seqs @ d128 | 9$num_seqs.00 ± 1.00 |"
      done
    done
    # After what it measured.
    [[ $behaviour != bad || $* != *fp8* ]] || exit 70
    ;;
esac
SH
cat >"$programs/server.py" <<'PY'
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"content": "12"}).encode())

    def log_message(self, *arguments):
        pass

import signal, sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"address http://127.0.0.1:{server.server_address[1]}")
print("ready in 0.1 s")
server.serve_forever()
PY

# Tools of a machine with a GPU would be run with the invented programs.
mkdir "$work/tools"
printf '#!/bin/bash\nexit 1\n' >"$work/tools/nvidia-smi"
printf '#!/bin/bash\nshift 4\nexec "$@"\n' >"$work/tools/compute-sanitizer"
chmod +x "$work/tools/"*
unset QUIRE_CUDA_LIBS CUDA_VISIBLE_DEVICES
export PYTHONPATH=$work/site PATH=$work/tools:$PATH TMPDIR=$work

# Where the script is while it runs, if it has no goldens beside it.
tree=$(realpath "$(dirname "$check")/../..")
files_of_tree=$(ls -A "$tree")

fail() {
  cat "$work/out"
  echo "check_steps_test: $*"
  exit 1
}
run_check() {  # behaviour, wanted exit code, options...
  local code=0 behaviour=$1 wanted=$2
  shift 2
  echo "$behaviour" >"$programs/behaviour"
  # In a folder of its own: the report's name is the caller's.
  (cd "$work" && "$check" --programs "$programs" --output report.txt "$@") \
    >"$work/out" 2>&1 || code=$?
  ((code == wanted)) || fail "$behaviour $*: exit code $code, not $wanted"
  [[ $(ls -A "$tree") == "$files_of_tree" ]] || fail "$behaviour $*: a stray file"
  # What hangs would keep the GPU's memory.
  ! pgrep -f "$programs/" || fail "$behaviour $*: programs run on"
}
expect() {  # pattern of a line, file
  grep -qE -- "$1" "$work/$2" || fail "no '$1' in $2"
}
expect_none() {
  ! grep -qE -- "$1" "$work/$2" || fail "'$1' in $2"
}

run_check no_gpu 69 --no-bench
expect 'no GPU that can be checked' out

# ---- All well.
run_check good 0 --no-bench
expect "report goes to $work/report.txt" out
expect '^PASS  wrappers' report.txt
expect '^PASS  libraries .*cuBLASLt 13' report.txt
expect '^PASS  operations .* 1 tests' report.txt
expect '^PASS  answers over HTTP .* 12$' report.txt
expect '^PASS  memcheck' report.txt
expect '^PASS  racecheck' report.txt
expect_none '^(FAIL|LATE)' report.txt
[[ ! -e $work/report.txt.failures ]] || fail "failures of nothing"

run_check good 0 --only-bench
expect '^MISS qwen3-8b, 64 at once, 1024 out .* 964.00 tok/s' report.txt
# 2700 GB/s of a copy's 2900 before and 3100 behind.
expect '^MET .*attention of 16 x 4096, of copy bandwidth .* 90.0 %' report.txt
expect_none '^(FAIL|LATE)' report.txt

# ---- Steps fail, each in its way, and the others run. Their limits are seconds.
run_check bad 1 --no-bench --limits 40
expect '^FAIL  operations .*ConformanceTest.Linear/cuda_bf16 crashed' report.txt
expect '^the cause of it' report.txt.failures
# The test behind the one that died ran.
expect 'OK .*SomeTest.Last' report.txt.failures
expect '^FAIL  rounding .* CudaRoundingTest.OfACache$' report.txt
expect '^line 1 of many' report.txt.failures
expect '^line 300 of many' report.txt.failures
expect '^FAIL  graphs .*longer than 4 s.*CudaGraphsTest.Replays' report.txt
expect '^FAIL  NCCL .*longer than' report.txt
expect '^FAIL  answers over HTTP .*longer than 5 s: what the server said' report.txt
for name in 'goldens, bf16' equivalence speculation 'NCCL in the graph' memcheck; do
  expect "^PASS  $name" report.txt
done

rm -r "$work/site/nvidia"
run_check good 1 --no-bench
expect '^FAIL  libraries .*without cuBLASLt: it is in none' report.txt
expect '^PASS  operations' report.txt

# ---- What was measured before a failure is told.
run_check bad 1 --only-bench --limits 30
expect '^FAIL  llama-3.1-8b, fp8 .*exit code 70' report.txt
expect '^MISS .*llama-3.1-8b, fp8, one sequence .*171.00' report.txt
expect '^FAIL  server of qwen3-8b .*longer than' report.txt
expect '^PASS  kernels of qwen3-8b' report.txt
expect_none 'first token' report.txt
# In the whole, fewer tokens out, and its figures say so.
mkdir -p "$work/site/nvidia/cublas/lib"
touch "$work/site/nvidia/cublas/lib/libcublasLt.so.13"
run_check good 0
expect '^MISS qwen3-8b, 64 at once, 256 out ' report.txt
expect '^PASS  racecheck' report.txt
# Without time for it, what the whole's plan lacks is no failure.
run_check good 0 --limits 2000
expect '^SKIP  racecheck .*no time was left' report.txt
echo "check_steps_test: passed"
