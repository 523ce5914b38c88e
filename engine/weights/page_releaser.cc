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
    absl::MutexLock lock(&mu_);
    is_stopping_ = true;
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

void PageReleaser::Release(absl::Span<const uint8_t> bytes) {
  if (bytes.size() < kMinBytes) return;
  {
    absl::MutexLock lock(&mu_);
    if (queue_.size() < kMaxQueued) {
      queue_.push_back(bytes);
      if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
      return;
    }
  }
  for (const auto& file : files_) file->ReleasePages(bytes);
}

void PageReleaser::Run() {
  const auto has_news = [this] {
    mu_.AssertHeld();
    return is_stopping_ || !queue_.empty();
  };
  for (;;) {
    absl::Span<const uint8_t> bytes;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&has_news));
      if (queue_.empty()) return;
      bytes = queue_.front();
      queue_.pop_front();
    }
    for (const auto& file : files_) file->ReleasePages(bytes);
  }
}

}  // namespace quire
