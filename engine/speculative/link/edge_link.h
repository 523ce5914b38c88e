// The edge's end of the link: one connection to the cloud, made again whenever
// it breaks.
#ifndef QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_LINK_H_
#define QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_LINK_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/speculative/link/link_messages.h"
#include "engine/speculative/link/vocabulary.h"

namespace quire {

struct LinkUrl {
  bool has_tls = false;
  std::string host;  // A name, or an address without brackets.
  int port = 0;
};

// "https://cloud.example[:443]", "http://[::1]:8080". INVALID_ARGUMENT.
absl::StatusOr<LinkUrl> ParseLinkUrl(absl::string_view url);

struct EdgeLinkOptions {
  LinkUrl url;
  // PEM file of the authorities that may have signed the cloud's certificate;
  // empty: the system's.
  std::string ca_file;
  std::string api_key_file;  // Read for each connection; empty: no key.
  LinkPeer peer;             // What this side says in Hello.
  // Of the draft model; names what differs where the cloud refuses for its
  // vocabulary. Null: nothing is named.
  TokenText token_text;
  absl::Duration connect_timeout = absl::Seconds(5);
  // A cloud that says nothing for so long is gone; asked every ping_interval.
  absl::Duration silence_timeout = absl::Seconds(4);
  absl::Duration ping_interval = absl::Seconds(1);
  // Before the second try; doubled each time, with jitter, up to the limit.
  absl::Duration min_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(10);
  // A line for the log.
  std::function<void(const std::string& line)> on_notice;
  // One that asks for nobody's attention: the link is up. Null: on_notice.
  std::function<void(const std::string& line)> on_info;
};

// Called on the link's thread, in this order: OnUp (OnFrame | OnRoundTrip)*
// OnDown, and again.
class EdgeLinkHandler {
 public:
  virtual ~EdgeLinkHandler() = default;
  virtual void OnUp(const LinkPeer& cloud) = 0;
  // Not OK: the cloud does not keep to the protocol; the link is cut.
  virtual absl::Status OnFrame(LinkFrameType type,
                               absl::string_view payload) = 0;
  virtual void OnRoundTrip(absl::Duration round_trip) = 0;
  virtual void OnDown(const absl::Status& reason) = 0;
};

// Thread-safe.
class EdgeLink {
 public:
  // `handler` must outlive the link. INVALID_ARGUMENT if the file of
  // authorities cannot be used. Connects on a thread of its own.
  static absl::StatusOr<std::unique_ptr<EdgeLink>> Create(
      const EdgeLinkOptions& options, EdgeLinkHandler* handler);
  virtual ~EdgeLink() = default;  // Hangs up and joins; ends with OnDown.

  // Queues whole frames; they go out on the connection of the last OnUp or
  // nowhere.
  virtual void Send(absl::string_view frames) = 0;

  // OK while the link is up; else UNAVAILABLE with the last reason, or why it
  // is refused, which another try would hardly change: UNAUTHENTICATED (the
  // key, or the cloud's certificate), FAILED_PRECONDITION (vocabulary, size of
  // the model, version), ...
  virtual absl::Status State() const = 0;
  // Waits until the link is up or refused; State() then. Until the first call
  // has returned, or the link was up, refusals are not in the log: they are the
  // caller's to tell.
  virtual absl::Status WaitForAnswer(absl::Duration timeout) = 0;
};

}  // namespace quire

#endif  // QUIRE_ENGINE_SPECULATIVE_LINK_EDGE_LINK_H_
