"""Compiles one kernel source once per instruction set."""

load("@rules_cc//cc:defs.bzl", "cc_library")

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = _AVX2 + ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

_ISA_COPTS = {
    "scalar": [],
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512 + ["-mavx512bf16"],
}

# For products of bytes, whose results are the same with VNNI and without.
_INT8_ISA_COPTS = {
    "scalar": [],
    "avx2": _AVX2,
    "avx2_vnni": _AVX2 + ["-mavxvnni"],
    "avx512": _AVX512,
    "avx512_vnni": _AVX512 + ["-mavx512vnni"],
}

def isa_kernels(name, srcs, hdrs, is_int8 = False):
    """A library with the code of `srcs` in namespaces cpu_<isa>.

    Args:
      name: of the library.
      srcs: sources that open namespace QUIRE_ISA_NAMESPACE.
      hdrs: what they include.
      is_int8: compile for the instruction sets with and without VNNI instead.
    """
    isa_copts = _INT8_ISA_COPTS if is_int8 else _ISA_COPTS
    for isa, copts in isa_copts.items():
        cc_library(
            name = name + "_" + isa,
            srcs = srcs,
            hdrs = hdrs,
            copts = copts + [
                "-O3",
                # A multiply-add is fused only where the source says so: every
                # tile of a kernel must round alike.
                "-ffp-contract=off",
                # GCC bug 105593: a false positive in its own intrinsics.
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
            ],
            local_defines = ["QUIRE_ISA_NAMESPACE=cpu_" + isa],
        )
    cc_library(
        name = name,
        hdrs = hdrs,
        deps = [":" + name + "_" + isa for isa in isa_copts],
    )
