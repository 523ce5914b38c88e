"""Tests of whole models that run on the CPU and on an emulated GPU alike."""

load("@rules_cc//cc:defs.bzl", "cc_library", "cc_test")

def device_test(name, srcs, cuda_filter, deps, cuda_devices = ["cuda"], visibility = [], **kwargs):
    """cc_test NAME, and NAME_cuda, of the same objects, with an emulated GPU.

    Args:
      name: of the test on the CPU.
      srcs: the test; it asks tests/test_device.h where to run.
      cuda_filter: --gtest_filter of the emulated GPU, in CI's time; a real one
        runs all that may run there (tests/gpu/check.sh).
      deps: of srcs.
      cuda_devices: values of QUIRE_TEST_DEVICE, a test each.
      visibility: of NAME.
      **kwargs: of cc_test.
    """
    cc_library(
        name = name + "_lib",
        testonly = True,
        srcs = srcs,
        deps = deps + [
            "//tests:test_device",
            "//third_party:gtest_main",
        ],
        alwayslink = True,
    )
    cc_test(
        name = name,
        visibility = visibility or None,
        deps = [":" + name + "_lib"],
        **kwargs
    )
    for device in cuda_devices:
        cc_test(
            name = name + "_" + device,
            args = ["--gtest_filter=" + cuda_filter],
            env = {"QUIRE_TEST_DEVICE": device},
            deps = [":" + name + "_lib"],
            **kwargs
        )
