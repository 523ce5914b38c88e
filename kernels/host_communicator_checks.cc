#include "kernels/host_communicator_checks.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"

namespace quire {
namespace {

// What rank `rank` brings to operation `seed`; finite, of mixed magnitudes, so
// that the order of additions shows.
std::vector<char> RandomValues(DType dtype, int64_t count, uint64_t seed,
                               int rank) {
  std::vector<char> bytes(count * DTypeSize(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = MixBits(MixBits(seed, rank), i);
    const float value = static_cast<float>(static_cast<int32_t>(bits)) *
                        0x1p-31f * static_cast<float>(1 << (bits >> 61));
    if (dtype == DType::kF32) {
      std::memcpy(bytes.data() + i * 4, &value, 4);
    } else {
      const uint16_t half =
          dtype == DType::kF16 ? FloatToHalf(value) : FloatToBf16(value);
      std::memcpy(bytes.data() + i * 2, &half, 2);
    }
  }
  return bytes;
}

// By elements, apart from rank_sum.cc.
std::vector<char> ExpectedSum(DType dtype, int64_t count, uint64_t seed,
                              int size) {
  std::vector<std::vector<char>> parts;
  for (int rank = 0; rank < size; ++rank) {
    parts.push_back(RandomValues(dtype, count, seed, rank));
  }
  std::vector<char> sum(count * DTypeSize(dtype));
  for (int64_t i = 0; i < count; ++i) {
    std::vector<float> sums;
    for (int rank = 0; rank < size; ++rank) {
      float value;
      if (dtype == DType::kF32) {
        std::memcpy(&value, parts[rank].data() + i * 4, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, parts[rank].data() + i * 2, 2);
        value = dtype == DType::kF16 ? HalfToFloat(half) : Bf16ToFloat(half);
      }
      sums.push_back(value);
    }
    // Neighbours, again and again; an odd one waits for the next round.
    while (sums.size() > 1) {
      for (size_t pair = 0; 2 * pair < sums.size(); ++pair) {
        const bool is_odd = 2 * pair + 1 == sums.size();
        sums[pair] =
            is_odd ? sums[2 * pair] : sums[2 * pair] + sums[2 * pair + 1];
      }
      sums.resize((sums.size() + 1) / 2);
    }
    const float total = sums[0];
    if (dtype == DType::kF32) {
      std::memcpy(sum.data() + i * 4, &total, 4);
    } else {
      const uint16_t half =
          dtype == DType::kF16 ? FloatToHalf(total) : FloatToBf16(total);
      std::memcpy(sum.data() + i * 2, &half, 2);
    }
  }
  return sum;
}

// A rank is sometimes so late that the others go to sleep.
void BeLate(uint64_t seed, int rank) {
  const uint64_t bits = MixBits(seed, rank + 1000);
  if (bits % 4 == 0) usleep(bits / 4 % 300);
}

class Check {
 public:
  void Expect(bool is_right, const std::string& what) {
    if (is_right) return;
    std::lock_guard<std::mutex> lock(mu_);
    if (wrong_.empty()) wrong_ = what;
  }
  std::string wrong() const { return wrong_; }

 private:
  std::mutex mu_;
  std::string wrong_;
};

// All collectives on one rank with [rows, cols] of `dtype`.
absl::Status RunCollectives(Communicator& group, DType dtype, int64_t rows,
                            int64_t cols, uint64_t seed, Check& check) {
  const int size = group.size(), rank = group.rank();
  const int64_t count = rows * cols;
  const std::string name =
      absl::StrCat(" of [", rows, ", ", cols, "] ", DTypeName(dtype),
                   " on rank ", rank, " of ", size, " is wrong");
  BeLate(seed, rank);
  std::vector<char> data = RandomValues(dtype, count, seed, rank);
  QUIRE_RETURN_IF_ERROR(group.AllReduceSum(
      TensorView::Matrix(data.data(), dtype, rows, cols), nullptr));
  check.Expect(data == ExpectedSum(dtype, count, seed, size),
               absl::StrCat("the sum", name));

  data = RandomValues(dtype, count, seed + 1, rank);
  std::vector<char> all(size * data.size());
  QUIRE_RETURN_IF_ERROR(group.AllGather(
      TensorView::Matrix(data.data(), dtype, rows, cols),
      TensorView::Matrix(all.data(), dtype, size * rows, cols), nullptr));
  for (int peer = 0; peer < size; ++peer) {
    const std::vector<char> part = RandomValues(dtype, count, seed + 1, peer);
    check.Expect(
        std::equal(part.begin(), part.end(), all.begin() + peer * part.size()),
        absl::StrCat("the gathering", name));
  }

  BeLate(seed + 2, rank);
  data = RandomValues(dtype, size * count, seed + 2, rank);
  std::vector<char> own(count * DTypeSize(dtype));
  QUIRE_RETURN_IF_ERROR(group.ReduceScatterSum(
      TensorView::Matrix(data.data(), dtype, size * rows, cols),
      TensorView::Matrix(own.data(), dtype, rows, cols), nullptr));
  const std::vector<char> sum =
      ExpectedSum(dtype, size * count, seed + 2, size);
  check.Expect(
      std::equal(own.begin(), own.end(), sum.begin() + rank * own.size()),
      absl::StrCat("the part of the sum", name));

  const int root = static_cast<int>(seed % size);
  data = RandomValues(dtype, count, seed + 3, rank);
  QUIRE_RETURN_IF_ERROR(group.Broadcast(
      TensorView::Matrix(data.data(), dtype, rows, cols), root, nullptr));
  check.Expect(data == RandomValues(dtype, count, seed + 3, root),
               absl::StrCat("the broadcast", name));
  return group.Barrier();
}

std::string FirstError(const std::vector<absl::Status>& results) {
  for (const absl::Status& status : results) {
    if (!status.ok()) return std::string(status.message());
  }
  return "";
}

}  // namespace

std::string CheckCollectives(HostTransport transport, int size) {
  HostTestGroup group(transport, size);
  Check check;
  const auto results = group.Run([&](Communicator& rank) -> absl::Status {
    uint64_t seed = 1;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      // 300000 f32 are more than one piece of 1 MiB; 1000 * 17 take two
      // operations.
      for (const auto& [rows, cols] : {std::pair{1, 1},
                                       {0, 8},
                                       {1, 64},
                                       {3, 31},
                                       {1000, 17},
                                       {1, 4096},
                                       {1, 300001}}) {
        QUIRE_RETURN_IF_ERROR(
            RunCollectives(rank, dtype, rows, cols, seed += 10, check));
      }
    }
    // Many small ones in a row, where one rank runs ahead of the others.
    for (int i = 0; i < 300; ++i) {
      BeLate(i, rank.rank());
      std::vector<char> data = RandomValues(DType::kF32, 50, i, rank.rank());
      QUIRE_RETURN_IF_ERROR(rank.AllReduceSum(
          TensorView::Vector(data.data(), DType::kF32, 50), nullptr));
      BeLate(i + 500, rank.rank());
      check.Expect(data == ExpectedSum(DType::kF32, 50, i, size),
                   "a sum in a row of many is wrong");
    }
    return absl::OkStatus();
  });
  return check.wrong().empty() ? FirstError(results) : check.wrong();
}

std::string CheckMessages(HostTransport transport, int size) {
  HostTestGroup group(transport, size);
  Check check;
  const auto results = group.Run([&](Communicator& rank) -> absl::Status {
    for (int64_t count : {1, 0, 1000, 100000, 7}) {
      for (int distance = 1; distance < size; ++distance) {
        // Around the ring, the even ranks sending first.
        const int to = (rank.rank() + distance) % size;
        const int from = (rank.rank() + size - distance) % size;
        std::vector<char> sent =
            RandomValues(DType::kF32, count, count, rank.rank());
        std::vector<char> received(sent.size());
        const auto send = [&] {
          return rank.Send(TensorView::Vector(sent.data(), DType::kF32, count),
                           to, nullptr);
        };
        const auto receive = [&] {
          return rank.Receive(
              TensorView::Vector(received.data(), DType::kF32, count), from,
              nullptr);
        };
        // In a ring of any size, rank 0 breaks the circle of who waits.
        const bool sends_first = rank.rank() < distance;
        if (sends_first) QUIRE_RETURN_IF_ERROR(send());
        QUIRE_RETURN_IF_ERROR(receive());
        if (!sends_first) QUIRE_RETURN_IF_ERROR(send());
        check.Expect(received == RandomValues(DType::kF32, count, count, from),
                     absl::StrCat("a message of ", count, " is wrong"));
      }
    }
    return absl::OkStatus();
  });
  return check.wrong().empty() ? FirstError(results) : check.wrong();
}

std::string CheckMismatches(HostTransport transport) {
  const auto failed = [](const absl::Status& status) {
    return (absl::IsInvalidArgument(status) &&
            absl::StrContains(status.message(), "calls")) ||
           absl::IsUnavailable(status);
  };
  std::vector<float> data(64);
  {
    HostTestGroup group(transport, 2, absl::Seconds(1));
    const auto results = group.Run([&](Communicator& rank) {
      std::vector<float> own(64);
      return rank.AllReduceSum(
          TensorView::Vector(own.data(),
                             rank.rank() == 0 ? DType::kF32 : DType::kBF16, 32),
          nullptr);
    });
    if (!failed(results[0]) || !failed(results[1])) {
      return "sums of different dtypes were taken for one";
    }
    if (group[0]->Barrier().ok()) return "the group goes on after a mismatch";
  }
  HostTestGroup group(transport, 2, absl::Seconds(1));
  const auto results = group.Run([&](Communicator& rank) {
    std::vector<float> own(64);
    if (rank.rank() == 0) {
      return rank.Send(TensorView::Vector(own.data(), DType::kF32, 32), 1,
                       nullptr);
    }
    // As many bytes, another kind of them.
    return rank.Receive(TensorView::Vector(own.data(), DType::kF16, 64), 0,
                        nullptr);
  });
  return failed(results[1]) ? "" : "a message was taken for another";
}

std::string CheckAbort(HostTransport transport) {
  HostTestGroup group(transport, 3, absl::Milliseconds(1500));
  const absl::Time begin = absl::Now();
  const auto results = group.Run([](Communicator& rank) {
    if (rank.rank() == 2) {
      rank.Abort();
      return absl::UnavailableError("aborted");
    }
    return rank.Barrier();
  });
  if (absl::Now() - begin > absl::Seconds(1)) return "Abort ends nothing";
  for (int i = 0; i < 3; ++i) {
    if (!absl::IsUnavailable(results[i])) return "an aborted barrier is over";
    if (!absl::IsUnavailable(group[i]->Barrier())) {
      return "the group goes on after Abort";
    }
  }
  return "";
}

std::string CheckDeath(HostTransport transport) {
  std::optional<SharedMemory> memory;
  std::vector<std::vector<int>> pairs;
  HostCommunicatorOptions options;
  options.size = 2;
  options.timeout = absl::Seconds(2);
  options.global_ranks = {4, 7};
  int pair[2] = {-1, -1};
  if (transport == HostTransport::kSharedMemory) {
    memory.emplace(*SharedMemory::Create(SharedCommunicatorBytes(2)));
  } else {
    QUIRE_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  }
  const auto create = [&](int rank) {
    options.rank = rank;
    if (transport == HostTransport::kSharedMemory) {
      return NewSharedCommunicator(memory->data(), options);
    }
    std::vector<int> sockets(2, -1);
    sockets[1 - rank] = pair[rank];
    return NewSocketCommunicator(std::move(sockets), options);
  };
  const pid_t child = fork();
  if (child == 0) {
    if (pair[0] >= 0) close(pair[0]);
    auto own = create(1);
    if (own.ok()) (void)(*own)->Barrier();
    for (;;) pause();
  }
  if (pair[1] >= 0) close(pair[1]);
  auto own = create(0);
  absl::Status met = own.status();
  if (met.ok()) met = (*own)->Barrier();
  absl::Time killed;
  std::thread killer([&] {
    usleep(20000);
    killed = absl::Now();
    kill(child, SIGKILL);
  });
  absl::Status status;
  if (met.ok()) status = (*own)->Barrier();
  killer.join();
  const absl::Duration noticed = absl::Now() - killed;
  waitpid(child, nullptr, 0);
  if (!met.ok()) return std::string(met.message());
  if (!absl::IsUnavailable(status)) return "a barrier with a dead rank is over";
  if (!absl::StrContains(status.message(), "rank 7 has gone")) {
    return absl::StrCat("the dead rank is not named: ", status.message());
  }
  if (noticed > absl::Seconds(1)) return "a dead rank is noticed too late";
  return "";
}

}  // namespace quire
