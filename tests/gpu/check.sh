#!/usr/bin/env bash
# Checks quire on this machine's GPU: the wrappers of instructions against their
# emulation, every operation against the reference, every family of models
# against transformers' goldens and the CPU, equal answers in any company, the
# program over HTTP, memory errors and races, the machine code, and then the
# benchmarks.
#   check.sh [--no-bench | --only-bench] [--seconds N] [--output FILE]
#                          from a folder of tools/package.sh
#   check.sh --emulated    the same steps on the emulation, as far as it goes, and
#                          smallest shapes: checks this script and its commands
#   check.sh --plan        the steps of a GPU with their limits, and the sum
# Each step has a limit; together they stay below ten minutes, and so does the
# whole (--seconds, 590): correctness first, then the figures in the order of
# the table of targets. A step for which no time is left is LATE, which is a
# failure; what was found before it is kept. Benchmarks write checkpoints of up
# to 16 GB to TMPDIR, one after the other.
# All but NCCL's step use one GPU: the first, or the first of
# CUDA_VISIBLE_DEVICES.
# Prints a table and writes it to FILE after every step; figures stand beside
# their targets on an H100, and one that misses its target is no failure. Exit
# code: 0 if nothing failed, 1 if something did, 69 without a GPU. What the
# machine has no tool for is a SKIP.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

is_emulated=0 is_plan=0 has_checks=1 has_bench=1 output='' total_seconds=590
while (($# > 0)); do
  case $1 in
    --emulated) is_emulated=1 ;;
    --no-bench) has_bench=0 ;;
    --only-bench) has_checks=0 ;;
    --plan) is_plan=1 ;;
    --seconds) total_seconds=${2:?check: --seconds needs a number} && shift ;;
    --output) output=${2:?check: --output needs a file} && shift ;;
    *) echo "check: unknown argument $1" >&2 && exit 64 ;;
  esac
  shift
done

# In a package programs lie in ../bin and the models' folder is the package; in
# the tree and in the runfiles of a test they lie where Bazel built them.
if [[ -x $here/../bin/quire ]]; then
  root=$(cd "$here/.." && pwd)
else
  root=$(cd "$here/../.." && pwd)
fi
program() {
  local folder
  for folder in "$root"/{bin,tests/gpu,tests,cli} \
    "$root"/bazel-bin/{tests/gpu,tests,cli}; do
    if [[ -x $folder/$1 && -f $folder/$1 ]]; then
      echo "$folder/$1"
      return
    fi
  done
  echo "check: $1 is missing" >&2
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
trap 'rm -rf "$work"' EXIT
table=() targets=()
num_failed=0 num_skipped=0
started=$SECONDS
# The emulation of a GPU, on machines that do other things.
slowness=1
((!is_emulated)) || { slowness=15 && total_seconds=3000; }

record() {  # result, step, seconds, note
  ((!is_plan)) || return 0
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
# enough to begin, it is LATE.
plan=()
allowed=0
allow() {  # name, limit
  plan+=("$2 $1")
  ((!is_plan)) || return 1
  allowed=$((total_seconds - (SECONDS - started)))
  ((allowed < $2 * slowness)) || allowed=$(($2 * slowness))
  ((allowed >= 5)) && return 0
  record LATE "$1" 0 "no time was left"
  return 1
}
# Runs a command of at most `limit` seconds as a step; its last line is the note.
step() {  # name, limit, command...
  local name=$1 begin=$SECONDS log=$work/log
  : >"$log"
  allow "$name" "$2" || return $((1 - is_plan))
  local limit=$allowed
  shift 2
  timeout "$limit" "$@" >"$log" 2>&1
  local code=$?
  local note
  note=$(grep -v '^[[:space:]]*$' "$log" | tail -1 | cut -c1-100)
  if ((code == 0)); then
    record PASS "$name" $((SECONDS - begin)) "$note"
    return 0
  fi
  ((code != 124)) || note="longer than $limit s; $note"
  tail -30 "$log"
  record FAIL "$name" $((SECONDS - begin)) "exit code $code: $note"
  return 1
}

# The tests of a filter: in one program on a GPU, in several on the emulation.
# That none of them ran is a failure.
gtest() {  # filter, names of the emulated programs...
  local filter=$1 name path count=0 log=$work/gtest
  shift
  ((is_emulated)) || set -- device_tests_gpu
  for name in "$@"; do
    path=$(program "$name") || return 1
    "${prefix[@]}" "$path" --gtest_filter="$filter" >"$log" 2>&1 ||
      { grep -vE '^\[ +(RUN|OK) ' "$log" | tail -40; return 1; }
    count=$((count + $(grep -oE '^\[  PASSED  \] [0-9]+' "$log" |
      grep -oE '[0-9]+' || echo 0)))
    ! grep -q '^\[  SKIPPED \]' "$log" || { echo "some were skipped"; return 1; }
  done
  echo "$count tests"
  ((count > 0))
}
prefix=()
export -f gtest program
backend_programs=(backend_attention_test backend_conformance_test
  backend_embed_test backend_pooling_test backend_sampling_test)

# As a step: functions of this script are no commands for `timeout`.
gtest_step() {  # name, limit, filter, programs...
  local name=$1 limit=$2
  shift 2
  root=$root is_emulated=$is_emulated work=$work prefix_text="${prefix[*]}" \
    step "$name" "$limit" bash -c \
    'read -ra prefix <<<"$prefix_text"; gtest "$@"' gtest "$@"
}

capability=emulated
if ((is_plan)); then
  quire=/bin/false
elif ((!is_emulated)); then
  quire=$(program quire) || exit 1
  # Also says why, if the GPU cannot be used.
  if ! "$quire" generate --device cuda --prompt "7 + 5 =" --max-tokens 1 \
    >/dev/null 2>"$work/error"; then
    cat "$work/error" >&2
    echo "check: no GPU that can be checked" >&2
    exit 69
  fi
  capability=$(nvidia-smi -i "$CUDA_VISIBLE_DEVICES" --query-gpu=compute_cap --format=csv,noheader \
    2>/dev/null | head -1)
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total \
    --format=csv,noheader 2>/dev/null || true
fi
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
    kill "$server" && wait "$server" || { echo "exit code $?"; return 1; }
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
  allow "NCCL" 15 || return 0
  if ! timeout "$allowed" "${all_gpus[@]}" "$(program nccl_test)" \
    >"$work/nccl" 2>&1; then
    tail -20 "$work/nccl"
    record FAIL "NCCL" 0 "see above"
    return
  fi
  # The reasons of tests that were skipped are in the line after.
  reason=$(grep -m 1 -A 1 'Skipped$' "$work/nccl" | tail -1 | cut -c1-80)
  joined=$(grep -m 1 -E '^NCCL .* 1 rank' "$work/nccl")
  if [[ -z $joined ]]; then
    skip "NCCL" "$reason"
    return
  fi
  record PASS "NCCL, one rank" 0 "$joined"
  ranks=$(grep -m 1 -E '^NCCL .* ranks' "$work/nccl")
  if [[ -n $ranks ]]; then
    record PASS "NCCL, a rank on each GPU" 0 "$ranks"
  else
    skip "NCCL, a rank on each GPU" "$reason"
  fi
  ((has_bf16)) || return 0
  gtest_step "NCCL in the graph of a step" 5 'CudaGroupTest.OneRank*' none
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
      '*CudaGraphsTest*:CudaOverlapTest.*:CudaListsTest.*' none
    # The measure of rounding is the CPU's work: of one model.
    gtest_step "speculation" 15 '*CudaSpeculationTest*/qwen3*' none
    gtest_step "ranks as threads" 10 '*CudaParallelTest*' none
  else
    skip "models, equivalence, graphs" "they are bf16: compute capability 8.0"
  fi
  quire=$quire work=$work step "answers of the demo model" 12 \
    bash -c same_answers
}

run_checks() {
  # ---- (a) instructions
  if ((is_plan)); then
    step "wrappers of instructions" 10
  elif ! emulated_wrappers=$(program wrapper_check_emulated) ||
    ! "$emulated_wrappers" --write "$work/wrappers"; then
    record FAIL "wrappers of instructions" 0 "the emulation failed"
  elif ((is_emulated)); then
    step "wrappers of instructions" 10 "$emulated_wrappers" --compare \
      "$work/wrappers"
  else
    step "wrappers of instructions" 10 "$(program wrapper_check_gpu)" \
      --compare "$work/wrappers"
  fi

  # ---- (b) operations, (c) models, (d) equivalence, (e) the program
  if ((is_emulated)); then
    run_emulated_checks
    quire=$(program quire_emulated 2>/dev/null) || quire=
  else
    run_gpu_checks
  fi
  if [[ -n $quire ]]; then
    quire=$quire work=$work step "answers over HTTP" 12 bash -c http_answers
  else
    skip "answers over HTTP" "not in a package: the tree's tests"
  fi
  run_nccl

  # ---- (f) memory errors, races, machine code
  tool() {
    command -v "$1" || { [[ -x /usr/local/cuda/bin/$1 ]] &&
      echo "/usr/local/cuda/bin/$1"; }
  }
  sanitizer=$(tool compute-sanitizer) cuobjdump=$(tool cuobjdump)
  # Toy shapes: norms, embedding, linear layers, attention also over fp8, logits,
  # sampling, quantized weights.
  sanitized='*Conformance*.Norm/cuda*:*Embed/cuda_f16:*Features/cuda_f16'
  sanitized+=':*Logits/cuda_f16:*EightBitCaches/cuda_f16'
  sanitized+=':*SlicesOfTheVocabulary/cuda_f16:*StepsInFlight*/cuda_f16'
  if ((has_bf16)); then
    sanitized+=':CudaQuantizedTest.PartsKeepTheirScales'
  else
    sanitized=${sanitized/Norm\/cuda\*/Norm\/cuda_f16}
  fi
  for check in memcheck racecheck; do
    if ((is_emulated)); then
      skip "$check" "needs a GPU"
    elif [[ -z $sanitizer ]] && ((!is_plan)); then
      skip "$check" "there is no compute-sanitizer"
    else
      prefix=("$sanitizer" --tool "$check" --error-exitcode 1)
      gtest_step "$check" 25 "$sanitized" none
      prefix=()
    fi
  done
  if ((is_emulated)); then
    skip "machine code" "there is none in the emulation"
  elif [[ -z $cuobjdump ]] && ((!is_plan)); then
    skip "machine code" "there is no cuobjdump"
  else
    step "machine code" 10 "$here/sass_check.sh" "$cuobjdump" "$quire"
  fi
}
((!has_checks)) || run_checks

# ---- (g) speed: figures, not checks. Their step fails if they do not run. On
# the emulation the same commands with the smallest shapes: that they run.
if ((is_emulated)); then
  small=tiny large=tiny served=tiny
  quire=$(program quire_emulated 2>/dev/null) || has_bench=0
  prompts=8,40 gen=4 concurrency=2 input_lens='8 40' num_requests=2 batch=64
  batched_prompt=8 batched_gen=16 host_seqs=2
  formats='bf16 fp8' kernel_options='--rows 1,9 --filter down'
else
  small=llama-3.2-1b large=llama-3.1-8b served=qwen3-8b
  prompts=128,1024,2048,8192 gen=128 concurrency=64,128,256
  batched_prompt=128 batched_gen=256 host_seqs=64
  input_lens='128 1024 2048 8192' num_requests=10 batch=2048
  formats='bf16 fp8 int4' kernel_options=
fi
# The whole has no time for 1024 tokens of 448 sequences, twice.
batched_limit=25
if ((!has_checks && !is_emulated)); then
  batched_gen=1024 batched_limit=60
fi
# A step whose whole output belongs to the results.
bench() {  # name, limit, arguments of `quire bench`...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$quire" bench "$@"
  local code=$?
  ((is_plan)) ||
    { echo && echo "## quire bench $*" && cat "$work/log"; } >>"$work/figures"
  return $code
}
# The figure that `awk` finds in the last step's output, beside its target; none
# is a failure.
figure() {  # name, least | most, target, unit, program and arguments of awk...
  local name=$1 bound=$2 target=$3 unit=$4 value verdict
  shift 4
  ((!is_plan)) || return 0
  value=$(awk "$@" "$work/log" | tail -1)
  if [[ -z $value ]]; then
    record FAIL "$name" 0 "no figure"
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
  figure "$1" least "$2" tok/s -F' *[|] *' -v test="$3" \
    '$6 == test { split($7, rate, " "); print rate[1] }'
}
# With --ceilings: percent of the copy bandwidth beside it.
share() {  # name, target, test
  figure "$1" least "$2" % -F' *[|] *' -v test="$3" \
    '$6 == test { split($9, percent, " "); print percent[1] }'
}
# Rows of sequences at once, in the order of $concurrency.
batched_rates() {  # name, targets...
  local name=$1 num_seqs
  shift
  for num_seqs in ${concurrency//,/ }; do
    rate "$name, $num_seqs at once" "$1" \
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
  local port length line=
  local limits=(9 30 55 250)
  allow "server of $served" 13 || ((is_plan)) || return 0
  if ((!is_plan)); then
    coproc "$quire" serve "${served_model[@]}" --port 0 \
      --no-enable-prefix-caching --max-num-batched-tokens "$batch" \
      2>"$work/serve"
    local server=$COPROC_PID output=${COPROC[0]}
    while read -r -t "$allowed" line <&"$output"; do
      [[ $line =~ address.*:([0-9]+) ]] && port=${BASH_REMATCH[1]}
      [[ $line == *"ready in"* ]] && break
    done
    echo "$line" >>"$work/figures"
  fi
  for length in $input_lens; do
    bench "first token, $length in, HTTP" 6 serve --port "${port-0}" \
      --model model --tokenizer "$root/models/demo" --dataset-name random \
      --random-input-len "$length" --random-output-len 8 --ignore-eos \
      --num-prompts "$num_requests" --max-concurrency 1 --num-warmups 1 \
      --disable-tqdm &&
      figure "first token, $length in, HTTP" most "${limits[0]}" ms \
        '/^Median TTFT/ { print $NF }'
    limits=("${limits[@]:1}")
  done
  ((is_plan)) || { kill "$server" && wait "$server"; }
}

# In the order of the table of targets.
run_bench() {
  local format quantization
  if save_model "$large" 25; then
    declare -A least_rate=([bf16]=170 [fp8]=275 [int4]=400)
    declare -A least_share=([bf16]=85 [fp8]=75 [int4]=65)
    for format in $formats; do
      quantization=(--quantization "$format")
      [[ $format != bf16 ]] || quantization=()
      bench "$large, $format" 20 model "${served_model[@]}" -p 0 -n "$gen" \
        -r 5 --ceilings "${quantization[@]}" || continue
      rate "$large, $format, one sequence" "${least_rate[$format]}" "tg$gen"
      share "$large, $format, of copy bandwidth" "${least_share[$format]}" \
        "tg$gen"
    done
    # Without checks there is time for it.
    if ((is_emulated || !has_checks)); then
      local head="$work/head"
      mkdir -p "$head"
      if step "a draft head of $large" 10 "$quire" bench model \
        --preset "$large" --save-head "$head"; then
        bench "$large, three drafts by a head" 30 drafter "${served_model[@]}" \
          --speculative-config "{\"method\": \"eagle3\", \"model\": \"$head\", \"num_speculative_tokens\": 3}" \
          --output-len "$gen" -r 5 &&
          figure "three drafts by a head, of the whole step" most 15 % \
            '/^Cost of the drafter:/ { print $7 }'
        rm -rf "$head"
      fi
    fi
  fi
  if save_model "$small" 6; then
    bench "$small" 10 model "${served_model[@]}" -p 0 -n "$gen" -r 5 \
      --ceilings && rate "$small, bf16, one sequence" 850 "tg$gen"
  fi
  # Sequences at once and long prompts are two runs: the KV cache must hold all
  # sequences at the longest length.
  local batched=(-p 0 -n 0 -r 1 --concurrency "$concurrency"
    --batched-prompt "$batched_prompt" --batched-gen "$batched_gen")
  if save_model "$served" 25; then
    bench "$served, many at once" "$batched_limit" model "${served_model[@]}" \
      "${batched[@]}" && batched_rates "$served" 7600 12000 15500
    bench "$served, many at once, fp8" "$batched_limit" model \
      "${served_model[@]}" "${batched[@]}" --quantization fp8 &&
      batched_rates "$served, fp8" 9500 13500 17000
    bench_http
    bench "kernels of $served" 25 kernels --device cuda --preset "$served" \
      $kernel_options
    if ((!is_plan)); then
      targets+=("     $(grep -m 1 '^ceilings' "$work/log")")
    fi
    if ((!is_emulated)); then
      figure "attention of 16 sequences of 4096" least 85 % \
        '/ attention 16x1 of 4096 / { sub(/.*TFLOP\/s */, ""); print $1 }'
    fi
    bench "host time per step, $host_seqs sequences" 15 throughput \
      "${served_model[@]}" --num-prompts "$host_seqs" --input-len 16 \
      --output-len "$batched_gen" --max-num-seqs "$host_seqs" && {
      figure "host time per step" most 50 us '/^Host per step/ { print $4 }'
      figure "host time per step, device idle" most 5 us \
        '/^Host per step/ { print $8 }'
    }
    bench "start of $served" 13 startup -r 2 -- "${served_model[@]}" &&
      figure "start to ready of $served" most 5000 ms \
        '/^exec to ready/ { print $4 }'
    # Without HTTP; in the whole the first tokens say enough.
    ((has_checks && !is_emulated)) || bench "$served, prefill" 15 model "${served_model[@]}" -p "$prompts" -n 0 \
      -b "$batch" -r 3 --ceilings
  fi
}
if ((has_bench)); then
  # shellcheck disable=SC2086 # Words of their own.
  run_bench
  cat "$work/figures" 2>/dev/null
else
  skip "benchmarks" "not asked for, or not in a package"
fi

if ((is_plan)); then
  sum=0
  for entry in "${plan[@]}"; do
    printf '%4s s  %s\n' "${entry%% *}" "${entry#* }"
    sum=$((sum + ${entry%% *}))
  done
  echo "$sum s in all, $total_seconds s at most"
  exit $((sum > total_seconds))
fi
num_passed=$((${#table[@]} - num_failed - num_skipped))
summary="check: $num_passed passed, $num_failed failed, $num_skipped skipped, $((SECONDS - started)) s"
echo
printf '%s\n' "${table[@]}" "${targets[@]}" "$summary"
targets+=("$summary")
write_output
((num_failed == 0))
