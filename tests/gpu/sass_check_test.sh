#!/usr/bin/env bash
# sass_check_test.sh SASS_CHECK [OBJECT...]: the script finds what it looks for
# in invented listings; and the kernels of this build pass it, where the machine
# has cuobjdump.
set -euo pipefail
check=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '#!/bin/sh\ncat "$2"\n' >"$work/cuobjdump"
chmod +x "$work/cuobjdump"

kernel=18SkinnyLinearKernel architecture=sm_90a
listing() {  # instructions...
  echo "arch = $architecture"
  echo "	Function : _ZN${kernel}E"
  printf '        /*0000*/                   %s ;\n' "$@"
}
load="LDG.E.NA.LTC256B.128 R8, [R2]"
fine=("HMMA.16816.F32.BF16 R4, R8, R12, R4" "$load" "$load" "ACQBULK")
expect() {  # wanted exit code, name
  local code=0
  "$check" "$work/cuobjdump" "$work/listing" >"$work/out" || code=$?
  if ((code != $1)); then
    echo "$2: exit code $code"
    cat "$work/out"
    exit 1
  fi
}
listing "${fine[@]}" >"$work/listing"
expect 0 "a kernel as it should be"
listing "${fine[@]}" "STL [R1], R4" >"$work/listing"
expect 1 "local memory"
listing "${fine[@]:1}" >"$work/listing"
expect 1 "no tensor cores"
listing "${fine[0]}" "LDG.E.64 R8, [R2]" >"$work/listing"
expect 1 "narrow loads"
listing "${fine[0]}" "$load" "ACQBULK" "$load" >"$work/listing"
expect 1 "weights that are loaded behind the wait"
: >"$work/listing"
expect 1 "no kernel"
kernel=24WarpgroupAttentionKernel
scores=("HGMMA.64x64x16.F32 R24, R4, gdesc[UR4], R24, gsb0"
  "WARPGROUP.DEPBAR.LE gsb0, 0x1" "SHFL.BFLY PT, R2, R2, 0x1, 0x1f")
mapfile -t exponentials < <(yes "MUFU.EX2 R2, R2" | head -32)
end="WARPGROUP.DEPBAR.LE gsb0, 0x0"
listing "${scores[@]}" "${exponentials[@]}" "$end" >"$work/listing"
expect 0 "a softmax beside products"
listing "${scores[@]}" "$end" "${exponentials[@]}" >"$work/listing"
expect 1 "a softmax behind products"
listing "${scores[@]:1}" "${exponentials[@]}" "$end" >"$work/listing"
expect 1 "no products of warpgroups"

kernel=15Fp8LinearKernel
listing "${fine[@]:1}" >"$work/listing"
expect 1 "no tensor cores for fp8"
architecture=sm_86
listing "${fine[@]:1}" >"$work/listing"
expect 0 "a kernel that is never launched there"

cuobjdump=${QUIRE_CUOBJDUMP:-$(command -v cuobjdump ||
  echo /usr/local/cuda/bin/cuobjdump)}
if (($# == 0)) || [[ ! -x $cuobjdump ]]; then
  echo "SKIPPED: the kernels of this build: there is no cuobjdump or no nvcc"
  # So that the skip is counted.
  [[ -z ${XML_OUTPUT_FILE:-} ]] || cat >"$XML_OUTPUT_FILE" <<'XML'
<testsuites><testsuite name="sass_check_test"><testcase name="listings"/>
<testcase name="kernels"><skipped message="no cuobjdump"/></testcase>
</testsuite></testsuites>
XML
  exit 0
fi
ar=$(command -v ar)
for archive in "$@"; do
  # cuobjdump reads objects, not archives of them.
  [[ $archive == *.a && $archive != *.pic.a ]] || continue
  (cd "$work" && "$ar" x "$OLDPWD/$archive" && chmod u+w ./*.o)
done
is_bad=0
for object in "$work"/*.o; do
  # Objects without kernels have nothing to say.
  objdump -h "$object" | grep -q nv_fatbin || continue
  PATH=$PATH:$(dirname "$cuobjdump") "$check" "$cuobjdump" "$object" || is_bad=1
done
exit $is_bad
