"""Compiles CUDA sources with the machine's nvcc.

`cuda_library` is a cc_library whose sources nvcc compiles. It exists only where
a CUDA toolkit does: load IS_CUDA_PRESENT from @local_cuda//:defs.bzl.
"""

load("@local_cuda//:defs.bzl", "CUDA_ROOT")
load("@rules_cc//cc:defs.bzl", "cc_library")

# Everything that a GPU of today may be; sm_90a code runs on nothing else, hence
# the PTX of sm_90 for what is newer than this list. sm_75 has neither bf16 nor
# cp.async: correct rather than fast.
_ALL_ARCHITECTURES = ["75", "80", "86", "89", "90a", "100", "120"]

def _architectures_impl(ctx):
    return [config_common.FeatureFlagInfo(value = ctx.build_setting_value)]

# "all", or a list such as "80,90a".
architectures_flag = rule(
    implementation = _architectures_impl,
    build_setting = config.string(flag = True),
)

# As kernels/cuda/architectures.cc knows them.
def _gencode(architectures):
    if architectures == "all":
        flags = [
            "-gencode=arch=compute_{0},code=sm_{0}".format(a)
            for a in _ALL_ARCHITECTURES
        ]
        return flags + ["-gencode=arch=compute_90,code=compute_90"]
    return [
        "-gencode=arch=compute_{0},code=sm_{0}".format(a)
        for a in architectures.split(",")
    ]

# That of the H100, but where a build is for one other.
def _ptx_architecture(architectures):
    is_one = architectures != "all" and "," not in architectures
    return architectures if is_one else "90a"

# With the action's arguments. nvcc names its temporary files by its process id,
# which is the same in every sandbox: each needs a folder of its own.
def _nvcc_command(redirection = ""):
    return " && ".join([
        "export TMPDIR=$(mktemp -d)",
        "trap 'rm -rf \"$TMPDIR\"' EXIT",
        "{{ {}/bin/nvcc \"$@\" {}; }}".format(CUDA_ROOT, redirection),
    ])

def _cuda_object_impl(ctx):
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    headers = depset(
        ctx.files.hdrs,
        transitive = [context.headers for context in contexts],
    )
    report = ctx.actions.declare_file(ctx.label.name + ".ptxas.txt")
    object_file = ctx.actions.declare_file(ctx.label.name + ".o")
    arguments = ctx.actions.args()
    arguments.add_all([
        "-std=c++20",
        "-O3",
        "--expt-relaxed-constexpr",
        "-lineinfo",
        "-compress-mode=size",
        "-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-fPIC",
        "-Xptxas=-v",
        "-Werror=all-warnings",
        "-cudart=static",
        "-I.",
        "-DNDEBUG",
        "-DQUIRE_CUDA_ARCHITECTURES=\"{}\"".format(
            ctx.attr._architectures[config_common.FeatureFlagInfo].value,
        ),
        "-x=" + ctx.attr.language,
        "-c",
        ctx.file.src,
        "-o",
        object_file,
    ])
    arguments.add_all(_gencode(
        ctx.attr._architectures[config_common.FeatureFlagInfo].value,
    ))
    arguments.add_all(ctx.attr.nvcc_options)
    ctx.actions.run_shell(
        outputs = [object_file, report],
        inputs = depset([ctx.file.src], transitive = [headers]),
        # What ptxas says of registers and spills is kept: a test reads it.
        command = _nvcc_command(
            "> {report} 2>&1 || {{ cat {report}; exit 1; }}".format(report = report.path),
        ),
        arguments = [arguments],
        mnemonic = "CudaCompile",
        progress_message = "Compiling {} with nvcc".format(ctx.file.src.short_path),
        use_default_shell_env = True,
    )

    # For tests that read or run it; of one architecture.
    ptx = ctx.actions.declare_file(ctx.label.name + ".ptx")
    ctx.actions.run_shell(
        outputs = [ptx],
        inputs = depset([ctx.file.src], transitive = [headers]),
        command = _nvcc_command(),
        arguments = [
            "-std=c++20",
            "-O3",
            "--expt-relaxed-constexpr",
            "-I.",
            "-DNDEBUG",
            "-arch=compute_" + _ptx_architecture(
                ctx.attr._architectures[config_common.FeatureFlagInfo].value,
            ),
            "-x=cu",
            "-ptx",
            ctx.file.src.path,
            "-o",
            ptx.path,
        ] + ctx.attr.nvcc_options,
        mnemonic = "CudaPtx",
        progress_message = "Compiling {} to PTX".format(ctx.file.src.short_path),
        use_default_shell_env = True,
    )
    return [
        DefaultInfo(files = depset([object_file])),
        OutputGroupInfo(ptxas = depset([report]), ptx = depset([ptx])),
    ]

_cuda_object = rule(
    implementation = _cuda_object_impl,
    attrs = {
        "src": attr.label(allow_single_file = [".cc"], mandatory = True),
        "hdrs": attr.label_list(allow_files = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "language": attr.string(default = "cu", values = ["cu", "c++"]),
        "nvcc_options": attr.string_list(),
        "_architectures": attr.label(default = "//kernels/cuda:architectures"),
    },
)

def cuda_library(
        name,
        srcs,
        host_srcs = [],
        hdrs = [],
        deps = [],
        nvcc_options = [],
        linkopts = [],
        **kwargs):
    """A cc_library of CUDA sources.

    Args:
      name: of the library; NAME.ptxas is what ptxas reported.
      srcs: .cc files; the same ones compile for the emulation.
      host_srcs: .cc files without kernels that include headers of CUDA.
      hdrs: headers of the library.
      deps: cc_libraries; headers only matter for nvcc.
      nvcc_options: further options.
      linkopts: of programs that depend on it, beside those for CUDA.
      **kwargs: of cc_library.
    """
    testonly = kwargs.get("testonly", False)
    objects = []
    for src in srcs + host_srcs:
        object_name = name + "_" + src.rpartition("/")[2].replace(".cc", "")
        _cuda_object(
            name = object_name,
            src = src,
            hdrs = hdrs,
            deps = deps,
            language = "c++" if src in host_srcs else "cu",
            nvcc_options = nvcc_options,
            testonly = testonly,
        )
        objects.append(object_name)
    cc_library(
        name = name,
        srcs = objects,
        hdrs = hdrs,
        linkopts = [
            "-L{}/lib64".format(CUDA_ROOT),
            "-lcudart_static",
            "-ldl",
            "-lrt",
            "-pthread",
        ] + linkopts,
        deps = deps,
        **kwargs
    )
    for object_name in objects:
        native.filegroup(
            name = object_name + ".ptxas",
            srcs = [object_name],
            output_group = "ptxas",
            testonly = testonly,
        )
        native.filegroup(
            name = object_name + ".ptx",
            srcs = [object_name],
            output_group = "ptx",
            tags = ["manual"],  # Where a test asks for it.
            testonly = testonly,
        )
    native.filegroup(
        name = name + ".ptxas",
        srcs = [object_name + ".ptxas" for object_name in objects],
        testonly = testonly,
    )
    native.filegroup(
        name = name + ".ptx",
        srcs = [
            name + "_" + src.rpartition("/")[2].replace(".cc", "") + ".ptx"
            for src in srcs
        ],
        tags = ["manual"],
        testonly = testonly,
        visibility = kwargs.get("visibility"),
    )

def _all_architectures_transition_impl(settings, attr):
    return {"//kernels/cuda:architectures": "all"}

_all_architectures_transition = transition(
    implementation = _all_architectures_transition_impl,
    inputs = [],
    outputs = ["//kernels/cuda:architectures"],
)

def _all_architectures_impl(ctx):
    return [DefaultInfo(
        files = depset(ctx.files.srcs),
        runfiles = ctx.runfiles(files = ctx.files.srcs),
    )]

# Files of `srcs`, built for every architecture whatever the build is for.
all_architectures = rule(
    implementation = _all_architectures_impl,
    attrs = {
        "srcs": attr.label_list(cfg = _all_architectures_transition),
        "_allowlist_function_transition": attr.label(
            default = "@bazel_tools//tools/allowlists/function_transition_allowlist",
        ),
    },
)
