// How the ranks of a run find each other: rank 0's half. Internal to
// rank_group.cc.
#ifndef QUIRE_ENGINE_PARALLEL_RANK_BOOTSTRAP_H_
#define QUIRE_ENGINE_PARALLEL_RANK_BOOTSTRAP_H_

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/parallel/control_link.h"
#include "engine/parallel/rank_group.h"

namespace quire {

// What a rank is told that has not proved the group's key, where there is one.
inline constexpr char kPlainRefusal[] = "refused";
// Of GroupKey::Prove.
inline constexpr char kLeaderRole[] = "leader";
inline constexpr char kWorkerRole[] = "worker";

// "rank 2 (worker-1, process 77)".
std::string DescribeRank(int rank, const std::string& name);
// Of this process: host and process.
std::string ProcessName();

// A rank that has said hello, and was right.
struct JoinedRank {
  std::unique_ptr<ControlLink> link;  // Null: not here.
  Hello hello;
  std::string host;  // Whence it connects; empty: this node.
};

// Thread-compatible. Takes hellos until every rank has said one, and refuses
// those that do not fit.
class RankReception {
 public:
  // `options` must outlive this. listener: -1 with one node.
  RankReception(const RankGroupOptions& options, int listener);

  // The connection of a child.
  void AddLocal(int rank, OwnedFd link);

  // Until all are there. `local` are the children, one of which may end. Ranks
  // of other nodes that have joined are told the error.
  absl::Status AwaitAll(LocalRanks& local);

  // By rank; [0] is empty.
  std::vector<JoinedRank>& joined() { return joined_; }

  // Somebody connects once all are there. Waits for nobody: to be called again
  // and again.
  void RefuseLate();

 private:
  // Who has connected, but has not said all of its hello.
  struct Stranger {
    std::unique_ptr<ControlLink> link;
    HostPort address;
    absl::Time since;
    // Once it has knocked: its nonce, and the one that it was answered with.
    std::string nonce, own_nonce;
  };

  absl::Status ReceiveAll(LocalRanks& local);
  int CountJoined() const;
  absl::Status CheckHello(const Hello& hello, const std::string& their_name);
  // Reads a hello, answers what is wrong, or keeps it. local_rank: of a child;
  // -1: a stranger, who knocks first if the group has a key.
  absl::Status Receive(Stranger stranger, int local_rank);
  // What the stranger has sent, if it is a hello of who may say one; none if it
  // has knocked and is heard again. An error has been answered.
  absl::StatusOr<std::optional<Hello>> ReadHello(Stranger& stranger,
                                                 int local_rank);
  absl::StatusOr<std::optional<Hello>> TakeMessage(Stranger& stranger,
                                                   const Message& message,
                                                   bool needs_proof);
  // Accepts who connects, and drops those who say nothing for long; who can be
  // read without waiting.
  std::vector<Stranger> TakeStrangers();
  void DropThoseWhoLeft();
  absl::Status Missing() const;
  void Log(const std::string& line) const;

  const RankGroupOptions& options_;
  const int listener_;
  const std::string own_name_;
  std::vector<std::unique_ptr<ControlLink>> pending_;  // By rank, of children.
  std::vector<JoinedRank> joined_;
  std::deque<Stranger> strangers_;  // The oldest first.
  std::string last_refusal_;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_PARALLEL_RANK_BOOTSTRAP_H_
