#!/usr/bin/env bash
# ptxas_report_test.sh BUDGET REPORT...: what ptxas says of the kernels. None
# spills registers, has a stack frame (an array or a choice of addresses that
# went to local memory), or has more registers than BUDGET (register_budget.txt)
# allows it, on any of its architectures; each was compiled for all of these.
# wgmma runs beside what stands behind it: ptxas has found no reason to wait.
# None has more static shared memory than a CTA may have without asking (48 KiB;
# what it asks for is held to 99 KiB, and 64 for 7.5, by the emulator).
set -euo pipefail
cat "$@" | awk '
  function fault(text) { print text; ++num_faults }
  # The budget comes first.
  !is_report && /^#/ { next }
  !is_report && $1 == "architectures" {
    for (i = 2; i <= NF; ++i) architecture_of[i] = $i
    next
  }
  !is_report && $1 ~ /Kernel$/ {
    for (i = 2; i <= NF; ++i) budget[$1, architecture_of[i]] = $i
    kernels[$1] = 1
    next
  }
  /Compiling entry function/ {
    is_report = 1
    split($0, quoted, "\047")
    name = quoted[2]
    architecture = quoted[4]
    sub(/^sm_/, "", architecture)
    # The longest name before template arguments or the end of the namespace.
    if (!match(name, /[0-9][A-Z][A-Za-z0-9]*Kernel[IE]/)) {
      fault("no kernel: " name)
    }
    kernel = substr(name, RSTART + 1, RLENGTH - 2)
    next
  }
  /bytes stack frame/ {
    ++num_kernels
    if (!/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/) {
      fault("sm_" architecture " " name ": " $0)
    }
  }
  /Potential Performance Loss/ { fault($0) }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/)
    registers = substr($0, RSTART + 5, RLENGTH - 5) + 0
    if (!((kernel, architecture) in budget)) {
      fault("sm_" architecture " " kernel ": no budget of registers")
    } else if (registers > budget[kernel, architecture]) {
      fault("sm_" architecture " " name ": " registers " registers, more than " \
            budget[kernel, architecture])
    }
    if (registers > most[kernel, architecture]) {
      most[kernel, architecture] = registers
    }
    if (match($0, /[0-9]+ bytes smem/)) {
      shared = substr($0, RSTART, RLENGTH) + 0
      if (shared > 48 * 1024) {
        fault("sm_" architecture " " name ": " shared " bytes of shared memory")
      }
    }
  }
  END {
    for (kernel in kernels) {
      for (i in architecture_of) {
        if (!((kernel, architecture_of[i]) in most)) {
          fault(kernel " was not compiled for sm_" architecture_of[i])
        }
      }
    }
    print num_kernels + 0 " kernels, " num_faults + 0 " faults"
    exit num_faults > 0 || num_kernels == 0
  }
'
