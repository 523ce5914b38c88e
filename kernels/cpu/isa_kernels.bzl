"""Compiles one kernel source once per instruction set."""

load("@rules_cc//cc:defs.bzl", "cc_library")

_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = _AVX2 + ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

# By architecture; isa_dispatch.h names the same ones.
_X86_COPTS = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": _AVX512 + ["-mavx512bf16"],
}
_AARCH64_COPTS = {
    "neon": ["-march=armv8.2-a+dotprod"],
    "neon_bf16": ["-march=armv8.2-a+dotprod+bf16+i8mm"],
}

# For products of bytes on x86-64: the results are the same with VNNI and without.
_X86_INT8_COPTS = {
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
      is_int8: on x86-64 compile for the ones with and without VNNI instead.
    """
    x86_copts = _X86_INT8_COPTS if is_int8 else _X86_COPTS
    all_copts = {"scalar": []}
    all_copts.update(x86_copts)
    all_copts.update(_AARCH64_COPTS)
    for isa, copts in all_copts.items():
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
            # Only where `name` asks: the flags are one architecture's.
            tags = ["manual"],
        )
    cc_library(
        name = name,
        hdrs = hdrs,
        deps = [":" + name + "_scalar"] + select({
            ":is_aarch64": [":" + name + "_" + isa for isa in _AARCH64_COPTS],
            "//conditions:default": [":" + name + "_" + isa for isa in x86_copts],
        }),
    )
