#!/usr/bin/env bash
# Checks quire on this machine's GPU: the wrappers of instructions against their
# emulation, the libraries, every operation against the reference, every family
# of models against transformers' goldens and the CPU, equal answers in any
# company, the program over HTTP, memory errors and races, and then the
# benchmarks. (What the machine code must look like the build machine knows:
# sass_check.sh.)
#   check.sh [--no-bench | --only-bench] [--seconds N] [--limits PERCENT]
#            [--programs DIRECTORY] [--output FILE]
#                          from a folder of tools/package.sh, or from the tree,
#                          with the programs of DIRECTORY (package.sh --check-only)
#   check.sh --emulated    the same steps on the emulation, as far as it goes, and
#                          smallest shapes: checks this script and its commands
#   check.sh --plan        the steps of a GPU with their limits, and the sum
# Each step has a limit (in percent of the plan's with --limits); together they
# stay below ten minutes, and so does the whole (--seconds, 590): correctness
# first, then the figures in the order of the table of targets, then, in the
# whole, what its plan has no room for, if time is left. A step for which no time
# is left is LATE, which is a failure; what was found before it is kept, and a
# step that hangs or dies keeps no other from running. Benchmarks write
# checkpoints of up to 16 GB to TMPDIR, one after the other.
# All but NCCL's step use one GPU: the first, or the first of
# CUDA_VISIBLE_DEVICES.
# Prints a table and writes it to FILE after every step, and the outputs of steps
# that failed to FILE.failures; figures stand beside their targets on an H100,
# and one that misses its target is no failure. Exit code: 0 if nothing failed, 1
# if something did, 69 without a GPU, 73 if FILE cannot be written. What the
# machine has no tool for is a SKIP.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

is_emulated=0 is_plan=0 has_checks=1 has_bench=1 output='' total_seconds=590
limit_percent='' programs=''
while (($# > 0)); do
  case $1 in
    --emulated) is_emulated=1 ;;
    --no-bench) has_bench=0 ;;
    --only-bench) has_checks=0 ;;
    --plan) is_plan=1 ;;
    --seconds) total_seconds=${2:?check: --seconds needs a number} && shift ;;
    --limits) limit_percent=${2:?check: --limits needs a number} && shift ;;
    --programs)
      programs=$(realpath -m "${2:?check: --programs needs a folder}") && shift
      ;;
    --output)
      output=$(realpath -m "${2:?check: --output needs a file}") && shift
      ;;
    *) echo "check: unknown argument $1" >&2 && exit 64 ;;
  esac
  shift
done
is_whole=$((has_checks && has_bench))
# The emulation of a GPU is slow, on machines that do other things. Checks alone
# have time for half as much again.
if ((is_emulated)); then
  limit_percent=${limit_percent:-1500} total_seconds=3000
elif ((!has_bench)); then
  limit_percent=${limit_percent:-150}
fi
limit_percent=${limit_percent:-100}
if [[ ! $total_seconds$limit_percent =~ ^[0-9]+$ ]]; then
  echo "check: --seconds and --limits are whole numbers" >&2
  exit 64
fi

# In a package programs lie in ../bin and the models' folder is the package; in
# the tree and in the runfiles of a test they lie where Bazel built them, or
# where a package of programs alone was unpacked.
if [[ -x $here/../bin/quire ]]; then
  root=$(cd "$here/.." && pwd)
else
  root=$(cd "$here/../.." && pwd)
fi
# If there is none, the place where it should be.
program() {
  local folder folders=("$root"/{bin,tests/gpu,tests,cli}
    "$root"/bazel-bin/{tests/gpu,tests,cli})
  [[ -z $programs ]] || folders=("$programs")
  for folder in "${folders[@]}"; do
    if [[ -x $folder/$1 && -f $folder/$1 ]]; then
      echo "$folder/$1"
      return
    fi
  done
  echo "${folders[0]}/$1"
  return 1
}
# What is measured and compared is one GPU: `auto` would take all.
all_gpus=(env -u CUDA_VISIBLE_DEVICES)
if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
  all_gpus=(env CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES")
else
  export CUDA_DEVICE_ORDER=PCI_BUS_ID  # As nvidia-smi counts them.
fi
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}

cd "$here" || exit 1
[[ -d tests/testdata/goldens ]] || cd "$root" || exit 1

# A model of 8B is written; memory is faster than a disk.
if ((has_bench && !is_emulated)) && [[ -z ${TMPDIR:-} ]] &&
  (($(df --output=avail -B 1G /dev/shm 2>/dev/null | tail -1) >= 24)); then
  export TMPDIR=/dev/shm
fi
work=$(mktemp -d)
failures=${output:-$work/report}.failures
server='' keeper=''
clean_up() {
  [[ -z $keeper ]] || kill "$keeper" 2>/dev/null
  [[ -z $server ]] || kill "$server" 2>/dev/null
  rm -rf "$work"
}
trap clean_up EXIT
if [[ -n $output ]] && ((!is_plan)); then
  rm -f "$failures"
  if ! { mkdir -p "${output%/*}" && : >"$output"; }; then
    echo "check: $output cannot be written" >&2
    exit 73
  fi
fi
if ((!is_plan)); then
  if [[ -n $output ]]; then
    echo "check: the report goes to $output, what failed to $failures"
  else
    echo "check: without --output the report and the ends of what failed go here"
  fi
  echo "check: temporary files in $work," \
    "$(df --output=avail -B 1G "$work" | tail -1 | tr -d ' ') GiB free"
fi
table=() targets=()
num_failed=0 num_skipped=0
result=''  # Of the last step.
started=$SECONDS

record() {  # result, step, seconds, note
  ((!is_plan)) || return 0
  result=$1
  table+=("$(printf '%-5s %-34s %5s s  %s' "$1" "$2" "$3" "$4")")
  echo "${table[-1]}"
  case $1 in
    FAIL | LATE) num_failed=$((num_failed + 1)) ;;
    SKIP) num_skipped=$((num_skipped + 1)) ;;
  esac
  write_output
}
# All there is so far: a run that is cut off leaves it.
write_output() {
  [[ -n $output ]] || return 0
  { printf '%s\n' "${table[@]}" "${targets[@]}"
    cat "$work/figures" 2>/dev/null; } >"$output"
}
skip() { record SKIP "$1" 0 "$2"; }
# Seconds that a step may take: its limit, or what is left of all. Without
# enough to begin, it is LATE; but in the whole a spare step is skipped unless
# all of its time is left.
plan=() allowed=0 is_spare=0
limit_of() { echo $((($1 * limit_percent + 99) / 100)); }
allow() {  # name, limit
  local limit left
  limit=$(limit_of "$2")
  if ((is_plan)); then
    ((is_spare && is_whole)) && limit="+$limit"
    plan+=("$limit $1")
    return 1
  fi
  left=$((total_seconds - (SECONDS - started)))
  if ((is_spare && is_whole && left < limit)); then
    skip "$1" "no time was left: --no-bench and --only-bench run it"
    return 1
  fi
  allowed=$((left < limit ? left : limit))
  ((allowed >= 5 || allowed >= limit)) && return 0
  record LATE "$1" 0 "no time was left"
  return 1
}
# Runs a command for at most `limit` seconds, with its output in $log, and puts
# its exit code into $code. Nothing that it started outlives it. Fails if there
# was no time for it.
log=$work/log code=0 step_seconds=0
attempt() {  # name, limit, command...
  local begin=$SECONDS child
  : >"$log"
  allow "$1" "$2" || return 1
  shift 2
  timeout -k 5 "$allowed" "$@" >"$log" 2>&1 &
  child=$!
  # The shell has its own word about what a signal ended.
  wait "$child" 2>/dev/null
  code=$?
  kill -KILL -- "-$child" 2>/dev/null  # Its own process group.
  step_seconds=$((SECONDS - begin))
}
# What a log says of a failure: the tests that failed, or its last line.
note_of_failure() {
  local names
  names=$(sed -nE \
    -e 's/^\[  FAILED  \] ([^ ,]+\.[^ ,]+).*/\1/p' \
    -e 's/^\[ (CRASHED|CUT OFF) +\] (.*)/\2/p' "$log" | sort -u | paste -sd ' ')
  [[ -n $names ]] ||
    names=$(grep -v '^[[:space:]]*$' "$log" | tail -1)
  cut -c1-300 <<<"$names"
}
# The test that a program of tests was in when it ended.
unfinished_test() {  # log
  awk '/^\[ RUN      \] / { name = $4; next }
    /^\[ +OK \] |^\[  (FAILED|SKIPPED) / || /^\[==========\] .* ran\./ { name = "" }
    END { print name }' "$1"
}
# Keeps the log of the last attempt, all of it up to 2 MiB, and shows its ends:
# what comes first is most often the cause.
record_failure() {  # name
  local note half=$((1 << 20)) test
  note="exit code $code"
  if ((step_seconds >= allowed && (code == 124 || code == 137))); then
    note="longer than $allowed s"
    test=$(unfinished_test "$log")
    [[ -z $test ]] || echo "[ CUT OFF  ] $test did not end" >>"$log"
  fi
  test=$(note_of_failure)
  note+=${test:+: $test}
  { echo "## $1: $note"
    if (($(stat -c %s "$log") > 2 * half)); then
      head -c "$half" "$log"
      printf '\n[...]\n'
      tail -c "$half" "$log"
    else
      cat "$log"
    fi
    echo; } >>"$failures"
  grep -avE '^\[ +(RUN|OK) ' "$log" >"$work/shown"
  head -20 "$work/shown"
  (($(wc -l <"$work/shown") <= 20)) ||
    { echo "[...]" && tail -n +21 "$work/shown" | tail -20; }
  record FAIL "$1" "$step_seconds" "$note"
}
# An attempt as a step; its last line is the note.
step() {  # name, limit, command...
  attempt "$@" || return $((1 - is_plan))
  if ((code != 0)); then
    record_failure "$1"
    return 1
  fi
  record PASS "$1" "$step_seconds" \
    "$(grep -av '^[[:space:]]*$' "$log" | tail -1 | cut -c1-100)"
  return 0
}

# The tests of a filter: in one program on a GPU, in several on the emulation.
# All programs run, whatever becomes of one, and if a test ends its program, the
# tests behind it run without it. That no test ran is a failure.
gtest() {  # filter, names of the emulated programs...
  local filter=$1 name path ended test code count=0 is_bad=0
  local part=$work/gtest
  shift
  ((is_emulated)) || set -- device_tests_gpu
  for name in "$@"; do
    path=$(program "$name")
    ended=
    for _ in 1 2 3 4; do
      "${prefix[@]}" "$path" --gtest_filter="$filter${ended:+-$ended}" 2>&1 |
        tee "$part"
      code=${PIPESTATUS[0]}
      count=$((count + $(grep -aoE '^\[  PASSED  \] [0-9]+' "$part" |
        grep -oE '[0-9]+' || echo 0)))
      ((code == 0)) || is_bad=1
      test=$(unfinished_test "$part")
      [[ -n $test ]] || break
      # Those before it passed or failed, and said so.
      count=$((count + $(grep -acE '^\[ +OK \]' "$part")))
      echo "[ CRASHED  ] $test crashed (exit code $code)"
      is_bad=1
      ended+=$(sed -n 's/^\[ RUN      \] //p' "$part" | tr '\n' ':')
    done
    if grep -aq '^\[  SKIPPED \]' "$part"; then
      grep -aE '^\[  SKIPPED \] [^ ]+\.' "$part" | tail -1
      echo "some were skipped"
      is_bad=1
    fi
  done
  echo "$count tests"
  ((count > 0 && !is_bad))
}
prefix=()
export -f gtest program unfinished_test
backend_programs=(backend_attention_test backend_conformance_test
  backend_embed_test backend_pooling_test backend_sampling_test)

# As a step: functions of this script are no commands for `timeout`.
gtest_step() {  # name, limit, filter, programs...
  local name=$1 limit=$2
  shift 2
  # shellcheck disable=SC2016 # Expanded by the other shell.
  root=$root programs=$programs is_emulated=$is_emulated work=$work \
    prefix_text="${prefix[*]}" step "$name" "$limit" bash -c \
    'read -ra prefix <<<"$prefix_text"; gtest "$@"' gtest "$@"
}

# ---- What everything else needs: instructions that do what is thought of them,
# which also tells whether there is a GPU, and the libraries.
# The folders of NVIDIA's packages for the Python that is first on the path.
python_libraries() {
  timeout -k 5 10 python3 -c '
import glob, sys
print(":".join(f for p in sys.path for f in sorted(glob.glob(p + "/nvidia/*/lib"))))
' 2>/dev/null
}
# What the program itself says of this GPU, and what it lacks.
libraries() {
  "$quire" bench kernels --device cuda --filter ceilings -r 1 >"$work/ceilings" ||
    { cat "$work/ceilings"; return 1; }
  cat "$work/ceilings"
  if ! head -1 "$work/ceilings" | grep -q cuBLASLt; then
    echo "there is no cuBLASLt (QUIRE_CUDA_LIBS='${QUIRE_CUDA_LIBS-}')"
    "$quire" generate --device cuda --prompt 7 --max-tokens 1 >/dev/null
    return 1
  fi
  head -1 "$work/ceilings"
}
export -f libraries
capability=emulated
check_device() {
  local wrappers=wrapper_check_gpu
  ((!is_emulated)) || wrappers=wrapper_check_emulated
  # shellcheck disable=SC2016 # Expanded by the other shell.
  attempt "wrappers of instructions" 20 bash -c '
    "$0" --write "$2" || { echo "the emulation failed: exit code $?"; exit 1; }
    "$1" --compare "$2"' \
    "$(program wrapper_check_emulated)" "$(program "$wrappers")" "$work/wrappers"
  if ((!is_plan)); then
    if ((code == 69)); then
      cat "$log" >&2
      echo "check: no GPU that can be checked" >&2
      exit 69
    elif ((code == 0)); then
      record PASS "wrappers of instructions" "$step_seconds" "$(tail -1 "$log")"
    else
      record_failure "wrappers of instructions"
    fi
  fi
  if ((is_emulated)); then
    skip "libraries" "needs a GPU"
    return
  fi
  capability=$(sed -n 's/.* on compute capability //p' "$log" | tail -1)
  quire=$quire work=$work step "libraries" 15 bash -c libraries
}
if ((is_emulated)); then
  quire=$(program quire_emulated) || quire=
else
  quire=$(program quire)
  # While nobody has a GPU open, each process starts the driver anew.
  if ((!is_plan)); then
    nvidia-smi -l 600 --query-gpu=name --format=csv >/dev/null 2>&1 &
    keeper=$!
    if [[ -z ${QUIRE_CUDA_LIBS+set} ]] && found=$(python_libraries) &&
      [[ -n $found ]]; then
      export QUIRE_CUDA_LIBS=$found
      echo "check: QUIRE_CUDA_LIBS=$found"
    fi
    timeout -k 5 10 nvidia-smi --format=csv,noheader \
      --query-gpu=name,driver_version,compute_cap,memory.total 2>/dev/null
  fi
fi
check_device
# Below 8.0 there is no bf16.
operations='*cuda*' has_bf16=1
if [[ $capability == 7.* ]]; then
  operations='*cuda_f16*' has_bf16=0
fi

# A question over HTTP to the demo model, greedily, whole and as a stream: in
# plain bash, for packages have no client but `quire bench serve`.
ask() {  # port, stream
  local body reply
  body="{\"messages\": [{\"role\": \"user\", \"content\": \"What is 7 + 5?\"}], \"max_tokens\": 24, \"temperature\": 0, \"stream\": $2}"
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
    "${#body}" "$body" >&3
  reply=$(cat <&3)
  exec 3<&- 3>&-
  grep -oE '"content": *"([^"\\]|\\.)*"' <<<"$reply" |
    sed -E 's/^"content": *"//; s/"$//' | tr -d '\n'
}
# On each device: starts the server, asks, ends it with SIGTERM.
http_answers() {
  local device port answer previous=
  trap 'cat "$work/serve"; exit 1' TERM  # The step's limit.
  for device in cpu cuda; do
    port=
    # Named and in braces: bash exports no function with another coprocess.
    coproc SERVER {
      exec "$quire" serve --device "$device" --port 0 --max-num-seqs 4 \
        --max-model-len 128 --max-num-batched-tokens 64 2>"$work/serve"
    }
    local server=$SERVER_PID output=${SERVER[0]}
    while read -r -t 60 line <&"$output"; do
      [[ $line =~ address.*:([0-9]+) ]] && port=${BASH_REMATCH[1]}
      [[ $line == *"ready in"* ]] && break
    done
    [[ -n $port ]] || { cat "$work/serve"; return 1; }
    answer=$(ask "$port" false)
    [[ -n $answer && $(ask "$port" true) == "$answer" ]] ||
      { echo "$device: \"$answer\" is not the stream"; return 1; }
    kill "$server"
    wait "$server" || { echo "exit code $?"; cat "$work/serve"; return 1; }
    [[ -z $previous || $previous == "$answer" ]] ||
      { echo "cuda: \"$answer\", cpu: \"$previous\""; return 1; }
    previous=$answer
  done
  echo "$answer"
}
# The same greedy answers as the CPU's, by the program itself.
same_answers() {
  local prompt device
  for prompt in "What is 7 + 5?" "What is 30 - 4?"; do
    for device in cpu cuda; do
      "$quire" generate --chat --temperature 0 --max-tokens 24 \
        --device "$device" --prompt "$prompt" >"$work/$device" || return 1
    done
    cmp "$work/cpu" "$work/cuda" || return 1
    tail -1 "$work/cuda"
  done
}
export -f ask http_answers same_answers

# NCCL on one rank, and on as many as there are GPUs, where it is installed.
run_nccl() {
  local reason joined ranks
  if ((is_emulated)); then
    skip "NCCL" "needs a GPU"
    return
  fi
  attempt "NCCL" 15 "${all_gpus[@]}" "$(program nccl_test)" || ((is_plan)) ||
    return 0
  # The reasons of tests that were skipped are in the line after.
  reason=$(grep -m 1 -A 1 'Skipped$' "$log" | tail -1 | cut -c1-80)
  joined=$(grep -m 1 -E '^NCCL .* 1 rank' "$log")
  ranks=$(grep -m 1 -E '^NCCL .* ranks' "$log")
  if ((is_plan)); then
    :
  elif ((code != 0)); then
    record_failure "NCCL"
  elif [[ -z $joined ]]; then
    skip "NCCL" "$reason"
    return
  else
    record PASS "NCCL, one rank" "$step_seconds" "$joined"
    if [[ -n $ranks ]]; then
      record PASS "NCCL, a rank on each GPU" 0 "$ranks"
    else
      skip "NCCL, a rank on each GPU" "$reason"
    fi
  fi
  ((has_bf16)) || return 0
  gtest_step "NCCL in the graph of a step" 20 'CudaGroupTest.OneRank*' none
}

run_emulated_checks() {
  # The tree's tests run all of it: here the script is what is checked.
  if ! program backend_conformance_test >/dev/null 2>&1; then
    skip "operations, equivalence" "not in a package: the tree's tests"
    return
  fi
  gtest_step "operations" 40 '*Norm/cuda_bf16*:*LinearFeatures/cuda_f16' \
    backend_conformance_test
  gtest_step "quantized weights" 10 '*DecodesWhatTheKernels*' \
    cuda_quantized_test
  QUIRE_TEST_DEVICE=cuda gtest_step "goldens" 35 \
    '*/GoldenTest.LogprobsInChunks/qwen3' golden_logits_test
  gtest_step "rounding" 25 '*ErrorOfAnFp8Cache*' cuda_rounding_test
  gtest_step "equivalence" 15 '*ACachedPrefix*/qwen3*' cuda_equivalence_test
}

run_gpu_checks() {
  gtest_step "operations" 40 "$operations" "${backend_programs[@]}"
  # Whole models against transformers, as tests/test_device.h says.
  if ((has_bf16)); then
    QUIRE_TEST_DEVICE=cuda gtest_step "goldens, bf16" 35 \
      '*/GoldenTest.LogprobsInChunks/*:*/GoldenTest.GreedyTokens*:*/GoldenEmbeddingsTest.*:*/PromptLogprobsTest.*:*/GgufGoldenTest.*:*/QuantizedCheckpointTest.Logprobs*:*/QuantizedModelTest.*' none
  fi
  QUIRE_TEST_DEVICE=cuda_f16 gtest_step "goldens, f16" 10 \
    '*/GoldenTest.LogprobsInChunks/*' none
  if ((has_bf16)); then
    gtest_step "quantized weights" 10 'CudaQuantizedTest.*' cuda_quantized_test
    gtest_step "families of models" 20 'CudaModelTest.*' cuda_model_test
    gtest_step "rounding" 25 'CudaRoundingTest.*' cuda_rounding_test
    gtest_step "equivalence" 15 '*CudaEquivalenceTest*' cuda_equivalence_test
    QUIRE_TEST_DEVICE=cuda gtest_step "engine in any company" 25 \
      '*/EngineEquivalenceTest.*' none
    gtest_step "graphs and steps in flight" 10 \
      '*CudaGraphsTest*:CudaOverlapTest.*:CudaListsTest.*:*StreamOrderTest*:LibraryLinearTest.*' none
    # The measure of rounding is the CPU's work: of one model.
    gtest_step "speculation" 15 '*CudaSpeculationTest*/qwen3*' none
    gtest_step "ranks as threads" 10 '*CudaParallelTest*' none
  else
    skip "models, equivalence, graphs" "they are bf16: compute capability 8.0"
  fi
  quire=$quire work=$work step "answers of the demo model" 12 \
    bash -c same_answers
}

sanitize() {  # memcheck | racecheck
  # Toy shapes: norms, embedding, linear layers, attention also over fp8, logits,
  # sampling, quantized weights.
  local tool filter='*Conformance*.Norm/cuda*:*Embed/cuda_f16:*Features/cuda_f16'
  filter+=':*Logits/cuda_f16:*EightBitCaches/cuda_f16'
  filter+=':*SlicesOfTheVocabulary/cuda_f16:*StepsInFlight*/cuda_f16'
  if ((has_bf16)); then
    filter+=':CudaQuantizedTest.PartsKeepTheirScales'
  else
    filter=${filter/Norm\/cuda\*/Norm\/cuda_f16}
  fi
  tool=$(command -v compute-sanitizer /usr/local/cuda/bin/compute-sanitizer |
    head -1)
  if ((is_emulated)); then
    skip "$1" "needs a GPU"
  elif [[ -z $tool ]] && ((!is_plan)); then
    skip "$1" "there is no compute-sanitizer"
  else
    prefix=("$tool" --tool "$1" --error-exitcode 1)
    gtest_step "$1" 40 "$filter" none
    prefix=()
  fi
}

# Operations, models, equivalence, the program, memory errors.
run_checks() {
  if ((is_emulated)); then
    run_emulated_checks
  else
    run_gpu_checks
  fi
  if [[ -n $quire ]]; then
    quire=$quire work=$work step "answers over HTTP" 12 bash -c http_answers
  else
    skip "answers over HTTP" "not in a package: the tree's tests"
  fi
  run_nccl
  sanitize memcheck
}

# ---- Speed: figures, not checks. Their step fails if they do not run. On the
# emulation the same commands with the smallest shapes: that they run.
if ((is_emulated)); then
  small=tiny large=tiny served=tiny
  [[ -n $quire ]] || has_bench=0
  prompts=8,40 gen=4 concurrency=2 input_lens='8 40' num_requests=2 batch=64
  batched_prompt=8 batched_gen=16 host_seqs=2
  formats='bf16 fp8' kernel_options=(--rows '1,9' --filter down)
else
  small=llama-3.2-1b large=llama-3.1-8b served=qwen3-8b
  prompts=128,1024,2048,8192 gen=128 concurrency=64,128,256
  batched_prompt=128 batched_gen=256 host_seqs=64
  input_lens='128 1024 2048 8192' num_requests=10 batch=2048
  formats='bf16 fp8 int4' kernel_options=()
fi
# The whole has no time for 1024 tokens of 448 sequences, twice. The targets are
# of 1024.
batched_limit=40
if ((!has_checks && !is_emulated)); then
  batched_gen=1024 batched_limit=90
fi
# A step whose whole output belongs to the results.
bench() {  # name, limit, arguments of `quire bench`...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$quire" bench "$@"
  local status=$?
  [[ ! -s $log ]] ||
    { echo && echo "## quire bench $*" && cat "$log"; } >>"$work/figures"
  return $status
}
# The figure that `awk` finds in the last step's output, beside its target, even
# if the step failed later; none in a step that passed is a failure.
figure() {  # name, least | most, target, unit, program and arguments of awk...
  local name=$1 bound=$2 target=$3 unit=$4 value verdict
  shift 4
  ((!is_plan)) || return 0
  value=$(awk "$@" "$log" | tail -1)
  if [[ -z $value ]]; then
    [[ $result != PASS ]] || record FAIL "$name" 0 "no figure"
    return
  fi
  verdict=$(awk -v v="$value" -v t="$target" -v bound="$bound" \
    'BEGIN { print (bound == "least" ? v >= t : v <= t) ? "MET" : "MISS" }')
  ((!is_emulated)) || verdict="-"
  targets+=("$(printf '%-4s %-44s %10s %-5s  target: at %s %s' "$verdict" \
    "$name" "$value" "$unit" "$bound" "$target")")
}
# Of a row of `bench model`, by its test.
rate() {  # name, target, test
  # shellcheck disable=SC2016 # awk's.
  figure "$1" least "$2" tok/s -F' *[|] *' -v test="$3" \
    '$6 == test { split($7, rate, " "); print rate[1] }'
}
# With --ceilings: percent of the copy bandwidth beside it.
share() {  # name, target, test
  # shellcheck disable=SC2016 # awk's.
  figure "$1" least "$2" % -F' *[|] *' -v test="$3" \
    '$6 == test { split($9, percent, " "); print percent[1] }'
}
# Rows of sequences at once, in the order of $concurrency; of how many tokens
# each is in the name.
batched_rates() {  # name, targets...
  local name=$1 num_seqs
  shift
  for num_seqs in ${concurrency//,/ }; do
    rate "$name, $num_seqs at once, $batched_gen out" "$1" \
      "tg$batched_gen x $num_seqs @ d$batched_prompt"
    shift
  done
}
# A checkpoint of random weights of a real shape, in the place of the last one.
save_model() {  # preset, limit
  rm -rf "$work/model" && mkdir "$work/model" &&
    step "random weights of $1" "$2" "$quire" bench model --preset "$1" \
      --save-model "$work/model"
}
served_model=("$work/model" --tokenizer "$root/models/demo" --device cuda)
# Times of the first token over HTTP, one request at a time.
bench_http() {
  local port=0 length line='' deadline from_server is_ready=0 name="server of $served"
  local server_log=$work/serve
  local limits=(9 30 55 250)
  allow "$name" 15 || ((is_plan)) || return 0
  if ((!is_plan)); then
    deadline=$((SECONDS + allowed))
    # As long as the steps below may take, each with five seconds to be killed.
    # (In the foreground `timeout` passes on one signal, not two.)
    coproc timeout --foreground -k 5 $((allowed + $(limit_of 24) + 20)) \
      "$quire" serve "${served_model[@]}" --port 0 \
      --no-enable-prefix-caching --max-num-batched-tokens "$batch" \
      2>"$server_log"
    server=$COPROC_PID from_server=${COPROC[0]}
    while ((SECONDS < deadline)) &&
      read -r -t $((deadline - SECONDS)) line <&"$from_server"; do
      echo "$line" >>"$server_log"
      [[ $line =~ address.*:([0-9]+) ]] && port=${BASH_REMATCH[1]}
      [[ $line == *"ready in"* ]] && is_ready=1 && break
    done
    step_seconds=$((SECONDS - deadline + allowed))
    if ((is_ready)); then
      record PASS "$name" "$step_seconds" "$line"
    else
      cp "$server_log" "$log"
      code=124
      record_failure "$name"
    fi
  fi
  if ((is_plan || is_ready)); then
    for length in $input_lens; do
      bench "first token, $length in, HTTP" 6 serve --port "$port" \
        --model model --tokenizer "$root/models/demo" --dataset-name random \
        --random-input-len "$length" --random-output-len 8 --ignore-eos \
        --num-prompts "$num_requests" --max-concurrency 1 --num-warmups 1 \
        --disable-tqdm
      # shellcheck disable=SC2016 # awk's.
      figure "first token, $length in, HTTP" most "${limits[0]}" ms \
        '/^Median TTFT/ { print $NF }'
      limits=("${limits[@]:1}")
    done
  fi
  ((!is_plan)) || return 0
  # It has five seconds to end; then `timeout` kills it.
  kill "$server" 2>/dev/null
  wait "$server" 2>/dev/null
  code=$?
  server=
  if ((is_ready && code != 0)); then
    cp "$server_log" "$log"
    step_seconds=0
    record_failure "end of the $name"
  fi
}

# Sequences at once and long prompts are two runs: the KV cache must hold all
# sequences at the longest length.
batched=(-p 0 -n 0 -r 1 --concurrency "$concurrency"
  --batched-prompt "$batched_prompt" --batched-gen "$batched_gen")

bench_large() {
  local format quantization limit head="$work/head"
  local -A least_rate=([bf16]=170 [fp8]=275 [int4]=400)
  local -A least_share=([bf16]=85 [fp8]=75 [int4]=65)
  save_model "$large" 25 || return 0
  for format in $formats; do
    quantization=(--quantization "$format") limit=20
    [[ $format != bf16 ]] || quantization=()
    # Its weights are quantized when they are loaded.
    [[ $format != int4 ]] || limit=45
    bench "$large, $format" "$limit" model "${served_model[@]}" -p 0 -n "$gen" \
      -r 5 --ceilings "${quantization[@]}"
    rate "$large, $format, one sequence" "${least_rate[$format]}" "tg$gen"
    share "$large, $format, of copy bandwidth" "${least_share[$format]}" \
      "tg$gen"
  done
  # Without checks there is time for it.
  ((is_emulated || !has_checks)) || return 0
  mkdir -p "$head"
  if step "a draft head of $large" 10 "$quire" bench model \
    --preset "$large" --save-head "$head"; then
    bench "$large, three drafts by a head" 30 drafter "${served_model[@]}" \
      --speculative-config "{\"method\": \"eagle3\", \"model\": \"$head\", \"num_speculative_tokens\": 3}" \
      --output-len "$gen" -r 5
    # shellcheck disable=SC2016 # awk's.
    figure "three drafts by a head, of the whole step" most 15 % \
      '/^Cost of the drafter:/ { print $7 }'
  fi
  rm -rf "$head"
}
# The row of `bench kernels` has percent of read bandwidth; the target is of the
# copy's, which is measured at the beginning and at the end.
bench_kernels() {
  bench "kernels of $served" 25 kernels --device cuda --preset "$served" \
    "${kernel_options[@]}"
  ((!is_plan && !is_emulated)) || return 0
  targets+=("     $(grep -m 1 '^ceilings' "$log")")
  # shellcheck disable=SC2016 # awk's.
  figure "attention of 16 x 4096, of copy bandwidth" least 85 % '
    /^ceilings/ && match($0, /copy [0-9.]+/) {
      copy += substr($0, RSTART + 5, RLENGTH - 5); ++num
    }
    / attention 16x1 of 4096 / {
      for (i = 2; i <= NF; ++i) if ($i == "GB/s") rate = $(i - 1)
    }
    END { if (rate > 0 && copy > 0) printf "%.1f\n", 100 * rate * num / copy }'
}
# In the order of the table of targets.
run_bench() {
  bench_large
  save_model "$served" 25 || return 0
  bench "$served, many at once" "$batched_limit" model "${served_model[@]}" \
    "${batched[@]}"
  batched_rates "$served" 7600 12000 15500
  bench_http
  bench_kernels
}
# With the model of run_bench, and then with a small one.
run_spare_bench() {
  if ((is_plan)) || [[ -e $work/model/config.json ]]; then
    bench "$served, many at once, fp8" "$batched_limit" model \
      "${served_model[@]}" "${batched[@]}" --quantization fp8
    batched_rates "$served, fp8" 9500 13500 17000
    bench "host time per step, $host_seqs sequences" 15 throughput \
      "${served_model[@]}" --num-prompts "$host_seqs" --input-len 16 \
      --output-len "$batched_gen" --max-num-seqs "$host_seqs"
    # shellcheck disable=SC2016 # awk's.
    figure "host time per step" most 50 us '/^Host per step/ { print $4 }'
    # shellcheck disable=SC2016 # awk's.
    figure "host time per step, device idle" most 5 us \
      '/^Host per step/ { print $8 }'
    bench "start of $served" 20 startup -r 2 -- "${served_model[@]}"
    # shellcheck disable=SC2016 # awk's.
    figure "start to ready of $served" most 5000 ms \
      '/^exec to ready/ { print $4 }'
    # Without HTTP, and without products of warpgroups in attention.
    bench "$served, prefill" 15 model "${served_model[@]}" -p "$prompts" -n 0 \
      -b "$batch" -r 3 --ceilings
    QUIRE_CUDA_WARPGROUPS=0 bench "$served, prefill without warpgroups" 15 \
      model "${served_model[@]}" -p "$prompts" -n 0 -b "$batch" -r 3 --ceilings
  fi
  if save_model "$small" 6; then
    bench "$small" 10 model "${served_model[@]}" -p 0 -n "$gen" -r 5 --ceilings
    rate "$small, bf16, one sequence" 850 "tg$gen"
  fi
}
((!has_checks)) || run_checks
((!has_bench)) || run_bench
# In the whole, as far as time is left; in the halves, a part of the plan.
is_spare=1
((!has_checks)) || sanitize racecheck
((!has_bench)) || run_spare_bench
if ((has_bench)); then
  cat "$work/figures" 2>/dev/null
else
  skip "benchmarks" "not asked for, or not in a package"
fi

if ((is_plan)); then
  sum=0
  for entry in "${plan[@]}"; do
    printf '%5s s  %s\n' "${entry%% *}" "${entry#* }"
    [[ $entry == +* ]] || sum=$((sum + ${entry%% *}))
  done
  echo "$sum s in all, $total_seconds s at most; + if time is left"
  exit $((sum > total_seconds))
fi
num_passed=$((${#table[@]} - num_failed - num_skipped))
summary="check: $num_passed passed, $num_failed failed, $num_skipped skipped, $((SECONDS - started)) s"
echo
printf '%s\n' "${table[@]}" "${targets[@]}" "$summary"
targets+=("$summary")
write_output
((num_failed == 0))
