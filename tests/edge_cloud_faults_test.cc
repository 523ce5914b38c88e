// What can go wrong between an edge and a cloud: links that break, hang or are
// refused, and peers that do not keep to the protocol. On the hash model.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/clock.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/speculative/link/edge_engine.h"
#include "engine/speculative/link/link_messages.h"
#include "gtest/gtest.h"
#include "server/http/test_certificate.h"
#include "server/http/test_client.h"
#include "tests/edge_cloud.h"
#include "tests/hash_model_runner.h"

namespace quire {
namespace {

EngineOptions MakeOptions(int num_speculative_tokens) {
  EngineOptions options;
  options.block_size = 16;
  options.num_blocks = 512;
  options.max_model_len = 4096;
  options.vocab_size = 300;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 128;
  options.eos_token_ids = {7};
  options.num_speculative_tokens = num_speculative_tokens;
  options.max_num_scored_tokens = 64;
  options.adapts_drafts = false;
  options.check_integrity = true;
  return options;
}

Request MakeRequest(RequestId id, int max_tokens, int n = 1) {
  Request request;
  request.id = id;
  for (int i = 0; i < 20; ++i) {
    request.prompt_token_ids.push_back(static_cast<int32_t>(8 + i * id % 200));
  }
  request.sampling.seed = id;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.n = n;
  return request;
}

std::vector<int32_t> IdsOf(const TestAnswer::Choice& choice) {
  std::vector<int32_t> ids;
  for (const TokenOutput& token : choice.tokens) ids.push_back(token.token_id);
  return ids;
}

// What the cloud's model says to a request alone.
std::vector<int32_t> Expected(const Request& request, int choice_idx) {
  return AnswerAlone(MakeOptions(0), HashModelOptions(), request,
                     *request.sampling.seed, choice_idx, 4096)
      .token_ids;
}

class EdgeCloudFaultsTest : public testing::Test {
 protected:
  EdgeCloudFaultsTest() : cloud_runner_(MakeOptions(4), HashModelOptions()) {
    // Slower than the edge, as a target is: drafts have a chance.
    cloud_runner_.on_collect = [this] {
      absl::SleepFor(absl::Microseconds(step_micros_.load()));
    };
    cloud_options_.engine = MakeOptions(4);
    cloud_options_.runner = &cloud_runner_;
    cloud_options_.peer = TestPeer(cloud_options_.engine, "cloud");
    edge_options_.link.peer = cloud_options_.peer;
    edge_options_.link.peer.model_name = "edge";
    edge_options_.link.min_backoff = absl::Milliseconds(2);
    edge_options_.link.max_backoff = absl::Milliseconds(20);
    edge_options_.link.on_notice = [this](const std::string& line) {
      std::lock_guard<std::mutex> lock(mu_);
      notices_ += line + "\n";
    };
  }

  void StartCloud() { cloud_ = std::make_unique<TestCloud>(cloud_options_); }
  void StartProxy(absl::Duration delay = absl::ZeroDuration()) {
    proxy_ = std::make_unique<LinkProxy>(cloud_->port(), delay);
  }
  // Through the proxy, if there is one.
  void StartEdge() {
    edge_options_.link.url.host = "127.0.0.1";
    edge_options_.link.url.port =
        proxy_ != nullptr ? proxy_->port() : cloud_->port();
    edge_.reset();  // It uses the runner.
    draft_runner_ =
        std::make_unique<HashModelRunner>(MakeOptions(0), HashModelOptions());
    draft_runner_->on_result = spoil_;
    auto edge =
        EdgeEngine::Create(edge_options_, MakeOptions(0), draft_runner_.get(),
                           Clock::Monotonic(), &sink_);
    ASSERT_TRUE(edge.ok()) << edge.status();
    edge_ = *std::move(edge);
  }
  void Start() {
    StartCloud();
    StartProxy();
    StartEdge();
    const absl::Status status = edge_->WaitForCloud(absl::Seconds(60));
    ASSERT_TRUE(status.ok()) << status;
  }
  // Why the cloud refuses this edge.
  absl::Status Refusal() {
    StartEdge();
    return edge_->WaitForCloud(absl::Seconds(60));
  }
  std::string notices() {
    std::lock_guard<std::mutex> lock(mu_);
    return notices_;
  }

  void TearDown() override {
    edge_.reset();
    if (cloud_ != nullptr) {
      EXPECT_TRUE(cloud_->BecomesIdle());
      EXPECT_TRUE(
          WaitUntil([this] { return cloud_->link().num_links() == 0; }));
    }
    proxy_.reset();
    cloud_.reset();
    EXPECT_EQ(cloud_runner_.violation(), "");
    for (const auto& [id, answer] : sink_.answers()) {
      EXPECT_EQ(answer.num_ends, 1) << "request " << id;
      EXPECT_EQ(answer.num_events_after_end, 0) << "request " << id;
    }
  }

  void ExpectRight(RequestId id, int max_tokens, int n = 1) {
    const TestAnswer answer = sink_.Wait(id);
    ASSERT_EQ(answer.choices.size(), static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(IdsOf(answer.choices[i]),
                Expected(MakeRequest(id, max_tokens, n), i))
          << "request " << id << ", choice " << i;
      EXPECT_TRUE(answer.choices[i].error.ok()) << answer.choices[i].error;
    }
  }

  std::atomic<int> step_micros_{300};
  HashModelRunner cloud_runner_;
  TestCloud::Options cloud_options_;
  EdgeEngineOptions edge_options_;
  std::function<void(StepResult*)> spoil_;
  std::mutex mu_;
  std::string notices_;
  TestSink sink_;
  std::unique_ptr<TestCloud> cloud_;
  std::unique_ptr<LinkProxy> proxy_;
  std::unique_ptr<HashModelRunner> draft_runner_;
  std::unique_ptr<EdgeEngine> edge_;
};

TEST_F(EdgeCloudFaultsTest, DraftsOfTheSameModelAreAccepted) {
  Start();
  for (RequestId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 200, 2)).ok());
  }
  for (RequestId id = 1; id <= 4; ++id) ExpectRight(id, 200, 2);
  const EngineStats stats = cloud_->engine().Stats();
  EXPECT_GT(stats.num_accepted_tokens, 100);
  // Both choices: the draft model draws with the draw key of each. What the
  // hash model drafts right is never refused.
  EXPECT_EQ(stats.num_accepted_tokens, stats.num_draft_tokens);
  EXPECT_TRUE(edge_->Readiness().ok());
  EXPECT_TRUE(edge_->LinkStats().is_up);
}

TEST_F(EdgeCloudFaultsTest, WrongDraftsChangeNothing) {
  int count = 0;
  spoil_ = [&count](StepResult* result) {
    for (SampledRow& row : result->rows) {
      for (TokenOutput& token : row.tokens) {
        if (++count % 3 == 0) token.token_id = (token.token_id + 1) % 300;
      }
    }
  };
  Start();
  for (RequestId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 200)).ok());
  }
  for (RequestId id = 1; id <= 4; ++id) ExpectRight(id, 200);
  // Until one was accepted and one was not: on a slow machine all drafts of a
  // request may come too late.
  EngineStats stats = cloud_->engine().Stats();
  for (RequestId id = 5; stats.num_accepted_tokens == 0 ||
                         stats.num_draft_tokens == stats.num_accepted_tokens;
       ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 200)).ok());
    ExpectRight(id, 200);
    ASSERT_FALSE(HasFailure());
    stats = cloud_->engine().Stats();
  }
  EXPECT_TRUE(edge_->Health().ok()) << edge_->Health();
}

TEST_F(EdgeCloudFaultsTest, DraftsComeThroughADelay) {
  step_micros_ = 2000;
  StartCloud();
  StartProxy(absl::Milliseconds(4));  // Four steps for a round trip.
  StartEdge();
  ASSERT_TRUE(edge_->WaitForCloud(absl::Seconds(60)).ok());
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 100)).ok());
  ExpectRight(1, 100);
  EXPECT_GT(cloud_->engine().Stats().num_accepted_tokens, 20);
  EXPECT_GE(edge_->LinkStats().round_trip, absl::Milliseconds(8));
}

TEST_F(EdgeCloudFaultsTest, AbortsFreeTheCloud) {
  Start();
  for (RequestId id = 1; id <= 6; ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 4000, 2)).ok());
  }
  sink_.WaitForTokens(1, 3);
  edge_->Abort(1, -1, false);
  edge_->Abort(2, 0, true);
  edge_->Abort(2, 1, false);
  for (RequestId id = 3; id <= 6; ++id) edge_->Abort(id, -1, false);
  EXPECT_TRUE(cloud_->BecomesIdle());
  EXPECT_TRUE(edge_->WaitUntilIdle(absl::Seconds(60)));
  EXPECT_EQ(sink_.Wait(1).choices[1].finish_reason, FinishReason::kAbort);
  EXPECT_EQ(sink_.Wait(2).choices[0].finish_reason, FinishReason::kStop);
  EXPECT_EQ(sink_.Wait(2).choices[1].finish_reason, FinishReason::kAbort);
}

TEST_F(EdgeCloudFaultsTest, AnEdgeThatGoesFreesTheCloud) {
  Start();
  for (RequestId id = 1; id <= 6; ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 4000)).ok());
  }
  sink_.WaitForTokens(3, 2);
  edge_.reset();  // Its own users are told.
  EXPECT_EQ(sink_.Wait(3).choices[0].finish_reason, FinishReason::kAbort);
  EXPECT_TRUE(cloud_->BecomesIdle());
}

TEST_F(EdgeCloudFaultsTest, ABrokenLinkEndsRequestsWithAnError) {
  Start();
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 4000, 2)).ok());
  sink_.WaitForTokens(1, 5);
  proxy_->SetClosed(true);
  proxy_->Cut();
  const TestAnswer answer = sink_.Wait(1);
  for (const auto& choice : answer.choices) {
    EXPECT_EQ(choice.finish_reason, FinishReason::kError);
    EXPECT_TRUE(absl::IsUnavailable(choice.error)) << choice.error;
    EXPECT_EQ(choice.num_from_draft_model, 0);
  }
  EXPECT_TRUE(cloud_->BecomesIdle());
  EXPECT_FALSE(edge_->Readiness().ok());
  const absl::Status refused = edge_->Submit(MakeRequest(2, 4));
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  // It comes back by itself.
  proxy_->SetClosed(false);
  ASSERT_TRUE(WaitUntil([this] { return edge_->Readiness().ok(); }));
  ASSERT_TRUE(edge_->Submit(MakeRequest(3, 50)).ok());
  ExpectRight(3, 50);
  EXPECT_EQ(edge_->LinkStats().num_breaks, 1);
}

TEST_F(EdgeCloudFaultsTest, TheDraftModelGoesOnOffline) {
  edge_options_.offline = OfflinePolicy::kDraft;
  Start();
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 600, 2)).ok());
  sink_.WaitForTokens(1, 20);
  proxy_->SetClosed(true);
  proxy_->Cut();
  // The models are the same here, so that the text is as if nothing had been.
  ExpectRight(1, 600, 2);
  const TestAnswer answer = sink_.Wait(1);
  for (const auto& choice : answer.choices) {
    EXPECT_GT(choice.num_from_draft_model, 0);
    EXPECT_LT(choice.num_from_draft_model, 600);
    EXPECT_EQ(choice.finish_reason, FinishReason::kLength);
  }
  EXPECT_NE(notices().find("go on with the draft model"), std::string::npos);
  // New requests, too.
  EXPECT_TRUE(edge_->Readiness().ok());
  EXPECT_FALSE(edge_->LinkStats().is_up);
  ASSERT_TRUE(edge_->Submit(MakeRequest(2, 40, 3)).ok());
  ExpectRight(2, 40, 3);
  EXPECT_EQ(sink_.Wait(2).choices[2].num_from_draft_model, 40);
  ASSERT_TRUE(edge_->Submit(MakeRequest(3, 4000, 2)).ok());
  sink_.WaitForTokens(3, 4);
  edge_->Abort(3, 1, false);
  edge_->Abort(3, -1, false);
  EXPECT_EQ(edge_->LinkStats().num_offline_requests, 3);
  proxy_->SetClosed(false);
  ASSERT_TRUE(WaitUntil([this] { return edge_->LinkStats().is_up; }));
  ASSERT_TRUE(edge_->Submit(MakeRequest(4, 40)).ok());
  ExpectRight(4, 40);
  EXPECT_EQ(sink_.Wait(4).choices[0].num_from_draft_model, 0);
}

TEST_F(EdgeCloudFaultsTest, WhatWasNotScoredCannotGoOnOffline) {
  edge_options_.offline = OfflinePolicy::kDraft;
  step_micros_ = 50000;
  Start();
  Request request = MakeRequest(1, 10);
  request.prompt_token_ids.assign(1000, 9);
  request.sampling.num_prompt_logprobs = 0;
  ASSERT_TRUE(edge_->Submit(std::move(request)).ok());
  proxy_->SetClosed(true);
  proxy_->Cut();
  EXPECT_EQ(sink_.Wait(1).choices[0].finish_reason, FinishReason::kError);
}

// Cut after any number of bytes, again and again: every request ends once, and
// what was told before is right.
class EdgeCloudCutsTest : public EdgeCloudFaultsTest,
                          public testing::WithParamInterface<OfflinePolicy> {};

TEST_P(EdgeCloudCutsTest, CutAtRandomMoments) {
  edge_options_.offline = GetParam();
  step_micros_ = 50;
  Start();
  SimulationRandom random(1);
  RequestId id = 1;
  for (int round = 0; round < 40; ++round) {
    ASSERT_TRUE(WaitUntil([this] { return edge_->LinkStats().is_up; }));
    proxy_->CutAfter(proxy_->num_bytes() + random.Between(1, 6000));
    std::vector<RequestId> ids;
    for (int i = 0; i < 4; ++i) {
      const absl::Status status = edge_->Submit(MakeRequest(id, 60, 2));
      if (status.ok()) ids.push_back(id);
      ++id;
    }
    for (const RequestId asked : ids) {
      const TestAnswer answer = sink_.Wait(asked);
      for (size_t i = 0; i < answer.choices.size(); ++i) {
        const std::vector<int32_t> found = IdsOf(answer.choices[i]);
        const std::vector<int32_t> right =
            Expected(MakeRequest(asked, 60, 2), static_cast<int>(i));
        ASSERT_LE(found.size(), right.size());
        EXPECT_TRUE(std::equal(found.begin(), found.end(), right.begin()));
        if (answer.choices[i].finish_reason == FinishReason::kLength) {
          EXPECT_EQ(found, right);
        } else {
          EXPECT_EQ(GetParam(), OfflinePolicy::kError)
              << "request " << asked << " has " << found.size()
              << " tokens and " << answer.choices[i].error;
        }
      }
    }
  }
  EXPECT_GT(edge_->LinkStats().num_breaks, 10);
}

INSTANTIATE_TEST_SUITE_P(Policies, EdgeCloudCutsTest,
                         testing::Values(OfflinePolicy::kError,
                                         OfflinePolicy::kDraft));

TEST_F(EdgeCloudFaultsTest, ADeadLinkIsNoticedOnBothSides) {
  edge_options_.link.ping_interval = absl::Milliseconds(20);
  edge_options_.link.silence_timeout = absl::Milliseconds(300);
  cloud_options_.link.silence_timeout = absl::Milliseconds(300);
  step_micros_ = 5000;
  Start();
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 4000)).ok());
  sink_.WaitForTokens(1, 2);
  proxy_->SetMuted(true);
  const TestAnswer answer = sink_.Wait(1);
  EXPECT_EQ(answer.choices[0].finish_reason, FinishReason::kError);
  EXPECT_TRUE(cloud_->BecomesIdle());
  proxy_->SetMuted(false);
  ASSERT_TRUE(WaitUntil([this] { return edge_->LinkStats().is_up; }));
}

// A deadline is held while the cloud is silent, and before a link is found
// dead.
TEST_F(EdgeCloudFaultsTest, ADeadlineIsHeldWithoutTheCloud) {
  Start();
  Request request = MakeRequest(1, 4000, 2);
  request.deadline = Clock::Monotonic()->Now() + absl::Milliseconds(500);
  ASSERT_TRUE(edge_->Submit(std::move(request)).ok());
  sink_.WaitForTokens(1, 3);
  proxy_->SetMuted(true);
  const TestAnswer answer = sink_.Wait(1);
  EXPECT_TRUE(edge_->LinkStats().is_up);
  for (const TestAnswer::Choice& choice : answer.choices) {
    EXPECT_EQ(choice.finish_reason, FinishReason::kError);
    EXPECT_TRUE(absl::IsDeadlineExceeded(choice.error)) << choice.error;
  }
  EXPECT_EQ(edge_->Stats().num_overdue_running, 1);
  EXPECT_TRUE(edge_->WaitUntilIdle(absl::ZeroDuration()));
  proxy_->SetMuted(false);
  EXPECT_TRUE(cloud_->BecomesIdle());
  // Others go on; one that is late before it is sent is refused.
  request = MakeRequest(2, 4);
  request.deadline = Clock::Monotonic()->Now() + absl::Minutes(5);
  ASSERT_TRUE(edge_->Submit(std::move(request)).ok());
  ExpectRight(2, 4);
  request = MakeRequest(3, 4);
  request.deadline = Clock::Monotonic()->Now() - absl::Milliseconds(1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(edge_->Submit(std::move(request))));
}

TEST_F(EdgeCloudFaultsTest, ADeadlineIsHeldOffline) {
  edge_options_.offline = OfflinePolicy::kDraft;
  Start();
  draft_runner_->on_collect = [] { absl::SleepFor(absl::Milliseconds(1)); };
  for (RequestId id = 1; id <= 2; ++id) {
    if (id == 2) {
      proxy_->SetClosed(true);
      proxy_->Cut();
      ASSERT_TRUE(WaitUntil([this] { return !edge_->LinkStats().is_up; }));
    }
    Request request = MakeRequest(id, 4000, 2);
    request.deadline = Clock::Monotonic()->Now() + absl::Seconds(1);
    ASSERT_TRUE(edge_->Submit(std::move(request)).ok());
    sink_.WaitForTokens(id, 3);
  }
  // One that went on with the draft model, and one that began with it.
  for (RequestId id = 1; id <= 2; ++id) {
    for (const TestAnswer::Choice& choice : sink_.Wait(id).choices) {
      EXPECT_TRUE(absl::IsDeadlineExceeded(choice.error)) << choice.error;
    }
  }
  EXPECT_TRUE(edge_->WaitUntilIdle(absl::Seconds(60)));
}

TEST_F(EdgeCloudFaultsTest, AnEdgeMayStartBeforeItsCloud) {
  cloud_options_.peer.max_model_len = 1000;
  StartCloud();
  StartProxy();
  proxy_->SetClosed(true);
  StartEdge();
  EXPECT_EQ(edge_->Cloud().max_model_len, MakeOptions(0).max_model_len);
  const absl::Status status = edge_->WaitForCloud(absl::Milliseconds(20));
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::IsUnavailable(edge_->Submit(MakeRequest(1, 4))));
  proxy_->SetClosed(false);
  ASSERT_TRUE(edge_->WaitForCloud(absl::Seconds(60)).ok());
  EXPECT_EQ(edge_->Cloud().max_model_len, 1000);
  ASSERT_TRUE(edge_->Submit(MakeRequest(2, 4)).ok());
  ExpectRight(2, 4);
}

TEST_F(EdgeCloudFaultsTest, AVocabularyMismatchIsRefusedNamingBoth) {
  StartCloud();
  edge_options_.link.peer.vocabulary.low ^= 1;
  const absl::Status status = Refusal();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  for (const char* text : {"edge's model edge", "cloud's model cloud",
                           "300 tokens, 00000000000000010000000000000003",
                           "300 tokens, 00000000000000010000000000000002"}) {
    EXPECT_NE(std::string(status.message()).find(text), std::string::npos)
        << status;
  }
}

TEST_F(EdgeCloudFaultsTest, TheFirstTokenThatDiffersIsNamed) {
  const auto text = [](int32_t changed_id) {
    return [changed_id](int32_t id) {
      return id >= 3000 ? ""
                        : absl::StrCat("t", id, id == changed_id ? "x" : "");
    };
  };
  cloud_options_.token_text = text(-1);
  cloud_options_.peer.vocabulary = DigestVocabulary(3000, text(-1));
  StartCloud();
  edge_options_.link.token_text = text(1500);
  edge_options_.link.min_backoff = absl::Hours(1);  // It is tried once.
  edge_options_.link.max_backoff = absl::Hours(1);
  edge_options_.link.peer.vocabulary = DigestVocabulary(3000, text(1500));
  const std::string told(Refusal().message());
  EXPECT_NE(told.find("id 1500 is \"t1500x\" at the edge and \"t1500\" in the "
                      "cloud"),
            std::string::npos)
      << told;
  EXPECT_NE(told.find("an id in [1024, 2048)"), std::string::npos) << told;
  // Whoever waited tells of it; the log does not, and does not promise more.
  EXPECT_EQ(notices(), "");
  EXPECT_GE(cloud_->link().Stats().num_refused, 1);
}

TEST_F(EdgeCloudFaultsTest, ALargerModelIsNoDraftModel) {
  cloud_options_.peer.num_parameters = 1000;
  StartCloud();
  edge_options_.link.peer.num_parameters = 1001;
  const absl::Status status = Refusal();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_NE(std::string(status.message()).find("has 1001 parameters"),
            std::string::npos)
      << status;
  edge_options_.link.peer.num_parameters = 1000;
  EXPECT_TRUE(Refusal().ok());
}

TEST_F(EdgeCloudFaultsTest, KeysDecide) {
  const std::string path = absl::StrCat(testing::TempDir(), "/edge_key");
  const auto write_key = [&path](const std::string& key) {
    FILE* const file = fopen(path.c_str(), "w");
    fputs(key.c_str(), file);
    fclose(file);
  };
  cloud_options_.http.api_keys = {"right"};
  StartCloud();
  EXPECT_TRUE(absl::IsUnauthenticated(Refusal()));  // None.
  edge_options_.link.api_key_file = path;
  write_key("wrong\n");
  const absl::Status status = Refusal();
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  write_key("wrong\r\nX: y");
  EXPECT_TRUE(absl::IsUnauthenticated(Refusal()));
  write_key("r\x01ght");
  EXPECT_TRUE(absl::IsUnauthenticated(Refusal()));
  // It is read again for each try.
  write_key("right\n");
  ASSERT_TRUE(WaitUntil([this] { return edge_->LinkStats().is_up; }));
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 4)).ok());
  ExpectRight(1, 4);
}

TEST_F(EdgeCloudFaultsTest, ErrorsOfTheCloudReachTheUser) {
  cloud_options_.link.max_requests_per_link = 2;
  Start();
  ASSERT_TRUE(edge_->Submit(MakeRequest(1, 4000)).ok());
  ASSERT_TRUE(edge_->Submit(MakeRequest(2, 4000)).ok());
  ASSERT_TRUE(edge_->Submit(MakeRequest(3, 4, 2)).ok());
  const TestAnswer answer = sink_.Wait(3);
  EXPECT_EQ(answer.choices[0].finish_reason, FinishReason::kError);
  EXPECT_TRUE(absl::IsUnavailable(answer.choices[0].error));
  // And when to come again.
  EXPECT_EQ(answer.choices[0].error.GetPayload(kRetryAfterPayload),
            absl::Cord("1"));
  edge_->Abort(1, -1, false);
  edge_->Abort(2, -1, false);
  // What the API would never send.
  Request request = MakeRequest(4, 4);
  request.sampling.temperature = -1;
  ASSERT_TRUE(edge_->Submit(std::move(request)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(sink_.Wait(4).choices[0].error));
  // What the edge itself can tell.
  EXPECT_TRUE(absl::IsInvalidArgument(edge_->Submit(MakeRequest(5, 0))));
  request = MakeRequest(6, 4);
  request.prompt_token_ids.push_back(300);
  EXPECT_TRUE(absl::IsInvalidArgument(edge_->Submit(std::move(request))));
}

// ------------------------------------------------------------ Hostile peers

// An edge that says what it likes.
class RawEdge {
 public:
  explicit RawEdge(int port) {
    EXPECT_TRUE(client_.Connect(port));
    client_.Send(absl::StrCat("GET ", kLinkPath,
                              " HTTP/1.1\r\nHost: x\r\nConnection: "
                              "Upgrade\r\nUpgrade: ",
                              kLinkProtocol, "\r\n\r\n"));
    client_.ReceiveUntil("\r\n\r\n");
  }
  void Send(const std::string& bytes) { client_.Send(bytes); }
  bool IsCutOff() { return client_.ReceiveEof(); }
  TestClient& client() { return client_; }

 private:
  TestClient client_;
};

TEST_F(EdgeCloudFaultsTest, HostileEdgesAreCutOff) {
  // Not because they are silent.
  cloud_options_.link.silence_timeout = absl::Hours(1);
  StartCloud();
  std::string hello;
  AppendHello(cloud_options_.peer, &hello);
  std::string ping, event;
  AppendPing(LinkFrameType::kPing, {1}, &ping);
  AppendEvent(OutputEvent(), &event);
  for (const std::string& bytes :
       {std::string("rubbish and more"), ping, hello + "\xFF\xFF\xFF\xFF\x04",
        hello + event, hello + std::string("\x01\0\0\0\x08x", 6),
        hello + std::string("\0\0\0\0\0", 5)}) {
    RawEdge edge(cloud_->port());
    edge.Send(bytes);
    EXPECT_TRUE(edge.IsCutOff());
  }
}

TEST_F(EdgeCloudFaultsTest, FloodsAreCutOff) {
  cloud_options_.link.max_frames_per_second = 100;
  cloud_options_.link.silence_timeout = absl::Hours(1);
  StartCloud();
  RawEdge edge(cloud_->port());
  std::string bytes;
  AppendHello(cloud_options_.peer, &bytes);
  LinkDrafts drafts = {1, 0, 0, 0, {5}, {}};
  for (int i = 0; i < 1000; ++i) AppendDrafts(drafts, &bytes);
  edge.Send(bytes);
  EXPECT_TRUE(edge.IsCutOff());
}

TEST_F(EdgeCloudFaultsTest, MutatedSessionsNeverHurt) {
  step_micros_ = 0;
  StartCloud();
  std::string session;
  AppendHello(cloud_options_.peer, &session);
  AppendSubmit(MakeRequest(1, 20, 2), absl::Now(), &session);
  AppendDrafts({1, 0, 1, 0, {5, 6}, {}}, &session);
  AppendDrafts({1, 1, 1, 3, {5, 6}, {0.5f, 0.5f}}, &session);
  AppendSubmit(MakeRequest(2, 20), absl::Now(), &session);
  AppendAbort({2, -1, false}, &session);
  SimulationRandom random(7);
  for (int i = 0; i < 400; ++i) {
    std::string bytes = session;
    for (int64_t k = random.Between(0, 3); k > 0; --k) {
      bytes[random.Below(bytes.size())] = static_cast<char>(random.Next());
    }
    bytes.resize(random.Between(1, bytes.size()));
    RawEdge edge(cloud_->port());
    edge.Send(bytes);
  }
  EXPECT_TRUE(cloud_->BecomesIdle());
  // And others are served.
  StartEdge();
  ASSERT_TRUE(edge_->WaitForCloud(absl::Seconds(60)).ok());
  ASSERT_TRUE(edge_->Submit(MakeRequest(9, 30)).ok());
  ExpectRight(9, 30);
}

TEST_F(EdgeCloudFaultsTest, ThePathIsForEdgesOnly) {
  StartCloud();
  const auto ask = [this](absl::string_view fields) {
    TestClient client;
    EXPECT_TRUE(client.Connect(cloud_->port()));
    return client
        .Ask(absl::StrCat("GET ", kLinkPath, " HTTP/1.1\r\nHost: x\r\n", fields,
                          "\r\n"))
        .status;
  };
  EXPECT_EQ(ask(""), 426);
  EXPECT_EQ(ask("Upgrade: quire-verify/2\r\n"), 426);
  EXPECT_EQ(ask("Connection: Upgrade\r\nUpgrade: websocket\r\n"), 426);
  EXPECT_EQ(ask("Connection: Upgrade\r\nUpgrade: quire-verify/1\r\n"), 426);
}

// A cloud that answers whatever it hears with bytes of the test's.
class HostileCloud {
 public:
  explicit HostileCloud(const LinkPeer& peer) : peer_(peer) {
    HttpServerOptions options;
    options.port = 0;
    http_ = *HttpServer::Create(options);
    http_->AddRoute(
        "GET", kLinkPath, RouteAccess::kPublic,
        [this](const HttpRequest&, std::shared_ptr<HttpResponder> responder) {
          HttpUpgrade upgrade;
          upgrade.protocol = kLinkProtocol;
          upgrade.on_bytes = [this, responder,
                              is_greeted = false](absl::string_view) mutable {
            std::string bytes;
            if (!std::exchange(is_greeted, true)) {
              AppendWelcome(peer_, &bytes);
            } else {
              std::lock_guard<std::mutex> lock(mu_);
              bytes = bytes_;
            }
            responder->Write(std::move(bytes));
            return true;
          };
          responder->Upgrade(std::move(upgrade));
        });
    EXPECT_TRUE(http_->Start().ok());
  }
  ~HostileCloud() { http_->Stop(absl::ZeroDuration()); }
  int port() const { return http_->port(); }
  void SetBytes(std::string bytes) {
    std::lock_guard<std::mutex> lock(mu_);
    bytes_ = std::move(bytes);
  }

 private:
  const LinkPeer peer_;
  std::mutex mu_;
  std::string bytes_;  // Guarded by mu_.
  std::unique_ptr<HttpServer> http_;
};

TEST_F(EdgeCloudFaultsTest, AHostileCloudEndsRequestsAndNoMore) {
  const std::vector<std::function<void(OutputEvent*)>> spoilers = {
      [](OutputEvent* e) { e->choice_idx = 1; },
      [](OutputEvent* e) { e->tokens[0].token_id = 300; },
      [](OutputEvent* e) {
        e->tokens.assign(11, {5, -1.0f, {}, 0});
      },
      [](OutputEvent* e) { e->prompt_tokens.resize(1); },
      [](OutputEvent* e) { e->num_draft_tokens = e->num_accepted_tokens = 2; },
      [](OutputEvent* e) { e->num_draft_tokens = -1; },
      [](OutputEvent* e) { e->num_cached_tokens = 99; },
      [](OutputEvent* e) { e->tokens[0].top_logprobs.resize(3); },
  };
  HostileCloud cloud(edge_options_.link.peer);
  edge_options_.link.url.host = "127.0.0.1";
  edge_options_.link.url.port = cloud.port();
  draft_runner_ =
      std::make_unique<HashModelRunner>(MakeOptions(0), HashModelOptions());
  auto edge =
      EdgeEngine::Create(edge_options_, MakeOptions(0), draft_runner_.get(),
                         Clock::Monotonic(), &sink_);
  ASSERT_TRUE(edge.ok()) << edge.status();
  RequestId id = 1;
  const auto expect_error = [&](const std::string& bytes) {
    cloud.SetBytes(bytes);
    while (!(*edge)->Submit(MakeRequest(id, 10)).ok()) {
      ASSERT_TRUE((*edge)->WaitForCloud(absl::Seconds(60)).ok());
    }
    EXPECT_EQ(sink_.Wait(id).choices[0].finish_reason, FinishReason::kError);
    ++id;
  };
  for (const auto& spoil : spoilers) {
    SCOPED_TRACE(id);
    OutputEvent event;
    event.request_id = id;
    event.tokens = {{5, -1.0f, {}, 0}};
    // Who did not look would take it for a good end.
    event.finish_reason = FinishReason::kStop;
    event.is_last = true;
    spoil(&event);
    std::string bytes;
    ASSERT_TRUE(AppendEvent(event, &bytes));
    expect_error(bytes);
  }
  std::string ping;
  AppendPing(LinkFrameType::kPing, {1}, &ping);
  expect_error(ping);
  SimulationRandom random(11);
  for (int i = 0; i < 100; ++i) {
    std::string bytes;
    for (int64_t k = random.Between(5, 60); k > 0; --k) {
      bytes += static_cast<char>(random.Next());
    }
    expect_error(bytes);
  }
  cloud.SetBytes("");
  edge->reset();
}

// ---------------------------------------------------------------------- TLS

TEST_F(EdgeCloudFaultsTest, TlsChecksCertificateAndName) {
  const std::string stem = absl::StrCat(testing::TempDir(), "/edge_tls_");
  const Certificate good(stem + "good", "localhost");
  const Certificate other(stem + "other", "localhost");
  cloud_options_.http.tls_certificate_file = good.certificate_file;
  cloud_options_.http.tls_private_key_file = good.key_file;
  StartCloud();
  const auto state = [this](const std::string& host, const std::string& ca) {
    edge_.reset();  // Before the runner that its thread uses.
    edge_options_.link.url = {true, host, cloud_->port()};
    edge_options_.link.ca_file = ca;
    draft_runner_ =
        std::make_unique<HashModelRunner>(MakeOptions(0), HashModelOptions());
    auto edge =
        EdgeEngine::Create(edge_options_, MakeOptions(0), draft_runner_.get(),
                           Clock::Monotonic(), &sink_);
    EXPECT_TRUE(edge.ok()) << edge.status();
    edge_ = *std::move(edge);
    return edge_->WaitForCloud(absl::Milliseconds(300));
  };
  const auto untrusted = [&](const std::string& host, const std::string& ca) {
    const absl::Status status = state(host, ca);
    EXPECT_NE(std::string(status.message()).find("certificate"),
              std::string::npos)
        << status;
    // Final where an edge starts.
    EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
  };
  untrusted("localhost", other.certificate_file);
  untrusted("localhost", "");  // The system does not know it.
  untrusted("127.0.0.1", good.certificate_file);  // Another name.
  ASSERT_TRUE(state("localhost", good.certificate_file).ok() ||
              edge_->WaitForCloud(absl::Seconds(60)).ok());
  for (RequestId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(edge_->Submit(MakeRequest(id, 200)).ok());
  }
  for (RequestId id = 1; id <= 4; ++id) ExpectRight(id, 200);
  EXPECT_GT(cloud_->engine().Stats().num_accepted_tokens, 0);
  // A cloud with TLS and an edge without.
  edge_.reset();
  edge_options_.link.url = {false, "localhost", cloud_->port()};
  auto edge =
      EdgeEngine::Create(edge_options_, MakeOptions(0), draft_runner_.get(),
                         Clock::Monotonic(), &sink_);
  ASSERT_TRUE(edge.ok());
  EXPECT_FALSE((*edge)->WaitForCloud(absl::Milliseconds(100)).ok());
}

}  // namespace
}  // namespace quire
