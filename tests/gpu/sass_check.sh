#!/usr/bin/env bash
# sass_check.sh CUOBJDUMP FILE...: what the machine code of the kernels in FILE
# must look like, whatever wrote it. No kernel keeps registers in local memory;
# the products use tensor cores, of warpgroups a softmax (exponentials of 32
# scores a thread) before the wait for those of values; weights are read in 16-byte loads past L1, the
# first of them before the wait for the kernel before (ACQBULK).
set -euo pipefail
cuobjdump=$1
shift
"$cuobjdump" -sass "$@" | awk '
  # "Function : NAME" begins a kernel of the architecture named before it.
  /arch = sm_/ { architecture = $3 }
  /Function : / { kernel = $3; ++num_kernels; has_waited = has_scores = is_beside = 0 }
  kernel ~ /WarpgroupAttentionKernel/ && architecture == "sm_90a" {
    # Behind the shuffles of maxima: a softcap has exponentials of its own.
    if (/WARPGROUP.DEPBAR.LE gsb0, 0x1/) { has_scores = 1; beside[kernel] = 0 }
    if (/SHFL/) is_beside = has_scores
    if (/WARPGROUP.DEPBAR.LE gsb0, 0x0/) has_scores = is_beside = 0
    if (/MUFU.EX2/) beside[kernel] += is_beside
  }
  # What is never launched there only traps: products of warpgroups but on
  # sm_90a, of fp8 before sm_89, of bf16 on sm_75.
  kernel ~ /LinearKernel|AttentionKernel/ && kernel !~ /Finish/ &&
    (kernel !~ /Warpgroup/ || architecture == "sm_90a") &&
    (kernel !~ /Fp8LinearKernel/ || architecture !~ /^sm_(75|80|86)$/) {
    products[architecture " " kernel] += 0
  }
  /HMMA|QMMA|IMMA|HGMMA/ { ++products[architecture " " kernel] }
  /[ \t](LDL|STL)[. ]/ && !(kernel in spills) {
    spills[kernel] = 1; ++num_spills; print architecture, kernel ": local memory:", $0
  }
  /ACQBULK/ { has_waited = 1; if (kernel ~ /SkinnyLinearKernel/) waiting[architecture " " kernel] = 1 }
  /LDG\.E\.[A-Z0-9.]*128/ { ++wide[architecture " " kernel]; early[architecture " " kernel] += !has_waited }
  kernel ~ /SkinnyLinearKernel/ { skinny[architecture " " kernel] += 0 }
  END {
    for (k in products) if (products[k] == 0 && !(k ~ /^sm_75 /)) { print k ": no tensor cores"; ++num_bad }
    for (k in beside) if (beside[k] < 32) { print k ": " beside[k] " exponentials beside products"; ++num_bad }
    for (k in skinny) if (wide[k] == 0 && !(k ~ /^sm_75 /)) { print k ": no 16-byte loads"; ++num_bad }
    for (k in waiting) if (early[k] < 2) { print k ": " early[k] + 0 " loads of weights before the wait"; ++num_bad }
    printf "%d kernels, %d with local memory, %d other faults\n", num_kernels, num_spills, num_bad
    exit num_kernels == 0 || num_spills + num_bad > 0
  }'
