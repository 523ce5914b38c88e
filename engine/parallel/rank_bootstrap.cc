#include "engine/parallel/rank_bootstrap.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// Of a connection that says nothing.
constexpr absl::Duration kHelloTimeout = absl::Seconds(2);
// That have said nothing yet; the oldest goes for a new one.
constexpr size_t kMaxStrangers = 256;

// What a stranger may have sent goes into logs.
void MakePrintable(std::string& text) {
  constexpr size_t kMaxLength = 1024;
  text.resize(std::min(text.size(), kMaxLength));
  for (char& c : text) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) c = '?';
  }
}

// A child that ends closes its connection a moment before its exit code is
// there, which says more.
absl::Status HowItEnded(LocalRanks& local, const absl::Status& received) {
  if (!absl::IsUnavailable(received) ||
      absl::StrContains(received.message(), "rank")) {
    return received;
  }
  const absl::Time deadline = Clock::Monotonic()->Now() + absl::Seconds(1);
  absl::Status ended = local.Check();
  while (ended.ok() && Clock::Monotonic()->Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
    ended = local.Check();
  }
  return ended.ok() ? received : ended;
}

}  // namespace

std::string DescribeRank(int rank, const std::string& name) {
  return absl::StrCat("rank ", rank, " (", name, ")");
}

std::string ProcessName() {
  return absl::StrCat(OwnHostName(), ", process ", getpid());
}

RankReception::RankReception(const RankGroupOptions& options, int listener)
    : options_(options),
      listener_(listener),
      own_name_(DescribeRank(0, ProcessName())),
      pending_(options.ranks.layout.size()),
      joined_(options.ranks.layout.size()) {}

void RankReception::AddLocal(int rank, OwnedFd link) {
  pending_[rank] = std::make_unique<ControlLink>(std::move(link));
}

int RankReception::CountJoined() const {
  return 1 + static_cast<int>(std::count_if(
                 joined_.begin(), joined_.end(),
                 [](const JoinedRank& rank) { return rank.link != nullptr; }));
}

void RankReception::Log(const std::string& line) const {
  if (options_.on_log != nullptr) options_.on_log(line);
}

absl::Status RankReception::CheckHello(const Hello& hello,
                                       const std::string& their_name) {
  const RankLayout& layout = options_.ranks.layout;
  // Another number of ranks has its option among the facts, which says more.
  QUIRE_RETURN_IF_ERROR(
      CompareFacts(options_.ranks.facts, own_name_, hello.facts, their_name));
  if (hello.rank < 1 || hello.rank >= layout.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(their_name, " is none of the ranks 1 to ",
                     layout.size() - 1, " of ", own_name_));
  }
  const JoinedRank& place = joined_[hello.rank];
  if (place.link != nullptr) {
    return absl::AlreadyExistsError(absl::StrCat(
        their_name,
        " joins twice: ", DescribeRank(hello.rank, place.hello.name),
        " is there already, says ", own_name_));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<Hello>> RankReception::TakeMessage(
    Stranger& stranger, const Message& message, bool needs_proof) {
  absl::string_view hello_bytes = message.body;
  if (message.type == MessageType::kKnock && stranger.own_nonce.empty() &&
      message.body.size() == GroupKey::kNonceBytes) {
    if (!needs_proof) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the rank at ", stranger.address.ToString(), " has a group key, and ",
          own_name_, " has none (--group-key-file)"));
    }
    stranger.nonce = message.body;
    stranger.own_nonce = GroupKey::MakeNonce();
    stranger.since = Clock::Monotonic()->Now();
    QUIRE_RETURN_IF_ERROR(stranger.link->Send(
        MessageType::kChallenge,
        absl::StrCat(stranger.own_nonce,
                     options_.ranks.key.Prove(kLeaderRole, stranger.nonce,
                                              stranger.own_nonce)),
        absl::ZeroDuration()));
    return std::optional<Hello>();
  }
  if (needs_proof) {
    const size_t size = std::min(hello_bytes.size(), GroupKey::kMacBytes);
    const absl::string_view proof = hello_bytes.substr(0, size);
    hello_bytes.remove_prefix(size);
    if (message.type != MessageType::kProof ||
        !options_.ranks.key.IsProof(proof, kWorkerRole, stranger.nonce,
                                    stranger.own_nonce, hello_bytes)) {
      return absl::PermissionDeniedError(
          absl::StrCat(stranger.address.ToString(),
                       " does not prove the group's key (--group-key-file)"));
    }
  } else if (message.type != MessageType::kHello) {
    return absl::DataLossError(
        absl::StrCat(stranger.address.ToString(), " says no hello"));
  }
  QUIRE_ASSIGN_OR_RETURN(Hello hello, FromBytes<Hello>(hello_bytes));
  MakePrintable(hello.name);
  for (auto& [name, value] : hello.facts) {
    MakePrintable(name);
    MakePrintable(value);
  }
  return std::optional<Hello>(std::move(hello));
}

absl::StatusOr<std::optional<Hello>> RankReception::ReadHello(
    Stranger& stranger, int local_rank) {
  auto message = stranger.link->Receive(
      kMaxHelloBytes, Clock::Monotonic()->Now() + kHelloTimeout);
  if (!message.ok() && !stranger.own_nonce.empty()) {
    // It has heard rank 0's proof, and does not take it for one.
    return absl::PermissionDeniedError(absl::StrCat(
        stranger.address.ToString(), " has left when ", own_name_,
        " proved the group's key: it has another one (--group-key-file)"));
  }
  if (!message.ok() && local_rank >= 0) return message.status();
  if (!message.ok()) {
    return absl::Status(message.status().code(),
                        absl::StrCat(stranger.address.ToString(), ": ",
                                     message.status().message()));
  }
  if (local_rank >= 0 && message->type == MessageType::kFailure) {
    return absl::UnavailableError(
        absl::StrCat("rank ", local_rank, ": ", message->body));
  }
  const bool needs_proof = local_rank < 0 && !options_.ranks.key.empty();
  auto hello = TakeMessage(stranger, *message, needs_proof);
  if (!hello.ok()) {
    stranger.link
        ->Send(MessageType::kRefusal,
               needs_proof ? kPlainRefusal : hello.status().message(),
               absl::ZeroDuration())
        .IgnoreError();
  }
  return hello;
}

absl::Status RankReception::Receive(Stranger stranger, int local_rank) {
  QUIRE_ASSIGN_OR_RETURN(std::optional<Hello> hello,
                         ReadHello(stranger, local_rank));
  if (!hello.has_value()) {
    strangers_.push_back(std::move(stranger));
    return absl::OkStatus();
  }
  const std::string their_name = DescribeRank(hello->rank, hello->name);
  if (const absl::Status status = CheckHello(*hello, their_name);
      !status.ok()) {
    stranger.link
        ->Send(MessageType::kRefusal, status.message(), absl::ZeroDuration())
        .IgnoreError();
    return status;
  }
  JoinedRank& place = joined_[hello->rank];
  place.link = std::move(stranger.link);
  place.hello = *std::move(hello);
  place.host = std::move(stranger.address.host);
  return absl::OkStatus();
}

void RankReception::DropThoseWhoLeft() {
  for (JoinedRank& rank : joined_) {
    if (rank.link == nullptr || !rank.link->HasEnded()) continue;
    last_refusal_ = absl::StrCat(DescribeRank(rank.hello.rank, rank.hello.name),
                                 " has left again");
    Log(last_refusal_);
    rank = {};
  }
}

absl::Status RankReception::Missing() const {
  std::vector<int> missing;
  for (size_t rank = 1; rank < joined_.size(); ++rank) {
    if (joined_[rank].link == nullptr) {
      missing.push_back(static_cast<int>(rank));
    }
  }
  return absl::UnavailableError(absl::StrCat(
      own_name_, " has waited ",
      absl::FormatDuration(options_.ranks.bootstrap_timeout), " on ",
      options_.ranks.master.ToString(), " for rank ",
      absl::StrJoin(missing, ", "), " of ", joined_.size(),
      last_refusal_.empty() ? "" : absl::StrCat("; ", last_refusal_)));
}

absl::Status RankReception::AwaitAll(LocalRanks& local) {
  absl::Status status = ReceiveAll(local);
  if (status.ok()) return status;
  for (const JoinedRank& rank : joined_) {
    // Children end with this process, and have the same terminal.
    if (rank.link == nullptr || rank.host.empty()) continue;
    rank.link
        ->Send(MessageType::kFailure, status.message(), absl::ZeroDuration())
        .IgnoreError();
  }
  return status;
}

absl::Status RankReception::ReceiveAll(LocalRanks& local) {
  const absl::Time deadline =
      Clock::Monotonic()->Now() + options_.ranks.bootstrap_timeout;
  int num_told = 0;
  for (;;) {
    DropThoseWhoLeft();
    const int num_joined = CountJoined();
    if (num_joined != num_told && options_.on_waiting != nullptr) {
      options_.on_waiting(num_joined, static_cast<int>(joined_.size()));
    }
    num_told = num_joined;
    if (num_joined == static_cast<int>(joined_.size())) {
      return absl::OkStatus();
    }
    if (Clock::Monotonic()->Now() >= deadline) return Missing();
    std::vector<pollfd> fds;
    for (const auto& link : pending_) {
      if (link != nullptr) fds.push_back({link->fd(), POLLIN, 0});
    }
    if (listener_ >= 0) fds.push_back({listener_, POLLIN, 0});
    // In slices, to notice who has left, and who has said all of its hello.
    poll(fds.data(), fds.size(), strangers_.empty() ? 50 : 2);
    for (size_t rank = 0; rank < pending_.size(); ++rank) {
      if (pending_[rank] == nullptr || !pending_[rank]->HasMessage()) continue;
      // A child that does not fit, or says why it cannot start, is the end.
      Stranger child;
      child.link = std::move(pending_[rank]);
      const absl::Status received =
          Receive(std::move(child), static_cast<int>(rank));
      if (received.ok()) continue;
      return HowItEnded(local, received);
    }
    QUIRE_RETURN_IF_ERROR(local.Check());
    if (listener_ < 0) continue;
    for (Stranger& stranger : TakeStrangers()) {
      const absl::Status received = Receive(std::move(stranger), -1);
      if (received.ok()) continue;
      last_refusal_ = absl::StrCat("refused: ", received.message());
      Log(last_refusal_);
    }
  }
}

std::vector<RankReception::Stranger> RankReception::TakeStrangers() {
  const absl::Time now = Clock::Monotonic()->Now();
  for (;;) {
    auto accepted = AcceptTcp(listener_, absl::InfinitePast());
    if (!accepted.ok()) break;
    SetTcpOptions(accepted->get(), options_.ranks.watchdog);
    HostPort address = PeerAddress(accepted->get());
    if (strangers_.size() >= kMaxStrangers) strangers_.pop_front();
    strangers_.push_back({std::make_unique<ControlLink>(*std::move(accepted)),
                          std::move(address), now, "", ""});
    // The others are served, too, whoever knocks how often.
    if (strangers_.size() >= kMaxStrangers) break;
  }
  std::vector<Stranger> ready;
  std::deque<Stranger> silent;
  for (Stranger& stranger : strangers_) {
    if (stranger.link->HasWholeHello()) {
      ready.push_back(std::move(stranger));
    } else if (now - stranger.since < kHelloTimeout) {
      silent.push_back(std::move(stranger));
    } else {
      Log(absl::StrCat("refused: ", stranger.address.ToString(),
                       " says no hello"));
    }
  }
  strangers_ = std::move(silent);
  return ready;
}

void RankReception::RefuseLate() {
  for (Stranger& stranger : TakeStrangers()) {
    const auto hello = ReadHello(stranger, -1);
    if (!hello.ok()) {
      // Whoever scans ports is not worth a line, for as long as this serves.
      if (absl::IsPermissionDenied(hello.status())) {
        Log(absl::StrCat("refused: ", hello.status().message()));
      }
      continue;
    }
    if (!hello->has_value()) {
      strangers_.push_back(std::move(stranger));
      continue;
    }
    const std::string refusal = absl::StrCat(
        DescribeRank((*hello)->rank, (*hello)->name), " comes too late: the ",
        joined_.size(), " ranks of ", own_name_, " run already");
    stranger.link->Send(MessageType::kRefusal, refusal, absl::ZeroDuration())
        .IgnoreError();
    Log(absl::StrCat("refused: ", refusal));
  }
}

}  // namespace quire
