// Where this process stands among the processes that run one model together.
#ifndef QUIRE_ENGINE_PARALLEL_PARALLEL_CONFIG_H_
#define QUIRE_ENGINE_PARALLEL_PARALLEL_CONFIG_H_

#include <atomic>
#include <cstdint>

#include "kernels/communicator.h"

namespace quire {

// How far this process has come, for who watches whether it gets on: layers of
// all steps. One thread advances it, any may read it.
using StepProgress = std::atomic<int64_t>;

// Ranks of one tensor group are neighbours, so that a group lies on one host
// wherever the sizes allow it:
//
//   rank = pipeline rank * tensor_size + tensor rank,  size = all of them.
//
// The communicators are borrowed and must outlive what is made from this.
struct ParallelConfig {
  int tensor_size = 1;
  int pipeline_size = 1;
  int rank = 0;
  int size = 1;
  int local_size = 1;  // Ranks on this host: they share its memory.
  // Of this rank's tensor group; null if it is alone in it.
  Communicator* tensor = nullptr;
  // Of the ranks with this tensor rank, one for each stage; null if there is
  // one stage.
  Communicator* pipeline = nullptr;
  StepProgress* progress = nullptr;  // Borrowed, as these; null: not watched.

  int tensor_rank() const { return rank % tensor_size; }
  int pipeline_rank() const { return rank / tensor_size; }
  bool is_parallel() const { return size > 1; }
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_PARALLEL_CONFIG_H_
