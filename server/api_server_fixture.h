// The API through the socket: HTTP server, engine on the hash model, and a
// tokenizer of bytes.
#ifndef QUIRE_SERVER_API_SERVER_FIXTURE_H_
#define QUIRE_SERVER_API_SERVER_FIXTURE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/clock.h"
#include "gtest/gtest.h"
#include "server/api_error.h"
#include "server/api_server.h"
#include "server/fake_tokenizer.h"
#include "server/gate.h"
#include "server/http/test_client.h"
#include "server/http_server.h"
#include "server/prompt.h"
#include "server/recording_responder.h"
#include "tests/hash_model_runner.h"

namespace quire {

using Json = nlohmann::ordered_json;

inline constexpr absl::Duration kHangTimeout = absl::Seconds(60);
inline constexpr int kMaxModelLen = 8192;
inline constexpr char kTemplate[] =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

struct Route {
  const char* method;
  const char* path;
};
inline constexpr Route kPublicRoutes[] = {
    {"GET", "/health"},  {"GET", "/health/ready"}, {"GET", "/health/live"},
    {"GET", "/metrics"}, {"GET", "/load"},         {"GET", "/version"}};
inline constexpr Route kApiRoutes[] = {
    {"GET", "/v1/models"},       {"GET", "/v1/models/m"},
    {"POST", "/tokenize"},       {"POST", "/detokenize"},
    {"POST", "/v1/completions"}, {"POST", "/v1/chat/completions"},
    {"POST", "/completions"},    {"POST", "/v1/embeddings"},
    {"POST", "/embeddings"}};

class ApiServerTest : public testing::Test {
 protected:
  ApiServerTest() {
    http_options_.port = 0;
    http_options_.num_workers = 4;
    http_options_.max_body_bytes = 4 << 20;
    http_options_.error_body = [](int status, absl::string_view message) {
      return ErrorBody(status, message);
    };
    engine_options_.block_size = 16;
    engine_options_.num_blocks = 2048;
    engine_options_.max_model_len = kMaxModelLen;
    engine_options_.vocab_size = FakeTokenizer::kVocabSize;
    engine_options_.max_num_seqs = 8;
    engine_options_.max_num_batched_tokens = 256;
    engine_options_.eos_token_ids = {FakeTokenizer::kEos};
  }

  // As RunningServerImpl does it.
  ~ApiServerTest() override {
    if (http_ != nullptr) http_->Stop(absl::ZeroDuration());
    output_.Stop();
    loop_.reset();
  }

  void Listen() {
    auto http = HttpServer::Create(http_options_);
    ASSERT_TRUE(http.ok()) << http.status();
    http_ = *std::move(http);
    api_ = std::make_unique<ApiServer>(http_.get(), "1.2.3", gate_options_);
    ASSERT_TRUE(http_->Start().ok());
  }

  void Serve() {
    runner_ =
        std::make_unique<HashModelRunner>(engine_options_, HashModelOptions());
    runner_->on_collect = on_collect_;
    runner_->fail_collect = fail_collect_;
    auto loop = EngineLoop::Create(engine_options_, runner_.get(),
                                   Clock::Monotonic(), &output_);
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    output_.Start(loop_.get());
    auto chat_template = ChatTemplate::Parse(kTemplate);
    ASSERT_TRUE(chat_template.ok()) << chat_template.status();
    chat_template_ = *std::move(chat_template);
    ServedModel model;
    model.names = {"m", "alias", "org/m"};
    model.tokenizer = &tokenizer_;
    model.chat_template = chat_template_.get();
    model.engine = loop_.get();
    model.output = &output_;
    model.metrics = &metrics_;
    model.limits =
        MakePromptLimits(tokenizer_, kMaxModelLen, FakeTokenizer::kVocabSize);
    model.current_limits = current_limits_;
    model.created = 1700000000;
    model.eos_token_ids = engine_options_.eos_token_ids;
    model.embedding = embedding_;
    model.has_priorities =
        engine_options_.scheduling_policy == SchedulingPolicy::kPriority;
    model.has_request_metrics = has_request_metrics_;
    api_->Serve(model);
  }

  void Start() {
    Listen();
    Serve();
  }

  static std::string RequestText(const Route& route, absl::string_view body,
                                 absl::string_view fields = "") {
    return absl::StrCat(route.method, " ", route.path,
                        " HTTP/1.1\r\nHost: x\r\n", fields,
                        "Content-Length: ", body.size(), "\r\n\r\n", body);
  }
  TestClient Connect() {
    TestClient client;
    EXPECT_TRUE(client.Connect(http_->port()));
    return client;
  }
  TestResponse Ask(const Route& route, absl::string_view body = "",
                   absl::string_view fields = "") {
    return Connect().Ask(RequestText(route, body, fields));
  }
  TestResponse Chat(absl::string_view body, absl::string_view fields = "") {
    return Ask({"POST", "/v1/chat/completions"}, body, fields);
  }
  TestResponse Complete(absl::string_view body, absl::string_view fields = "") {
    return Ask({"POST", "/v1/completions"}, body, fields);
  }
  int Status(const char* path) { return Ask({"GET", path}).status; }

  static Json Parse(const TestResponse& response) {
    const auto value = ParseJson(response.body);
    EXPECT_TRUE(value.ok()) << response.body;
    return value.ok() ? *value : Json();
  }

  static void ExpectError(const TestResponse& response, int status,
                          const Json& type, const Json& param,
                          const Json& code) {
    EXPECT_EQ(response.status, status) << response.body;
    EXPECT_EQ(response.Field("content-type"), "application/json");
    const Json error = Parse(response)["error"];
    EXPECT_TRUE(error["message"].is_string()) << response.body;
    EXPECT_NE(error["message"], "");
    EXPECT_EQ(error["type"], type) << response.body;
    EXPECT_EQ(error["param"], param) << response.body;
    EXPECT_EQ(error["code"], code) << response.body;
    EXPECT_EQ(error.size(), 4u);
    EXPECT_EQ(response.Field("retry-after").empty(), status != 503);
  }

  void ExpectIdle() {
    ASSERT_TRUE(loop_->WaitUntilIdle(kHangTimeout));
    ASSERT_TRUE(output_.WaitUntilIdle(kHangTimeout));
    const EngineStats stats = loop_->Stats();
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
    EXPECT_EQ(runner_->violation(), "");
    EXPECT_TRUE(WaitUntil([&] { return http_->num_open_requests() == 0; }));
  }

  HttpServerOptions http_options_;
  RequestGateOptions gate_options_;
  std::optional<ServedEmbedding> embedding_;
  std::function<PromptLimits()> current_limits_;
  bool has_request_metrics_ = false;
  EngineOptions engine_options_;
  std::function<void()> on_collect_;
  std::function<absl::Status(int64_t)> fail_collect_;
  FakeTokenizer tokenizer_;
  std::unique_ptr<ChatTemplate> chat_template_;
  ServerMetrics metrics_{{.model_name = "m", .num_blocks = 2048}};
  std::unique_ptr<HashModelRunner> runner_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<ApiServer> api_;
  OutputProcessor output_{&metrics_};
  std::unique_ptr<EngineLoop> loop_;
};

inline constexpr char kHi[] = R"({"messages":[{"role":"user","content":"hi"}],
                           "max_tokens":5,"seed":1,"ignore_eos":true})";
// Runs for thousands of steps if nothing ends it.
inline constexpr char kLong[] = R"({"prompt":"hi","max_tokens":8000,"seed":1,
                             "ignore_eos":true,"stream":true})";

}  // namespace quire

#endif  // QUIRE_SERVER_API_SERVER_FIXTURE_H_
