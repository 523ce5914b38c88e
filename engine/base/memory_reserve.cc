#include "engine/base/memory_reserve.h"

#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace quire {
namespace {

// A step or a response takes kilobytes. Pages that are never touched cost
// address space only.
constexpr int kNumPieces = 16;
constexpr size_t kPieceBytes = 1 << 20;

std::atomic<void*> pieces[kNumPieces];
std::atomic<int> num_missing{0};

void GiveFromReserve() {
  for (std::atomic<void*>& piece : pieces) {
    void* const given = piece.exchange(nullptr);
    if (given == nullptr) continue;
    ++num_missing;
    free(given);
    return;
  }
  static constexpr char kLine[] = "quire: out of memory, and of its reserve\n";
  (void)!write(STDERR_FILENO, kLine, sizeof(kLine) - 1);
  _exit(70);
}

}  // namespace

void InstallMemoryReserve() {
  num_missing = kNumPieces;
  RefillMemoryReserve();
  std::set_new_handler(&GiveFromReserve);
}

bool RefillMemoryReserve() {
  if (num_missing == 0) return true;
  for (std::atomic<void*>& piece : pieces) {
    if (piece != nullptr) continue;
    void* const fresh = malloc(kPieceBytes);
    if (fresh == nullptr) return false;
    void* expected = nullptr;
    if (piece.compare_exchange_strong(expected, fresh)) {
      --num_missing;
    } else {
      free(fresh);  // Another thread was faster.
    }
  }
  return true;
}

bool HasMemoryFor(size_t num_bytes) {
  // The compiler may not remove the pair: it does not know the pointer's use.
  void* volatile probe = malloc(num_bytes);
  free(probe);
  return probe != nullptr;
}

}  // namespace quire
