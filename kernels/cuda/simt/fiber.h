// Stacks that take turns on one operating-system thread: the threads of the
// emulated GPU. Not thread-safe.
#ifndef QUIRE_KERNELS_CUDA_SIMT_FIBER_H_
#define QUIRE_KERNELS_CUDA_SIMT_FIBER_H_

#include <cstddef>

namespace quire::simt::emulator {

// A stack of fixed size with a guard page below it. Memory is taken when it is
// touched and kept for the next launch.
class FiberStack {
 public:
  FiberStack();
  ~FiberStack();
  FiberStack(FiberStack&& other) noexcept;
  FiberStack& operator=(FiberStack&&) = delete;

  char* bottom() const { return bottom_; }
  static size_t size();

 private:
  char* bottom_ = nullptr;
};

// A suspended flow of control.
class FiberContext {
 public:
  // Makes the next SwitchTo call `entry`, which must never return.
  void Prepare(const FiberStack& stack, void (*entry)());

  // Saves the running flow in `from` and continues this one. With `is_last`,
  // `from` will never be continued.
  void SwitchFrom(FiberContext& from, bool is_last = false);

  // First thing to call in an entry function: completes the switch to it.
  static void Arrived(FiberContext& from);

 private:
  void* stack_pointer_ = nullptr;
  // What AddressSanitizer wants to know of a flow.
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace quire::simt::emulator

#endif  // QUIRE_KERNELS_CUDA_SIMT_FIBER_H_
