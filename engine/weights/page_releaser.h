// Gives the pages of mapped files back while the next ones are being read.
#ifndef QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_
#define QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/weights/mapped_file.h"

namespace quire {

// Without it a model would be in memory twice at the end of a load, the mapped
// file and what was packed of it, and unmapping a GiB at once would take 50 ms
// of one thread. Thread-safe. Advice only: bytes that were released are read
// from the file again when somebody touches them.
class PageReleaser {
 public:
  explicit PageReleaser(std::vector<std::shared_ptr<const MappedFile>> files);
  // Waits until all is released.
  ~PageReleaser();
  PageReleaser(const PageReleaser&) = delete;
  PageReleaser& operator=(const PageReleaser&) = delete;

  // Has the whole pages of `bytes` released by a thread of its own, or does it
  // if that is behind. What lies in none of the files (a copy) is left alone.
  void Release(absl::Span<const uint8_t> bytes);

 private:
  void Run();

  const std::vector<std::shared_ptr<const MappedFile>> files_;
  absl::Mutex mu_;
  std::deque<absl::Span<const uint8_t>> queue_ ABSL_GUARDED_BY(mu_);
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);  // Started when it is needed.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_
