#include "engine/weights/page_releaser.h"

#include <utility>

namespace quire {
namespace {

// Norms and scales are not worth a system call.
constexpr size_t kMinBytes = 64 << 10;
// If the thread gets no CPU its queue must not become the whole model.
constexpr size_t kMaxQueued = 8;

}  // namespace

PageReleaser::PageReleaser(std::vector<std::shared_ptr<const MappedFile>> files)
    : files_(std::move(files)) {}

PageReleaser::~PageReleaser() {
  std::thread thread;
  {
    std::lock_guard<std::mutex> lock(mu_);
    is_stopping_ = true;
    thread = std::move(thread_);
  }
  has_news_.notify_one();
  if (thread.joinable()) thread.join();
}

void PageReleaser::Release(absl::Span<const uint8_t> bytes) {
  if (bytes.size() < kMinBytes) return;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (queue_.size() < kMaxQueued) {
      queue_.push_back(bytes);
      has_news_.notify_one();
      if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
      return;
    }
  }
  for (const auto& file : files_) file->ReleasePages(bytes);
}

void PageReleaser::Run() {
  for (;;) {
    absl::Span<const uint8_t> bytes;
    {
      std::unique_lock<std::mutex> lock(mu_);
      has_news_.wait(lock, [this] { return is_stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      bytes = queue_.front();
      queue_.pop_front();
    }
    for (const auto& file : files_) file->ReleasePages(bytes);
  }
}

}  // namespace quire
