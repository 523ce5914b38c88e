#!/usr/bin/env bash
# ptxas_report_test.sh WANTED REPORT...: what ptxas says of the kernels.
# None spills registers on any architecture. None has more static shared memory
# than a CTA may have without asking (48 KiB; the emulator checks what it asks
# for), and the kernels were compiled for all of the architectures WANTED
# (75,80,...).
set -euo pipefail
wanted=$1
shift
num_kernels=0 num_bad=0
declare -A architectures
while read -r line; do
  case $line in
    *"Compiling entry function"*)
      function=${line#*\'} function=${function%%\'*}
      architecture=${line##*\'sm_} architecture=${architecture%\'*}
      architectures[$architecture]=1
      ;;
    *"bytes spill stores"*)
      num_kernels=$((num_kernels + 1))
      num_bytes=${line%% bytes spill stores*} num_bytes=${num_bytes##* }
      if ((num_bytes > 0)); then
        num_bad=$((num_bad + 1))
        echo "sm_$architecture $function: $line"
      fi
      ;;
    *"bytes smem"*)
      num_bytes=${line%% bytes smem*} num_bytes=${num_bytes##* }
      if ((num_bytes > 48 << 10)); then
        num_bad=$((num_bad + 1))
        echo "sm_$architecture $function: $num_bytes bytes of shared memory"
      fi
      ;;
  esac
done < <(cat "$@")
for architecture in ${wanted//,/ }; do
  if [[ -z ${architectures[$architecture]:-} ]]; then
    echo "nothing was compiled for sm_$architecture"
    num_bad=$((num_bad + 1))
  fi
done
echo "$num_kernels kernels for ${!architectures[*]}, $num_bad faults"
((num_kernels > 0 && num_bad == 0))
