// Bounds the memory that many requests take together: bodies that are parsed,
// log-probabilities of answers.
#ifndef QUIRE_SERVER_MEMORY_BUDGET_H_
#define QUIRE_SERVER_MEMORY_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <utility>

namespace quire {

// Thread-safe; must outlive what it gave out.
class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t num_bytes) : num_total_(num_bytes) {}

  // Gives back what it holds when it goes.
  class Reservation {
   public:
    Reservation() = default;
    Reservation(Reservation&& other) noexcept { *this = std::move(other); }
    Reservation& operator=(Reservation&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(num_bytes_, other.num_bytes_);
      return *this;
    }
    ~Reservation() {
      if (budget_ != nullptr) budget_->num_used_ -= num_bytes_;
    }
    explicit operator bool() const { return budget_ != nullptr; }
    // False if there is not so much left. Requires: it holds a reservation.
    bool Grow(int64_t num_bytes) {
      Reservation more = budget_->TryReserve(num_bytes);
      if (!more) return false;
      num_bytes_ += std::exchange(more.num_bytes_, 0);
      return true;
    }

   private:
    friend class MemoryBudget;
    Reservation(MemoryBudget* budget, int64_t num_bytes)
        : budget_(budget), num_bytes_(num_bytes) {}
    MemoryBudget* budget_ = nullptr;
    int64_t num_bytes_ = 0;
  };

  // False if there is not so much left. What is larger than the whole budget
  // may have it alone: limits of single bodies are not set here.
  Reservation TryReserve(int64_t num_bytes) {
    int64_t used = num_used_.load();
    do {
      if (used > 0 && used + num_bytes > num_total_) return Reservation();
    } while (!num_used_.compare_exchange_weak(used, used + num_bytes));
    return Reservation(this, num_bytes);
  }

  double use() const { return static_cast<double>(num_used_) / num_total_; }

 private:
  const int64_t num_total_;
  std::atomic<int64_t> num_used_{0};
};

}  // namespace quire

#endif  // QUIRE_SERVER_MEMORY_BUDGET_H_
