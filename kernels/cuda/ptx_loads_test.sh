#!/usr/bin/env bash
# Fails if a kernel of the given PTX files does not move memory as it is meant
# to: 16 bytes at a time, into shared memory by cp.async, weights past L1, tiles
# by ldmatrix x4, products on tensor cores.
set -euo pipefail
awk '
  function want(what, least) {
    if (count[what] < least) {
      print name ": " count[what] + 0 " of " what ", not " least " or more"
      failed = 1
    }
  }
  # All weights of a piece are loaded before a branch: before the wait, in the
  # loop, and with a norm for the next rows.
  function want_pieces(num) {
    if (count["runs"] != num) {
      print name ": " count["runs"] + 0 " runs of weight loads, not " num
      failed = 1
    }
  }
  function check() {
    if (name ~ /QuantizedSkinnyKernel/) want_pieces(name ~ /Lb1E/ ? 3 : 2)
    if (name ~ /AttentionKernel/) {
      # Queries are loaded by ldmatrix, also for products of warpgroups, whose
      # other operand is in shared memory.
      want("copy", 2); want("ldmatrix", 1)
      if (name ~ /Warpgroup/) {
        want("wgmma", 16); want("fence.proxy", 2)
      } else {
        want("ldmatrix.trans", 1); want("mma", 1)
      }
      if (count["narrow"] > 0) { print name ": narrow loads"; failed = 1 }
      # Of a few rows, once a task: for addresses and masks it has no time.
      if (count["division"] > 16) { print name ": divisions"; failed = 1 }
    } else if (name ~ /MergeKernel/) {
      # Of all parts, before what is made of them.
      want("load4", 32)
    } else if (name ~ /(Read|Copy)ProbeKernel/) {
      # All of an unrolled pass before what it is for.
      want("stream", 4)
    } else if (name ~ /Skinny/ && name ~ /Lb1E/) {
      # With a norm: x by 16 bytes, x'"'"' in and out of shared memory, too.
      want("stream", 2); want("load16", 1); want("mma", 1)
      want("store16", 1); want("load.shared16", 1)
    } else if (name ~ /QuantizedSkinnyKernel/) {
      want("stream", 2); want("load16", 1); want("mma", 1)
    } else if (name ~ /SkinnyLinearKernel/) {
      want("stream", 4); want("load16", 1); want("mma", 1)
    } else if (name ~ /WideningLinearKernel/) {
      want("stream", 2); want("copy", 1); want("store16", 2)
      want("ldmatrix", 6); want("mma", 16)
    } else if (name ~ /Fp8LinearKernel/) {
      want("copy", 2); want("ldmatrix", 6); want("mma.e4m3", 16)
    } else if (name ~ /TiledLinearKernel/) {
      want("copy", 2); want("ldmatrix", 6); want("mma", 16)
    } else {
      return
    }
    if (name ~ /SkinnyLinearKernel/) {
      # While the kernel before this one ends: the first weights, two rows of
      # each step, and those of a norm. The next one begins at once.
      want_early = name ~ /Li[12]ELi4E/ ? 8 : 4
      if (early["stream"] < want_early || \
          (name ~ /Lb1E/ && early["load16"] < 4)) {
        print name ": waits before it has loaded weights"
        failed = 1
      }
      if (mma_before_next != 0) { print name ": late launch_dependents"; failed = 1 }
    }
    ++num_checked
  }
  # A kernel ends where the next one or the next file begins: inline assembly
  # has braces of its own.
  /[.]entry / {
    if (name) check()
    name = $0
    delete count
    delete early
    has_waited = 0
    mma_before_next = -1
    next
  }
  FNR == 1 { if (name) check(); name = "" }
  /^[$]L|[ \t]bra[. \t]/ { is_run = 0 }
  /ld[.]global[.].*L1::no_allocate/ { count["runs"] += !is_run; is_run = 1 }
  /ld[.]global/ {
    if (/ld[.]global[.]nc/ && name ~ /Linear|Attention|Probe/) {
      # It may be moved to the other side of griddepcontrol.wait.
      print name ": ld.global.nc"; failed = 1
    }
    if (/ld[.]global[.]L1::no_allocate[.]L2::256B[.]v4[.]u32/) {
      ++count["stream"]
    } else if (/ld[.]global[.]v4[.]/) {
      ++count["load16"]
    } else if (/ld[.]global[.](nc[.])?[a-z](8|16)/) {
      ++count["narrow"]
    }
  }
  /ld[.]global[.](nc[.])?f32/ { ++count["load4"] }
  /(div|rem)[.][su](32|64)/ { ++count["division"] }
  /cp[.]async[.]cg[.]shared[.]global[.]L2::128B/ && /, 16,/ { ++count["copy"] }
  /st[.](shared[.])?v4[.]/ { ++count["store16"] }
  /ld[.]shared[.]v4[.]/ { ++count["load.shared16"] }
  /griddepcontrol[.]wait/ && !has_waited {
    has_waited = 1
    for (what in count) early[what] = count[what]
  }
  /griddepcontrol[.]launch_dependents/ && mma_before_next < 0 {
    mma_before_next = count["mma"] + 0
  }
  /ldmatrix[.]sync[.]aligned[.]m8n8[.]x4[.]shared/ { ++count["ldmatrix"] }
  /ldmatrix[.]sync[.]aligned[.]m8n8[.]x4[.]trans/ { ++count["ldmatrix.trans"] }
  /mma[.]sync[.]aligned[.]m16n8k16/ { ++count["mma"] }
  /wgmma[.]mma_async/ { ++count["wgmma"] }
  /fence[.]proxy[.]async[.]shared::cta/ { ++count["fence.proxy"] }
  /mma[.]sync[.]aligned[.]m16n8k32[.]row[.]col[.]f32[.]e4m3/ {
    ++count["mma.e4m3"]
  }
  END {
    if (name) check()
    print num_checked + 0 " kernels checked"
    exit failed || num_checked < 40
  }
' "$@"
