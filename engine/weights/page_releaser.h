// Gives the pages of mapped files back while the next ones are being read.
#ifndef QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_
#define QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

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
  std::mutex mu_;
  std::condition_variable has_news_;
  std::deque<absl::Span<const uint8_t>>
      queue_;  // Guarded by mu_, as all below.
  bool is_stopping_ = false;
  std::thread thread_;  // Started when it is needed.
};

}  // namespace quire

#endif  // QUIRE_ENGINE_WEIGHTS_PAGE_RELEASER_H_
