#include "cli/edge.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "cli/version.h"
#include "engine/base/status.h"
#include "engine/speculative/link/vocabulary.h"
#include "tokenizer/tokenizer.h"

namespace quire {

namespace {

// OK if the file can be opened; else why not.
absl::Status CheckReadable(const char* option, const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info = {};
  const bool is_there = fd >= 0 && fstat(fd, &info) == 0;
  const int problem = !is_there ? errno : S_ISDIR(info.st_mode) ? EISDIR : 0;
  if (fd >= 0) close(fd);
  if (problem == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(option, " ", path, ": ", std::strerror(problem)));
}

}  // namespace

LinkPeer MakeLinkPeer(const Session& session) {
  LinkPeer peer;
  peer.software_version = kVersion;
  peer.model_name = session.model_name;
  peer.vocabulary = DigestVocabulary(
      session.tokenizer->vocab_size(),
      [&session](int32_t id) { return session.tokenizer->IdToToken(id); });
  peer.num_parameters = session.loaded.num_parameters;
  peer.max_model_len = session.engine_options.max_model_len;
  peer.vocab_size = session.engine_options.vocab_size;
  peer.max_drafts =
      std::min(session.engine_options.num_speculative_tokens, kMaxLinkDrafts);
  return peer;
}

absl::Status CheckLinkOptions(const ServeOptions& options) {
  if (options.verify_url.empty()) {
    for (const auto& [name, value] :
         {std::pair("--verify-api-key-file", options.verify_api_key_file),
          std::pair("--verify-ca", options.verify_ca_file)}) {
      if (!value.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, " needs --verify-url"));
      }
    }
    if (options.offline != ServeOptions().offline) {
      return absl::InvalidArgumentError(
          absl::StrCat("--offline ", options.offline, " needs --verify-url"));
    }
    return absl::OkStatus();
  }
  if (const auto url = ParseLinkUrl(options.verify_url); !url.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--verify-url ", url.status().message()));
  }
  if (!options.model.speculative_model.empty() ||
      !options.model.speculative_config.empty()) {
    return absl::InvalidArgumentError(
        "--verify-url: the edge's own model is the draft model; what else is "
        "to draft belongs to the cloud's options");
  }
  if (options.model.enable_verify_link) {
    return absl::InvalidArgumentError(
        "--enable-verify-link and --verify-url: an edge draws no tokens that "
        "others could rely on");
  }
  if (!options.verify_ca_file.empty()) {
    QUIRE_RETURN_IF_ERROR(CheckReadable("--verify-ca", options.verify_ca_file));
  }
  if (!options.verify_api_key_file.empty()) {
    QUIRE_RETURN_IF_ERROR(
        CheckReadable("--verify-api-key-file", options.verify_api_key_file));
  }
  return absl::OkStatus();
}

std::string LinkWarning(const ServeOptions& options) {
  if (options.verify_url.empty() || options.verify_api_key_file.empty()) {
    return "";
  }
  const auto url = ParseLinkUrl(options.verify_url);
  if (!url.ok() || url->has_tls) return "";
  return absl::StrCat("--verify-url ", options.verify_url,
                      ": the key of --verify-api-key-file and all tokens go "
                      "over the network in the clear; use https://");
}

absl::StatusOr<EdgeEngineOptions> MakeEdgeEngineOptions(
    const ServeOptions& options, const Session& session,
    std::function<void(const std::string& line)> on_notice) {
  EdgeEngineOptions edge;
  QUIRE_ASSIGN_OR_RETURN(edge.link.url, ParseLinkUrl(options.verify_url));
  edge.link.ca_file = options.verify_ca_file;
  edge.link.api_key_file = options.verify_api_key_file;
  edge.link.peer = MakeLinkPeer(session);
  edge.link.token_text = [tokenizer = session.tokenizer.get()](int32_t id) {
    return tokenizer->IdToToken(id);
  };
  edge.link.on_notice = std::move(on_notice);
  edge.offline = options.offline == "draft" ? OfflinePolicy::kDraft
                                            : OfflinePolicy::kError;
  edge.max_requests = options.model.max_num_queued_reqs;
  // Another stream than the engine's own: these seeds go to the cloud.
  edge.random_seed = session.engine_options.random_seed ^ 0xED6E;
  return edge;
}

namespace {

class MetricsText {
 public:
  explicit MetricsText(const std::string& model_name) {
    for (const char c : model_name) {
      if (c == '"' || c == '\\') label_ += '\\';
      if (c == '\n') {
        label_ += "\\n";
      } else {
        label_ += c;
      }
    }
  }
  void Add(const char* name, const char* type, const char* help, double value) {
    absl::StrAppendFormat(&text_,
                          "# HELP %s %s\n# TYPE %s %s\n%s{model_name=\"%s\"} "
                          "%.9g\n",
                          name, help, name, type, name, label_, value);
  }
  const std::string& text() const { return text_; }

 private:
  std::string label_, text_;
};

}  // namespace

std::string EdgeMetrics(const EdgeLinkStats& stats,
                        const std::string& model_name) {
  MetricsText out(model_name);
  out.Add("quire:verify_link_up", "gauge",
          "1 while the link to the cloud is up", stats.is_up ? 1 : 0);
  out.Add("quire:verify_link_round_trip_seconds", "gauge",
          "The last round trip of the link",
          absl::ToDoubleSeconds(stats.round_trip));
  out.Add("quire:verify_link_breaks_total", "counter",
          "Times that the link broke while it was up", stats.num_breaks);
  out.Add("quire:verify_link_draft_tokens_total", "counter",
          "Drafts sent to the cloud", stats.num_draft_tokens_sent);
  out.Add("quire:offline_requests_total", "counter",
          "Requests that the draft model answered or went on with",
          stats.num_offline_requests);
  return out.text();
}

std::string VerifyLinkMetrics(const VerifyLinkStats& stats,
                              const std::string& model_name) {
  MetricsText out(model_name);
  out.Add("quire:verify_links", "gauge", "Edges that are linked",
          stats.num_links);
  out.Add("quire:verify_links_opened_total", "counter",
          "Links that were welcomed", stats.num_opened);
  out.Add("quire:verify_links_refused_total", "counter",
          "Links refused because the edge has another vocabulary or a larger "
          "model",
          stats.num_refused);
  out.Add("quire:verify_links_cut_off_total", "counter",
          "Links ended because the edge did not keep to the protocol",
          stats.num_cut_off);
  out.Add("quire:verify_links_requests_total", "counter",
          "Requests that came over links", stats.num_requests);
  out.Add("quire:verify_links_draft_tokens_total", "counter",
          "Drafts that came over links", stats.num_draft_tokens);
  return out.text();
}

}  // namespace quire
