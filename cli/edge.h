// Both ends of a verify link, from command-line options.
#ifndef QUIRE_CLI_EDGE_H_
#define QUIRE_CLI_EDGE_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/options.h"
#include "cli/session.h"
#include "engine/speculative/link/edge_engine.h"
#include "engine/speculative/link/link_messages.h"
#include "server/verify_link.h"

namespace quire {

// What this side of a link says of itself.
LinkPeer MakeLinkPeer(const Session& session);

// Whether the options about links fit each other, and their files can be read;
// INVALID_ARGUMENT naming one. Before the model is loaded.
absl::Status CheckLinkOptions(const ServeOptions& options);

// Of an edge. Requires: CheckLinkOptions.
// What is unsafe in them though it works; else empty. Requires that
// CheckLinkOptions is OK.
std::string LinkWarning(const ServeOptions& options);

absl::StatusOr<EdgeEngineOptions> MakeEdgeEngineOptions(
    const ServeOptions& options, const Session& session,
    std::function<void(const std::string& line)> on_notice);

// In Prometheus' text format, of an edge and of its cloud.
std::string EdgeMetrics(const EdgeLinkStats& stats,
                        const std::string& model_name);
std::string VerifyLinkMetrics(const VerifyLinkStats& stats,
                              const std::string& model_name);

}  // namespace quire

#endif  // QUIRE_CLI_EDGE_H_
