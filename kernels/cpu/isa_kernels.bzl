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

def isa_kernels(name, srcs, hdrs):
    """A library with the code of `srcs` in namespaces cpu_<isa>.

    Args:
      name: of the library.
      srcs: sources that open namespace QUIRE_ISA_NAMESPACE.
      hdrs: what they include.
    """
    for isa, copts in _ISA_COPTS.items():
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
        deps = [":" + name + "_" + isa for isa in _ISA_COPTS],
    )
