#include "server/telemetry/span_exporter.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "server/http/test_certificate.h"
#include "server/json_text.h"
#include "server/telemetry/http_post.h"
#include "server/telemetry/otlp_span.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kHangTimeout = absl::Seconds(30);

// A collector on loopback: takes HTTP/1.1 requests, one per connection, and
// gives them the answers of a list, the last one for ever. With a certificate
// it speaks TLS only.
class Collector {
 public:
  struct Taken {
    std::string request_line;
    std::map<std::string, std::string> fields;  // Names in lower case.
    std::string body;
  };

  explicit Collector(std::vector<std::string> answers = {"200 OK"},
                     const Certificate* certificate = nullptr)
      : answers_(std::move(answers)) {
    if (certificate != nullptr) {
      tls_.reset(SSL_CTX_new(TLS_server_method()));
      EXPECT_EQ(SSL_CTX_use_certificate_file(
                    tls_.get(), certificate->certificate_file.c_str(),
                    SSL_FILETYPE_PEM),
                1);
      EXPECT_EQ(
          SSL_CTX_use_PrivateKey_file(tls_.get(), certificate->key_file.c_str(),
                                      SSL_FILETYPE_PEM),
          1);
    }
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
              0);
    EXPECT_EQ(listen(fd_, 16), 0);
    socklen_t size = sizeof(address);
    getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~Collector() {
    shutdown(fd_, SHUT_RDWR);
    thread_.join();
    close(fd_);
  }

  std::string url(absl::string_view host = "127.0.0.1") const {
    return absl::StrCat(tls_ == nullptr ? "http://" : "https://", host, ":",
                        port_, "/v1/traces");
  }
  int num_refused_handshakes() const { return num_refused_handshakes_; }
  // Whether so many come: who refuses tells nobody when the collector has seen
  // it.
  bool WaitForRefusedHandshakes(int count) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                             [&] { return num_refused_handshakes_ >= count; });
  }
  // The first `count` requests; fewer if they do not come.
  std::vector<Taken> Wait(size_t count) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, absl::ToChronoMilliseconds(kHangTimeout),
                      [&] { return taken_.size() >= count; });
    return taken_;
  }

 private:
  void Run() {
    for (;;) {
      const int peer = accept(fd_, nullptr, nullptr);
      if (peer < 0) return;
      const std::unique_ptr<SSL, decltype(&SSL_free)> session(
          tls_ == nullptr ? nullptr : SSL_new(tls_.get()), &SSL_free);
      if (session != nullptr && (SSL_set_fd(session.get(), peer) != 1 ||
                                 SSL_accept(session.get()) != 1)) {
        {
          std::lock_guard<std::mutex> lock(mu_);
          ++num_refused_handshakes_;
        }
        changed_.notify_all();
        close(peer);
        continue;
      }
      const auto receive = [&](char* to, int size) -> ssize_t {
        return session == nullptr ? recv(peer, to, size, 0)
                                  : SSL_read(session.get(), to, size);
      };
      std::string data;
      size_t head_size = std::string::npos;
      size_t body_size = 0;
      char buffer[4096];
      Taken taken;
      for (ssize_t size; (size = receive(buffer, sizeof(buffer))) > 0;) {
        data.append(buffer, size);
        if (head_size == std::string::npos) {
          head_size = data.find("\r\n\r\n");
          if (head_size == std::string::npos) continue;
          for (const absl::string_view line :
               absl::StrSplit(data.substr(0, head_size), "\r\n")) {
            const size_t colon = line.find(": ");
            if (taken.request_line.empty()) {
              taken.request_line = std::string(line);
            } else if (colon != absl::string_view::npos) {
              taken.fields[absl::AsciiStrToLower(line.substr(0, colon))] =
                  std::string(line.substr(colon + 2));
            }
          }
          EXPECT_TRUE(
              absl::SimpleAtoi(taken.fields["content-length"], &body_size));
        }
        if (data.size() >= head_size + 4 + body_size) break;
      }
      taken.body = data.substr(std::min(head_size + 4, data.size()));
      std::string answer;
      {
        std::lock_guard<std::mutex> lock(mu_);
        answer = answers_[std::min(taken_.size(), answers_.size() - 1)];
        taken_.push_back(std::move(taken));
      }
      const std::string text =
          absl::StrCat("HTTP/1.1 ", answer, "\r\nContent-Length: 2\r\n\r\n{}");
      if (session == nullptr) {
        (void)!send(peer, text.data(), text.size(), MSG_NOSIGNAL);
      } else {
        SSL_write(session.get(), text.data(), static_cast<int>(text.size()));
        SSL_shutdown(session.get());
      }
      close(peer);
      changed_.notify_all();
    }
  }

  std::vector<std::string> answers_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> tls_{nullptr,
                                                         &SSL_CTX_free};
  std::atomic<int> num_refused_handshakes_{0};
  int fd_ = -1;
  int port_ = 0;
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<Taken> taken_;  // Guarded by mu_.
  std::thread thread_;
};

RequestRecord ARecord() {
  RequestRecord record;
  record.request_id = "req-1";
  record.trace.trace_id = "0af7651916cd43dd8448eb211c80319c";
  record.trace.parent_id = "b7ad6b7169203331";
  record.trace.span_id = "00f067aa0ba902b7";
  record.trace.state = "a=1";
  record.trace.is_sampled = true;
  record.method = "POST";
  record.route = "/v1/chat/completions";
  record.is_api = true;
  record.owner = "al\"ice";
  record.arrival_time = absl::FromUnixSeconds(100);
  record.wall_arrival = absl::FromUnixNanos(1'700'000'000'123'456'789);
  record.end_time = record.arrival_time + absl::Milliseconds(250);
  record.status = 200;
  record.operation = "chat";
  record.model = "m";
  record.temperature = 0.5;
  record.top_p = 1;
  record.max_tokens = 16;
  record.num_prompt_tokens = 3;
  record.num_completion_tokens = 5;
  record.scheduled_time = record.arrival_time + absl::Milliseconds(10);
  record.first_token_time = record.arrival_time + absl::Milliseconds(50);
  record.last_token_time = record.arrival_time + absl::Milliseconds(200);
  record.finish_reason = "stop";
  return record;
}

// The attributes of a span, by name.
std::map<std::string, Json> AttributesOf(const Json& span) {
  std::map<std::string, Json> attributes;
  for (const Json& attribute : span["attributes"]) {
    attributes[attribute["key"].get<std::string>()] = attribute["value"];
  }
  return attributes;
}

TEST(OtlpSpanTest, OfAnEngineRequest) {
  const auto parsed = ParseJson(EncodeSpan(ARecord()));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const Json& span = *parsed;
  EXPECT_EQ(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(span["spanId"], "00f067aa0ba902b7");
  EXPECT_EQ(span["parentSpanId"], "b7ad6b7169203331");
  EXPECT_EQ(span["traceState"], "a=1");
  EXPECT_EQ(span["name"], "llm_request");
  EXPECT_EQ(span["kind"], 2);
  EXPECT_EQ(span["startTimeUnixNano"], "1700000000123456789");
  EXPECT_EQ(span["endTimeUnixNano"], "1700000000373456789");
  EXPECT_FALSE(span.contains("status"));
  const auto attributes = AttributesOf(span);
  const auto at = [&](const char* name) {
    const auto found = attributes.find(name);
    return found == attributes.end() ? Json() : found->second;
  };
  EXPECT_EQ(at("gen_ai.request.id"), Json({{"stringValue", "req-1"}}));
  EXPECT_EQ(at("gen_ai.request.max_tokens"), Json({{"intValue", "16"}}));
  EXPECT_EQ(at("gen_ai.request.temperature"), Json({{"doubleValue", 0.5}}));
  EXPECT_EQ(at("gen_ai.response.model"), Json({{"stringValue", "m"}}));
  EXPECT_EQ(at("gen_ai.usage.prompt_tokens"), Json({{"intValue", "3"}}));
  EXPECT_EQ(at("gen_ai.usage.completion_tokens"), Json({{"intValue", "5"}}));
  EXPECT_EQ(at("quire.key.owner"), Json({{"stringValue", "al\"ice"}}));
  const std::pair<const char*, double> intervals[] = {
      {"gen_ai.latency.time_in_queue", 0.01},
      {"gen_ai.latency.time_to_first_token", 0.05},
      {"gen_ai.latency.time_in_model_prefill", 0.04},
      {"gen_ai.latency.time_in_model_decode", 0.15},
      {"gen_ai.latency.time_in_model_inference", 0.19},
      {"gen_ai.latency.e2e", 0.25}};
  for (const auto& [name, seconds] : intervals) {
    EXPECT_NEAR(at(name)["doubleValue"].get<double>(), seconds, 1e-9) << name;
  }
}

TEST(OtlpSpanTest, OfOtherRequests) {
  RequestRecord record;
  record.trace = ARecord().trace;
  record.trace.parent_id.clear();
  record.method = "GET";
  record.route = "/v1/models";
  record.status = 503;
  const auto span = ParseJson(EncodeSpan(record));
  ASSERT_TRUE(span.ok());
  EXPECT_EQ((*span)["name"], "GET /v1/models");
  EXPECT_FALSE(span->contains("parentSpanId"));
  EXPECT_EQ((*span)["status"]["code"], 2);
  EXPECT_EQ(AttributesOf(*span)["error.type"]["stringValue"], "503");
  EXPECT_EQ(AttributesOf(*span).count("gen_ai.usage.prompt_tokens"), 0u);
}

TEST(SpanExporterTest, SendsWhatIsSampled) {
  Collector collector;
  const auto counts = std::make_shared<TelemetryCounts>();
  SpanExporterOptions options;
  options.endpoint = collector.url();
  options.headers = {{"x-team", "blue green"}};
  options.resource = {{"k8s.pod.name", "quire-0"}};
  options.version = "1.2.3";
  {
    const auto exporter = SpanExporter::Create(options, counts);
    ASSERT_TRUE(exporter.ok()) << exporter.status();
    RequestRecord record = ARecord();
    (*exporter)->OnBegin(&record);
    EXPECT_EQ(record.trace.trace_id, ARecord().trace.trace_id);
    (*exporter)->OnEnd(record);
    // The caller's flag is respected.
    record.trace.is_sampled = false;
    (*exporter)->OnBegin(&record);
    EXPECT_FALSE(record.trace.is_sampled);
    (*exporter)->OnEnd(record);
    // A trace begins here.
    RequestRecord first;
    first.is_api = true;
    (*exporter)->OnBegin(&first);
    EXPECT_TRUE(first.trace.is_sampled);
    EXPECT_EQ(first.trace.trace_id.size(), 32u);
    (*exporter)->OnEnd(first);
    // Probes and strangers do not.
    RequestRecord probe;
    (*exporter)->OnBegin(&probe);
    EXPECT_FALSE(probe.trace.has_trace());
    (*exporter)->OnEnd(probe);
  }
  const auto taken = collector.Wait(1);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].request_line, "POST /v1/traces HTTP/1.1");
  EXPECT_EQ(taken[0].fields.at("content-type"), "application/json");
  EXPECT_EQ(taken[0].fields.at("x-team"), "blue green");
  const auto body = ParseJson(taken[0].body);
  ASSERT_TRUE(body.ok()) << body.status();
  const Json& resource_spans = (*body)["resourceSpans"][0];
  const Json& scope_spans = resource_spans["scopeSpans"][0];
  EXPECT_EQ(scope_spans["scope"]["name"], "quire");
  EXPECT_EQ(scope_spans["spans"].size(), 2u);
  const auto resource = AttributesOf(resource_spans["resource"]);
  EXPECT_EQ(resource.at("service.name")["stringValue"], "quire");
  EXPECT_EQ(resource.at("service.version")["stringValue"], "1.2.3");
  EXPECT_EQ(resource.at("k8s.pod.name")["stringValue"], "quire-0");
  EXPECT_EQ(counts->num_spans_exported, 2);
  EXPECT_EQ(counts->num_spans_dropped, 0);
}

TEST(SpanExporterTest, BatchesAndTriesAgain) {
  Collector collector({"503 Busy\r\nRetry-After: 0", "200 OK"});
  const auto counts = std::make_shared<TelemetryCounts>();
  SpanExporterOptions options;
  options.endpoint = collector.url();
  options.max_batch_spans = 10;
  options.batch_delay = absl::Hours(1);  // Only full batches go.
  const auto exporter = SpanExporter::Create(options, counts);
  ASSERT_TRUE(exporter.ok()) << exporter.status();
  for (int i = 0; i < 10; ++i) (*exporter)->OnEnd(ARecord());
  const auto taken = collector.Wait(2);
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0].body, taken[1].body);
  EXPECT_EQ(
      (*ParseJson(taken[1].body))["resourceSpans"][0]["scopeSpans"][0]["spans"]
          .size(),
      10u);
}

TEST(SpanExporterTest, RefusedAndUnreachableAreCounted) {
  const auto counts = std::make_shared<TelemetryCounts>();
  Collector refusing({"400 Bad Request"});
  SpanExporterOptions options;
  options.endpoint = refusing.url();
  {
    const auto exporter = SpanExporter::Create(options, counts);
    ASSERT_TRUE(exporter.ok());
    for (int i = 0; i < 3; ++i) (*exporter)->OnEnd(ARecord());
  }
  EXPECT_EQ(refusing.Wait(1).size(), 1u);  // Once: it would not help.
  EXPECT_EQ(counts->num_spans_dropped, 3);
  options.endpoint = "http://127.0.0.1:1/v1/traces";
  options.max_queued_spans = 5;
  {
    const auto exporter = SpanExporter::Create(options, counts);
    ASSERT_TRUE(exporter.ok());
    for (int i = 0; i < 20; ++i) (*exporter)->OnEnd(ARecord());
    // Those beyond the queue at once.
    EXPECT_GE(counts->num_spans_dropped, 3 + 15);
  }
  EXPECT_EQ(counts->num_spans_dropped, 3 + 20);
  EXPECT_EQ(counts->num_spans_exported, 0);
}

// One that takes the connection and says nothing.
TEST(SpanExporterTest, SilentCollectorDelaysTheEndByItsBound) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  ASSERT_EQ(listen(fd, 4), 0);
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  SpanExporterOptions options;
  options.endpoint =
      absl::StrCat("http://127.0.0.1:", ntohs(address.sin_port), "/");
  options.timeout = absl::Hours(1);
  const auto counts = std::make_shared<TelemetryCounts>();
  const absl::Time start = absl::Now();
  {
    const auto exporter = SpanExporter::Create(options, counts);
    ASSERT_TRUE(exporter.ok());
    (*exporter)->OnEnd(ARecord());
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  close(fd);
}

// Sends one span; how many the collector took.
size_t NumTakenOverTls(Collector& collector, absl::string_view host,
                       const std::string& authorities_file) {
  const auto counts = std::make_shared<TelemetryCounts>();
  SpanExporterOptions options;
  options.endpoint = collector.url(host);
  options.authorities_file = authorities_file;
  {
    const auto exporter = SpanExporter::Create(options, counts);
    EXPECT_TRUE(exporter.ok()) << exporter.status();
    if (!exporter.ok()) return 0;
    (*exporter)->OnEnd(ARecord());
  }
  EXPECT_EQ(counts->num_spans_exported + counts->num_spans_dropped, 1);
  return counts->num_spans_exported;
}

TEST(SpanExporterTest, OverTlsOnlyToWhomAnAuthorityVouchesFor) {
  // The collector writes to peers that have hung up.
  signal(SIGPIPE, SIG_IGN);
  const std::string stem = testing::TempDir() + "spans_";
  const Certificate authority(stem + "ca", "an authority of ours");
  const Certificate stranger(stem + "other", "another authority");
  const Certificate certificate(stem + "collector", "collector", &authority,
                                "IP:127.0.0.1,DNS:localhost");
  Collector collector({"200 OK"}, &certificate);
  const auto taken_from = [&](absl::string_view host, const std::string& file) {
    return NumTakenOverTls(collector, host, file);
  };
  EXPECT_EQ(taken_from("127.0.0.1", authority.certificate_file), 1u);
  EXPECT_EQ(taken_from("localhost", authority.certificate_file), 1u);
  const auto taken = collector.Wait(2);
  ASSERT_EQ(taken.size(), 2u);
  EXPECT_EQ(taken[0].request_line, "POST /v1/traces HTTP/1.1");
  EXPECT_TRUE(ParseJson(taken[1].body).ok());
  EXPECT_EQ(collector.num_refused_handshakes(), 0);

  // Nobody vouches for it: another authority, or the system's.
  EXPECT_EQ(taken_from("127.0.0.1", stranger.certificate_file), 0u);
  EXPECT_EQ(taken_from("127.0.0.1", ""), 0u);
  // The certificate is another host's.
  const Certificate elsewhere(stem + "elsewhere", "127.0.0.1", &authority,
                              "IP:127.0.0.2,DNS:collector");
  Collector impostor({"200 OK"}, &elsewhere);
  EXPECT_EQ(NumTakenOverTls(impostor, "127.0.0.1", authority.certificate_file),
            0u);
  // No span was sent to any of them.
  EXPECT_EQ(collector.Wait(2).size(), 2u);
  EXPECT_EQ(impostor.Wait(0).size(), 0u);
  EXPECT_TRUE(collector.WaitForRefusedHandshakes(2));
  EXPECT_TRUE(impostor.WaitForRefusedHandshakes(1));

  SpanExporterOptions options;
  options.endpoint = collector.url();
  options.authorities_file = stem + "missing.pem";
  const auto refused =
      SpanExporter::Create(options, std::make_shared<TelemetryCounts>());
  ASSERT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_TRUE(
      absl::StrContains(refused.status().message(), options.authorities_file));
}

// One that expects no TLS answers with what is none.
TEST(SpanExporterTest, PlainCollectorBehindHttps) {
  Collector collector;
  const auto counts = std::make_shared<TelemetryCounts>();
  SpanExporterOptions options;
  options.endpoint = "https" + collector.url().substr(4);
  options.timeout = absl::Milliseconds(200);
  {
    const auto exporter = SpanExporter::Create(options, counts);
    ASSERT_TRUE(exporter.ok());
    (*exporter)->OnEnd(ARecord());
  }
  EXPECT_EQ(counts->num_spans_dropped, 1);
  EXPECT_EQ(counts->num_spans_exported, 0);
}

TEST(SpanExporterTest, SamplesByTrace) {
  SpanExporterOptions options;
  options.endpoint = "http://127.0.0.1:1/";
  options.sampled_part = 0.25;
  options.follows_parent = false;
  const auto exporter =
      SpanExporter::Create(options, std::make_shared<TelemetryCounts>());
  ASSERT_TRUE(exporter.ok());
  int num_sampled = 0;
  constexpr int kNumTraces = 4000;
  for (int i = 0; i < kNumTraces; ++i) {
    RequestRecord record;
    record.is_api = true;
    (*exporter)->OnBegin(&record);
    num_sampled += record.trace.is_sampled;
    // The same trace again is decided alike.
    const bool was_sampled = record.trace.is_sampled;
    (*exporter)->OnBegin(&record);
    EXPECT_EQ(record.trace.is_sampled, was_sampled);
  }
  // 12 standard deviations.
  EXPECT_NEAR(num_sampled, kNumTraces / 4, 12 * 28);
}

TEST(SpanExporterOptionsTest, ReadsTheEnvironment) {
  std::map<std::string, std::string> variables;
  const auto read = [&](const std::string& endpoint) {
    return ReadSpanExporterOptions(endpoint, [&](const char* name) {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  ASSERT_TRUE(read("").ok());
  EXPECT_EQ(*read(""), nullptr);
  EXPECT_EQ((*read("http://c:4318"))->endpoint, "http://c:4318/v1/traces");
  EXPECT_EQ((*read("http://c:4318/"))->endpoint, "http://c:4318/v1/traces");
  EXPECT_EQ((*read("http://c:4318/x"))->endpoint, "http://c:4318/x");
  variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://all:4318/";
  EXPECT_EQ((*read(""))->endpoint, "http://all:4318/v1/traces");
  variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = "http://traces:1/t";
  variables["OTEL_EXPORTER_OTLP_HEADERS"] = "a=1%202, b = x";
  variables["OTEL_RESOURCE_ATTRIBUTES"] = "service.name=n,service.namespace=s";
  variables["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio";
  variables["OTEL_TRACES_SAMPLER_ARG"] = "0.5";
  {
    const auto options = read("");
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ((*options)->endpoint, "http://traces:1/t");
    using Pairs = std::vector<std::pair<std::string, std::string>>;
    EXPECT_EQ((*options)->headers, (Pairs{{"a", "1 2"}, {"b", "x"}}));
    EXPECT_EQ((*options)->resource, (Pairs{{"service.namespace", "s"}}));
    EXPECT_EQ((*options)->service_name, "n");
    EXPECT_EQ((*options)->sampled_part, 0.5);
    EXPECT_TRUE((*options)->follows_parent);
  }
  const auto expect_refused = [&](const char* name, const char* value) {
    const auto before = variables;
    variables[name] = value;
    EXPECT_TRUE(absl::IsInvalidArgument(read("").status())) << name;
    variables = before;
  };
  expect_refused("OTEL_TRACES_SAMPLER_ARG", "2");
  expect_refused("OTEL_TRACES_SAMPLER", "jaeger_remote");
  expect_refused("OTEL_EXPORTER_OTLP_HEADERS", "a");
  expect_refused("OTEL_EXPORTER_OTLP_HEADERS", "a=%0d%0ax: y");
  expect_refused("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
  variables["OTEL_SDK_DISABLED"] = "TRUE";
  EXPECT_EQ(*read(""), nullptr);
}

TEST(PostTargetTest, Parses) {
  const auto parse = [](const char* url) {
    const auto target = ParsePostTarget(url);
    return target.ok()
               ? absl::StrCat(target->is_tls ? "tls " : "", target->host, " ",
                              target->port, " ", target->path)
               : "refused";
  };
  EXPECT_EQ(parse("http://h:4318/v1/traces?x=1"), "h 4318 /v1/traces?x=1");
  EXPECT_EQ(parse("https://h"), "tls h 443 /");
  EXPECT_EQ(parse("http://h?x"), "h 80 /?x");
  EXPECT_EQ(parse("http://[::1]:99/a"), "::1 99 /a");
  for (const char* bad :
       {"", "h:1", "ftp://h", "http://", "http:///x", "http://h:0",
        "http://h:99999", "http://h:x", "http://u:p@h", "http://h/a b",
        "http://h/\r\nX: y", "http://[::1", "http://[::1]x"}) {
    EXPECT_EQ(parse(bad), "refused") << bad;
  }
}

}  // namespace
}  // namespace quire
