#!/usr/bin/env bash
# Fails if ptxas spilled registers in any kernel of the given reports, or if a
# report names no kernel at all.
set -euo pipefail
num_kernels=0
num_spilling=0
for report in "$@"; do
  while read -r line; do
    case $line in
      *"bytes spill stores"*)
        num_kernels=$((num_kernels + 1))
        if [[ $line != *" 0 bytes spill stores, 0 bytes spill loads" ]]; then
          num_spilling=$((num_spilling + 1))
          echo "${function:-?}: $line"
        fi
        ;;
      *"Function properties for "*) function=${line##* } ;;
    esac
  done <"$report"
done
echo "$num_kernels kernels, $num_spilling of them spill"
((num_kernels > 0 && num_spilling == 0))
