#include "kernels/cuda/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "engine/base/status.h"

#if defined(__SANITIZE_ADDRESS__)
#define QUIRE_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QUIRE_FIBER_ASAN 1
#endif
#endif
#ifdef QUIRE_FIBER_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a call preserves on the stack, stores the stack
// pointer in *save, and continues at the stack pointer `load`. ucontext would
// do the same with two system calls per switch.
extern "C" void quire_switch_stack(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl quire_switch_stack
.type quire_switch_stack,@function
quire_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size quire_switch_stack, .-quire_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl quire_switch_stack
.type quire_switch_stack,%function
quire_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size quire_switch_stack, .-quire_switch_stack
)");
#else
#error "write quire_switch_stack for this architecture"
#endif

namespace quire::simt::emulator {
namespace {

// Kernels keep large arrays of fragments in what are registers on a GPU, and
// AddressSanitizer puts room around each.
#ifdef QUIRE_FIBER_ASAN
constexpr size_t kStackSize = 512 << 10;
#else
constexpr size_t kStackSize = 128 << 10;
#endif

size_t PageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace

size_t FiberStack::size() { return kStackSize; }

FiberStack::FiberStack() {
  void* memory = mmap(nullptr, kStackSize + PageSize(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  QUIRE_CHECK(memory != MAP_FAILED);
  QUIRE_CHECK(mprotect(memory, PageSize(), PROT_NONE) == 0);
  bottom_ = static_cast<char*>(memory) + PageSize();
}

FiberStack::FiberStack(FiberStack&& other) noexcept
    : bottom_(std::exchange(other.bottom_, nullptr)) {}

FiberStack::~FiberStack() {
  if (bottom_) munmap(bottom_ - PageSize(), kStackSize + PageSize());
}

void FiberContext::Prepare(const FiberStack& stack, void (*entry)()) {
  stack_bottom_ = stack.bottom();
  stack_size_ = FiberStack::size();
  fake_stack_ = nullptr;
  auto* top = reinterpret_cast<void**>(stack.bottom() + FiberStack::size());
#if defined(__x86_64__)
  *--top = nullptr;  // Keeps the stack aligned as a call would.
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  stack_pointer_ = top;
}

void FiberContext::SwitchFrom(FiberContext& from,
                              [[maybe_unused]] bool is_last) {
#ifdef QUIRE_FIBER_ASAN
  __sanitizer_start_switch_fiber(is_last ? nullptr : &from.fake_stack_,
                                 stack_bottom_, stack_size_);
#endif
  quire_switch_stack(&from.stack_pointer_, stack_pointer_);
  // Here `from` runs again.
#ifdef QUIRE_FIBER_ASAN
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(from.fake_stack_, &bottom, &size);
#endif
}

void FiberContext::Arrived([[maybe_unused]] FiberContext& from) {
#ifdef QUIRE_FIBER_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom_,
                                  &from.stack_size_);
#endif
}

}  // namespace quire::simt::emulator
