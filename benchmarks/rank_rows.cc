#include "benchmarks/rank_rows.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/statistics.h"
#include "engine/base/clock.h"
#include "engine/base/shared_memory.h"
#include "engine/base/status.h"
#include "engine/parallel/plan_ring.h"
#include "engine/parallel/step_plan_codec.h"
#include "engine/parallel/tcp.h"
#include "kernels/host_communicator.h"

namespace quire {
namespace {

constexpr StepPlanLimits kLimits = {.max_num_seqs = 64,
                                    .max_num_batched_tokens = 512,
                                    .max_model_len = 8192,
                                    .num_blocks = 1 << 16,
                                    .vocab_size = 1 << 18};
// A row is the median of so many; sums and plans take microseconds.
constexpr int kExecutions = 1000;
constexpr absl::Duration kTimeout = absl::Seconds(20);

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Runs body(rank) of the ranks 1 to size - 1 in child processes, which end with
// it, and of rank 0 here.
template <typename Body>
absl::Status RunRanks(int size, const Body& body) {
  std::vector<pid_t> children;
  for (int rank = 1; rank < size; ++rank) {
    const pid_t child = fork();
    if (child < 0) return absl::ResourceExhaustedError("cannot fork");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      _exit(body(rank).ok() ? 0 : 1);
    }
    children.push_back(child);
  }
  absl::Status status = body(0);
  for (const pid_t child : children) {
    int wait_status = 0;
    waitpid(child, &wait_status, 0);
    if (wait_status != 0 && status.ok()) {
      status = absl::InternalError("a rank of the benchmark failed");
    }
  }
  return status;
}

// Of one repetition each.
struct CallTimes {
  std::vector<double> medians, tails;  // 99th percentiles.
};

// Times what the ranks of a group do together.
absl::Status TimeCalls(int repetitions, absl::FunctionRef<absl::Status()> call,
                       CallTimes* times) {
  for (int i = 0; i < repetitions; ++i) {
    std::vector<double> each;
    for (int j = 0; j < kExecutions; ++j) {
      const double begin = Now();
      QUIRE_RETURN_IF_ERROR(call());
      each.push_back(Now() - begin);
    }
    times->medians.push_back(Median(each));
    times->tails.push_back(Percentile(std::move(each), 99));
  }
  return absl::OkStatus();
}

HostCommunicatorOptions OptionsOf(int rank, int size) {
  HostCommunicatorOptions options;
  options.rank = rank;
  options.size = size;
  options.timeout = kTimeout;
  return options;
}

// What each rank of a group does.
using OfRank = absl::FunctionRef<absl::Status(Communicator& group)>;

absl::Status RunSharedGroup(int size, OfRank body) {
  QUIRE_ASSIGN_OR_RETURN(const SharedMemory memory,
                         SharedMemory::Create(SharedCommunicatorBytes(size)));
  return RunRanks(size, [&](int rank) -> absl::Status {
    QUIRE_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> group,
        NewSharedCommunicator(memory.data(), OptionsOf(rank, size)));
    return body(*group);
  });
}

// Connections over loopback between every two ranks: [rank][peer].
using Mesh = std::vector<std::vector<OwnedFd>>;

absl::StatusOr<Mesh> ConnectMesh(int size) {
  QUIRE_ASSIGN_OR_RETURN(const OwnedFd listener, ListenTcp({"127.0.0.1", 0}));
  const HostPort address = {"127.0.0.1", LocalAddress(listener.get()).port};
  Mesh mesh(size);
  for (std::vector<OwnedFd>& links : mesh) links.resize(size);
  for (int a = 0; a < size; ++a) {
    for (int b = 0; b < a; ++b) {
      const absl::Time deadline = Clock::Monotonic()->Now() + kTimeout;
      QUIRE_ASSIGN_OR_RETURN(mesh[a][b], ConnectTcp(address, deadline));
      QUIRE_ASSIGN_OR_RETURN(mesh[b][a], AcceptTcp(listener.get(), deadline));
      SetTcpOptions(mesh[a][b].get(), kTimeout);
      SetTcpOptions(mesh[b][a].get(), kTimeout);
    }
  }
  return mesh;
}

absl::Status RunTcpGroup(int size, OfRank body) {
  QUIRE_ASSIGN_OR_RETURN(Mesh mesh, ConnectMesh(size));
  return RunRanks(size, [&](int rank) -> absl::Status {
    std::vector<int> sockets;
    for (OwnedFd& link : mesh[rank]) sockets.push_back(link.release());
    // The others' ends, so that a rank that ends is noticed.
    mesh.clear();
    QUIRE_ASSIGN_OR_RETURN(
        const std::unique_ptr<Communicator> group,
        NewSocketCommunicator(std::move(sockets), OptionsOf(rank, size)));
    return body(*group);
  });
}

absl::Status MeasureAllReduce(int size, int64_t num_bytes, bool is_tcp,
                              int repetitions, CallTimes* times) {
  const auto body = [&](Communicator& group) {
    std::vector<float> data(num_bytes / sizeof(float), 0.0f);
    const TensorView view =
        TensorView::Vector(data.data(), DType::kF32, data.size());
    return TimeCalls(
        repetitions, [&] { return group.AllReduceSum(view, nullptr); }, times);
  };
  return is_tcp ? RunTcpGroup(size, body) : RunSharedGroup(size, body);
}

absl::Status MeasureBarrier(int size, bool is_tcp, int repetitions,
                            CallTimes* times) {
  const auto body = [&](Communicator& group) {
    return TimeCalls(
        repetitions, [&] { return group.Barrier(); }, times);
  };
  return is_tcp ? RunTcpGroup(size, body) : RunSharedGroup(size, body);
}

SchedulerOutput Decodes(int num_seqs) {
  SchedulerOutput plan;
  for (int slot = 0; slot < num_seqs; ++slot) {
    ScheduledRow row;
    row.slot = slot;
    row.first_position = 1000 + slot;
    row.num_tokens = 1;
    row.needs_token = true;
    row.first_token_idx = slot;
    plan.rows.push_back(row);
    plan.token_ids.push_back(slot);
    // A block in 16 steps, spread evenly.
    if (slot % 16 == 0) plan.block_appends.push_back({slot, {slot}});
  }
  return plan;
}

struct PlanTimes {
  std::vector<double> send, all;
};

// Every reader answers by a counter; rank 0 waits for all of them.
absl::Status MeasurePlans(int size, int num_seqs, int repetitions,
                          PlanTimes* times) {
  const int64_t ring_bytes = PlanRingBytes();
  QUIRE_ASSIGN_OR_RETURN(
      const SharedMemory memory,
      SharedMemory::Create(ring_bytes + size * int64_t{sizeof(SharedCounter)}));
  auto* const answers =
      reinterpret_cast<SharedCounter*>(memory.data() + ring_bytes);
  const int num_messages = 2 * repetitions * kExecutions;
  const auto read = [&](int rank) -> absl::Status {
    PlanRingReader reader(memory.data(), rank - 1);
    StepPlanDecoder decoder(kLimits);
    SchedulerOutput plan;
    std::string bytes;
    for (int i = 1; i <= num_messages; ++i) {
      QUIRE_ASSIGN_OR_RETURN(const bool has_read,
                             reader.Read(&bytes, kTimeout, kTimeout));
      if (!has_read) return absl::UnavailableError("no plan comes");
      if (!bytes.empty()) QUIRE_RETURN_IF_ERROR(decoder.Decode(bytes, &plan));
      answers[rank].Store(i);
    }
    return absl::OkStatus();
  };
  const auto write = [&]() -> absl::Status {
    PlanRingWriter writer(memory.data(), size - 1);
    const SchedulerOutput plan = Decodes(num_seqs);
    std::string bytes;
    uint32_t num_sent = 0;
    const auto await_answers = [&] {
      ++num_sent;
      for (int rank = 1; rank < size; ++rank) {
        while (!answers[rank].HasReached(num_sent)) {
        }
      }
    };
    for (int i = 0; i < repetitions; ++i) {
      std::vector<double> send, all, empty;
      for (int j = 0; j < kExecutions; ++j) {
        double begin = Now();
        QUIRE_RETURN_IF_ERROR(writer.Write("", kTimeout));
        await_answers();
        empty.push_back(Now() - begin);
        begin = Now();
        bytes.clear();
        EncodeStepPlan(plan, &bytes);
        QUIRE_RETURN_IF_ERROR(writer.Write(bytes, kTimeout));
        send.push_back(Now() - begin);
        await_answers();
        all.push_back(Now() - begin);
      }
      times->send.push_back(Median(send));
      times->all.push_back(Median(all) - Median(empty) / 2);
    }
    return absl::OkStatus();
  };
  return RunRanks(size,
                  [&](int rank) { return rank == 0 ? write() : read(rank); });
}

}  // namespace

absl::Status MeasureRanks(
    int repetitions, const std::string& filter,
    const std::function<void(const std::string&, const std::vector<double>&)>&
        on_row) {
  const auto is_wanted = [&](const std::string& name) {
    return absl::StrContains(name, filter);
  };
  for (const int size : {2, 4}) {
    for (const int num_seqs : {1, 64}) {
      const std::string name =
          absl::StrCat("plan ", num_seqs, " decodes, ", size, " ranks");
      if (!is_wanted(name)) continue;
      PlanTimes times;
      QUIRE_RETURN_IF_ERROR(MeasurePlans(size, num_seqs, repetitions, &times));
      on_row(name, times.all);
      on_row(absl::StrCat(name, ", send"), times.send);
    }
  }
  for (const int size : {2, 4}) {
    for (const int64_t kib : {8, 256}) {
      for (const bool is_tcp : {false, true}) {
        const std::string name =
            absl::StrCat("all-reduce ", kib, " KiB, ", size, " ranks",
                         is_tcp ? ", TCP" : "");
        if (!is_wanted(name)) continue;
        CallTimes times;
        QUIRE_RETURN_IF_ERROR(
            MeasureAllReduce(size, kib << 10, is_tcp, repetitions, &times));
        on_row(name, times.medians);
      }
    }
  }
  for (const int size : {2, 4}) {
    for (const bool is_tcp : {false, true}) {
      const std::string name =
          absl::StrCat("rank barrier, ", size, " ranks", is_tcp ? ", TCP" : "");
      const std::string tail_name = absl::StrCat(name, ", p99");
      if (!is_wanted(tail_name)) continue;  // Nor is the other.
      CallTimes times;
      QUIRE_RETURN_IF_ERROR(MeasureBarrier(size, is_tcp, repetitions, &times));
      if (is_wanted(name)) on_row(name, times.medians);
      on_row(tail_name, times.tails);
    }
  }
  return absl::OkStatus();
}

}  // namespace quire
