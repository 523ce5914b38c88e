"""Finds the CUDA toolkit of this machine, if there is one, for WORKSPACE."""

def _local_cuda_impl(repository_ctx):
    root = repository_ctx.os.environ.get("CUDA_HOME", "/usr/local/cuda")
    is_present = repository_ctx.path(root + "/bin/nvcc").exists
    # NCCL is no part of the toolkit.
    has_nccl = is_present and any([
        repository_ctx.path(folder + "/nccl.h").exists
        for folder in [root + "/include", "/usr/include", "/usr/local/include"]
    ])
    repository_ctx.file("BUILD.bazel", "")
    repository_ctx.file("defs.bzl", "\n".join([
        "IS_CUDA_PRESENT = {}".format(is_present),
        "HAS_NCCL = {}".format(has_nccl),
        "CUDA_ROOT = \"{}\"".format(root),
        "",
    ]))

local_cuda = repository_rule(
    implementation = _local_cuda_impl,
    configure = True,
    environ = ["CUDA_HOME"],
    local = True,
)
