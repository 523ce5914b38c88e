// What host_cuda_runtime.cc offers to libraries of tests that stand for
// NVIDIA's and are opened at run time (host_cublas.cc), beside the functions of
// CUDA. They find it by dlsym.
#ifndef QUIRE_TESTS_GPU_PTX_HOST_CUDA_RUNTIME_H_
#define QUIRE_TESTS_GPU_PTX_HOST_CUDA_RUNTIME_H_

#include <cstddef>

extern "C" {

// Whether all these bytes lie in one allocation that kernels may use, now.
bool QuireHostRuntimeHolds(const void* begin, size_t num_bytes);
// A fault of a kernel, told on stderr: it sticks.
void QuireHostRuntimeFault(const char* what);

}  // extern "C"

#endif  // QUIRE_TESTS_GPU_PTX_HOST_CUDA_RUNTIME_H_
