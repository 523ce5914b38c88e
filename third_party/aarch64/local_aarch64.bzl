"""Debian's cross compiler for aarch64 and its sysroot, for WORKSPACE.

tools/setup.sh --aarch64 installs both; `--config=aarch64` uses them. Nothing
else looks here, so a machine without them builds as ever.
"""

_BUILD = """
load(
    "@bazel_tools//tools/cpp:unix_cc_toolchain_config.bzl",
    "cc_toolchain_config",
)

package(default_visibility = ["//visibility:public"])

filegroup(name = "empty")

cc_toolchain_suite(
    name = "toolchain",
    toolchains = {{
        "aarch64": ":cc_toolchain",
        "aarch64|gcc": ":cc_toolchain",
    }},
)

cc_toolchain(
    name = "cc_toolchain",
    all_files = ":empty",
    compiler_files = ":empty",
    dwp_files = ":empty",
    linker_files = ":empty",
    objcopy_files = ":empty",
    strip_files = ":empty",
    supports_param_files = True,
    toolchain_config = ":config",
    toolchain_identifier = "aarch64-linux-gnu",
)

cc_toolchain_config(
    name = "config",
    abi_libc_version = "local",
    abi_version = "local",
    builtin_sysroot = "{sysroot}",
    compile_flags = [
        "-U_FORTIFY_SOURCE",
        "-fno-omit-frame-pointer",
    ],
    compiler = "gcc",
    cpu = "aarch64",
    cxx_builtin_include_directories = [
        "/usr/lib/gcc-cross/aarch64-linux-gnu",
        "/usr/aarch64-linux-gnu/include",
        "{sysroot}/usr/include",
    ],
    dbg_compile_flags = ["-g"],
    host_system_name = "local",
    link_flags = [
        "-Wl,-z,relro,-z,now",
        "-Wl,-rpath-link,{sysroot}/usr/lib/aarch64-linux-gnu",
    ],
    link_libs = [
        "-lstdc++",
        "-lm",
    ],
    opt_compile_flags = [
        "-g0",
        "-O2",
        "-D_FORTIFY_SOURCE=1",
        "-DNDEBUG",
        "-ffunction-sections",
        "-fdata-sections",
    ],
    opt_link_flags = ["-Wl,--gc-sections"],
    target_libc = "local",
    target_system_name = "aarch64-linux-gnu",
    tool_paths = {{
        "ar": "/usr/bin/aarch64-linux-gnu-ar",
        "cpp": "/usr/bin/aarch64-linux-gnu-cpp-12",
        "dwp": "/bin/false",
        "gcc": "/usr/bin/aarch64-linux-gnu-g++-12",
        "gcov": "/bin/false",
        "llvm-cov": "/bin/false",
        "ld": "/usr/bin/aarch64-linux-gnu-ld",
        "nm": "/usr/bin/aarch64-linux-gnu-nm",
        "objcopy": "/usr/bin/aarch64-linux-gnu-objcopy",
        "objdump": "/usr/bin/aarch64-linux-gnu-objdump",
        "strip": "/usr/bin/aarch64-linux-gnu-strip",
    }},
    toolchain_identifier = "aarch64-linux-gnu",
    unfiltered_compile_flags = [
        "-fno-canonical-system-headers",
        "-Wno-builtin-macro-redefined",
        "-D__DATE__=\\"redacted\\"",
        "-D__TIMESTAMP__=\\"redacted\\"",
        "-D__TIME__=\\"redacted\\"",
    ],
)
"""

def _local_aarch64_impl(repository_ctx):
    environ = repository_ctx.os.environ
    sysroot = environ.get("QUIRE_AARCH64_SYSROOT", "")
    if not sysroot:
        sysroot = environ.get("HOME", "/root") + "/.cache/quire/aarch64-sysroot"
    repository_ctx.file("BUILD.bazel", _BUILD.format(sysroot = sysroot))

local_aarch64 = repository_rule(
    implementation = _local_aarch64_impl,
    configure = True,
    environ = ["QUIRE_AARCH64_SYSROOT"],
    local = True,
)
