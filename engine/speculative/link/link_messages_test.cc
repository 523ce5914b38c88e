#include "engine/speculative/link/link_messages.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1000);
const absl::Time kLater = absl::FromUnixSeconds(5000);

Request FullRequest() {
  Request request;
  request.id = 0x1122334455667788;
  request.prompt_token_ids = {5, 0, 70000};
  SamplingParams& s = request.sampling;
  s.temperature = 0.7f;
  s.top_p = 0.9f;
  s.min_p = 0.05f;
  s.top_k = 40;
  s.presence_penalty = -0.5f;
  s.frequency_penalty = 0.25f;
  s.repetition_penalty = 1.1f;
  s.seed = 0xFFFFFFFFFFFFFFFF;
  s.max_tokens = 77;
  s.min_tokens = 3;
  s.ignore_eos = true;
  s.stop_token_ids = {9, 8};
  s.num_logprobs = 5;
  s.num_prompt_logprobs = 2;
  s.logit_bias = {{4, 1.5f}, {6, -100.0f}};
  s.allowed_token_ids = {1, 2, 3};
  s.bad_words = std::make_shared<const std::vector<std::vector<int32_t>>>(
      std::vector<std::vector<int32_t>>{{1, 2}, {3}});
  s.dry_multiplier = 0.8f;
  s.dry_base = 1.5f;
  s.dry_allowed_length = 4;
  s.dry_penalty_last_n = 100;
  s.dry_breakers = std::make_shared<const TokenSequenceSet>(
      std::vector<std::vector<int32_t>>{{11}, {12, 13}});
  s.dynatemp_range = 0.1f;
  s.dynatemp_exponent = 2.0f;
  s.top_n_sigma = 1.0f;
  s.typical_p = 0.95f;
  s.xtc_probability = 0.5f;
  s.xtc_threshold = 0.2f;
  request.n = 4;
  request.cache_namespace = std::string("key\n\0salt", 9);
  request.priority = -3;
  request.continues_call = true;
  request.deadline = kNow + absl::Seconds(3);
  return request;
}

OutputEvent FullEvent() {
  OutputEvent event;
  event.request_id = 3;
  event.choice_idx = 2;
  event.tokens = {{7, -0.5f, {{7, -0.5f}, {8, -1.5f}}, 0},
                  {9, -std::numeric_limits<float>::infinity(), {}, 0}};
  event.prompt_tokens = {{1, -2.0f, {}, 4}};
  event.finish_reason = FinishReason::kStop;
  event.stop_token_id = 9;
  event.is_last = true;
  event.num_draft_tokens = 4;
  event.num_accepted_tokens = 1;
  event.num_cached_tokens = 16;
  return event;
}

// The only frame of `bytes`.
LinkFrameReader::Frame Only(LinkFrameReader& reader, absl::string_view bytes) {
  reader.Append(bytes);
  const auto frame = reader.Next();
  EXPECT_TRUE(frame.ok() && frame->has_value());
  return **frame;
}

void ExpectSame(const SamplingParams& found, const SamplingParams& expected) {
  SamplingParams a = found, b = expected;
  ASSERT_EQ(a.bad_words == nullptr, b.bad_words == nullptr);
  if (a.bad_words != nullptr) {
    EXPECT_EQ(*a.bad_words, *b.bad_words);
  }
  ASSERT_EQ(a.dry_breakers == nullptr, b.dry_breakers == nullptr);
  if (a.dry_breakers != nullptr) {
    EXPECT_EQ(a.dry_breakers->sequences(), b.dry_breakers->sequences());
  }
  a.bad_words = b.bad_words = nullptr;
  a.dry_breakers = b.dry_breakers = nullptr;
  EXPECT_EQ(a, b);
}

TEST(LinkMessagesTest, RequestsKeepEveryField) {
  for (const Request& request : {FullRequest(), Request()}) {
    std::string bytes;
    ASSERT_TRUE(AppendSubmit(request, kNow, &bytes));
    LinkFrameReader reader;
    const auto frame = Only(reader, bytes);
    EXPECT_EQ(frame.type, LinkFrameType::kSubmit);
    const auto found = ParseSubmit(frame.payload, kLater);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->id, request.id);
    EXPECT_EQ(found->kind, request.kind);
    EXPECT_EQ(found->prompt_token_ids, request.prompt_token_ids);
    ExpectSame(found->sampling, request.sampling);
    EXPECT_EQ(found->n, request.n);
    EXPECT_EQ(found->cache_namespace, request.cache_namespace);
    EXPECT_EQ(found->priority, request.priority);
    EXPECT_EQ(found->continues_call, request.continues_call);
    // By the reader's clock.
    EXPECT_EQ(found->deadline - kLater, request.deadline - kNow);
  }
}

TEST(LinkMessagesTest, EventsKeepAllButTheTimes) {
  std::string bytes;
  const OutputEvent event = FullEvent();
  ASSERT_TRUE(AppendEvent(event, &bytes));
  LinkFrameReader reader;
  const auto found = ParseEvent(Only(reader, bytes).payload);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->request_id, 3u);
  EXPECT_EQ(found->choice_idx, 2);
  ASSERT_EQ(found->tokens.size(), 2u);
  EXPECT_EQ(found->tokens[0].token_id, 7);
  EXPECT_EQ(found->tokens[0].logprob, -0.5f);
  ASSERT_EQ(found->tokens[0].top_logprobs.size(), 2u);
  EXPECT_EQ(found->tokens[0].top_logprobs[1].token_id, 8);
  EXPECT_EQ(found->tokens[0].top_logprobs[1].logprob, -1.5f);
  EXPECT_TRUE(std::isinf(found->tokens[1].logprob));
  ASSERT_EQ(found->prompt_tokens.size(), 1u);
  EXPECT_EQ(found->prompt_tokens[0].rank, 4);
  EXPECT_EQ(found->finish_reason, FinishReason::kStop);
  EXPECT_EQ(found->stop_token_id, 9);
  EXPECT_TRUE(found->is_last);
  EXPECT_TRUE(found->error.ok());
  EXPECT_EQ(found->num_draft_tokens, 4);
  EXPECT_EQ(found->num_accepted_tokens, 1);
  EXPECT_EQ(found->num_cached_tokens, 16);
}

TEST(LinkMessagesTest, ErrorsKeepCodeAndMessage) {
  OutputEvent event;
  event.finish_reason = FinishReason::kError;
  event.error = absl::ResourceExhaustedError("full");
  std::string bytes;
  ASSERT_TRUE(AppendEvent(event, &bytes));
  LinkFrameReader reader;
  const auto found = ParseEvent(Only(reader, bytes).payload);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->error, event.error);
  // When to come again is told, too.
  event.error.SetPayload(kRetryAfterPayload, absl::Cord("17"));
  bytes.clear();
  ASSERT_TRUE(AppendEvent(event, &bytes));
  const auto later = ParseEvent(Only(reader, bytes).payload);
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ(later->error.GetPayload(kRetryAfterPayload), absl::Cord("17"));
  // A reason without an error, and an error without its reason.
  event.error = absl::OkStatus();
  bytes.clear();
  ASSERT_TRUE(AppendEvent(event, &bytes));
  EXPECT_FALSE(ParseEvent(Only(reader, bytes).payload).ok());
  event.finish_reason = FinishReason::kStop;
  event.error = absl::InternalError("x");
  bytes.clear();
  ASSERT_TRUE(AppendEvent(event, &bytes));
  EXPECT_FALSE(ParseEvent(Only(reader, bytes).payload).ok());
}

TEST(LinkMessagesTest, SmallMessages) {
  LinkPeer peer{"1.2", "a model", {512, 3, 4, {9}}, 77, 4096, 520, 5};
  std::string bytes;
  AppendHello(peer, &bytes);
  AppendWelcome(peer, &bytes);
  AppendRefusal({absl::FailedPreconditionError("no"), {8, {"a", "", "b"}}},
                &bytes);
  AppendAbort({8, 1, true}, &bytes);
  AppendDrafts({9, 1, 7, 20, {4, 5}, {0.5f, 1.0f}}, &bytes);
  AppendPing(LinkFrameType::kPing, {6}, &bytes);
  AppendPing(LinkFrameType::kPong, {6}, &bytes);
  LinkFrameReader reader;
  // However the bytes arrive.
  std::vector<std::pair<LinkFrameType, std::string>> frames;
  for (const char byte : bytes) {
    reader.Append(absl::string_view(&byte, 1));
    const auto frame = reader.Next();
    ASSERT_TRUE(frame.ok());
    if (frame->has_value()) {
      frames.emplace_back((*frame)->type, std::string((*frame)->payload));
    }
  }
  ASSERT_EQ(frames.size(), 7u);
  const auto hello = ParseHello(frames[0].second);
  ASSERT_TRUE(hello.ok());
  EXPECT_EQ(hello->software_version, "1.2");
  EXPECT_EQ(hello->model_name, "a model");
  EXPECT_EQ(hello->vocabulary, peer.vocabulary);
  EXPECT_EQ(hello->vocabulary.prefixes, peer.vocabulary.prefixes);
  EXPECT_EQ(hello->num_parameters, 77);
  const auto welcome = ParseWelcome(frames[1].second);
  ASSERT_TRUE(welcome.ok());
  EXPECT_EQ(welcome->max_model_len, 4096);
  EXPECT_EQ(welcome->vocab_size, 520);
  EXPECT_EQ(welcome->max_drafts, 5);
  const auto refusal = ParseRefusal(frames[2].second);
  ASSERT_TRUE(refusal.ok());
  EXPECT_EQ(refusal->reason, absl::FailedPreconditionError("no"));
  EXPECT_EQ(refusal->vocabulary.first_id, 8);
  EXPECT_EQ(refusal->vocabulary.texts,
            (std::vector<std::string>{"a", "", "b"}));
  const auto abort = ParseAbort(frames[3].second);
  ASSERT_TRUE(abort.ok());
  EXPECT_EQ(abort->request_id, 8u);
  EXPECT_EQ(abort->choice_idx, 1);
  EXPECT_TRUE(abort->reason_is_stop);
  const auto drafts = ParseDrafts(frames[4].second);
  ASSERT_TRUE(drafts.ok());
  EXPECT_EQ(drafts->chain_no, 7u);
  EXPECT_EQ(drafts->num_generated, 20);
  EXPECT_EQ(drafts->token_ids, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(drafts->probabilities, (std::vector<float>{0.5f, 1.0f}));
  EXPECT_EQ(frames[6].first, LinkFrameType::kPong);
  EXPECT_EQ(ParsePing(frames[6].second)->number, 6u);
}

TEST(LinkMessagesTest, ThePeerCannotMakeTextsTooLong) {
  LinkPeer peer;
  peer.model_name.assign(1 << 20, 'x');
  peer.software_version.assign(1 << 20, 'y');
  std::string bytes;
  AppendHello(peer, &bytes);
  LinkRefusal refusal;
  refusal.reason = absl::InternalError(std::string(1 << 20, 'z'));
  refusal.vocabulary.texts.assign(kVocabularyRange, std::string(1 << 10, 'a'));
  peer.vocabulary.prefixes.assign(1 << 20, 1);
  AppendHello(peer, &bytes);
  AppendRefusal(refusal, &bytes);
  LinkFrameReader reader;
  reader.Append(bytes);
  EXPECT_TRUE(ParseHello((*reader.Next())->payload).ok());
  EXPECT_TRUE(ParseHello((*reader.Next())->payload).ok());
  const auto found = ParseRefusal((*reader.Next())->payload);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(absl::IsInternal(found->reason));
  EXPECT_GT(found->vocabulary.texts.size(), 100u);
  EXPECT_LT(found->vocabulary.texts.size(), 200u);
}

TEST(LinkMessagesTest, WhatIsTooLargeIsNotSent) {
  Request request;
  request.prompt_token_ids.assign(3 << 20, 1);
  std::string bytes = "before";
  EXPECT_FALSE(AppendSubmit(request, kNow, &bytes));
  EXPECT_EQ(bytes, "before");
}

TEST(LinkMessagesTest, RefusesDraftsThatCannotBe) {
  const auto parse = [](const LinkDrafts& drafts) {
    std::string bytes;
    AppendDrafts(drafts, &bytes);
    return ParseDrafts(absl::string_view(bytes).substr(kLinkHeaderBytes)).ok();
  };
  EXPECT_TRUE(parse({1, 0, 0, 0, {1}, {}}));
  EXPECT_FALSE(parse({1, 0, 0, 0, {}, {}}));
  EXPECT_FALSE(parse({1, -1, 0, 0, {1}, {}}));
  EXPECT_FALSE(parse({1, 0, 0, -1, {1}, {}}));
  EXPECT_FALSE(parse({1, 0, 0, 0, {-1}, {}}));
  EXPECT_FALSE(parse({1, 0, 0, 0, {1}, {1.5f}}));
  EXPECT_FALSE(parse({1, 0, 0, 0, {1}, {std::nanf("")}}));
  EXPECT_FALSE(parse({1, 0, 0, 0, {1, 2}, {0.5f}}));
  EXPECT_FALSE(
      parse({1, 0, 0, 0, std::vector<int32_t>(kMaxLinkDrafts + 1, 1), {}}));
}

TEST(LinkMessagesTest, RefusesFramesThatAreNone) {
  for (const std::string& header :
       {std::string("\0\0\0\0\0", 5), std::string("\0\0\0\0\x0A", 5),
        std::string("\0\0\0\0\xFF", 5), std::string("\x09\0\0\0\x08", 5),
        std::string("\xFF\xFF\xFF\xFF\x04", 5)}) {
    LinkFrameReader reader;
    reader.Append(header);
    EXPECT_FALSE(reader.Next().ok()) << int{header[4]};
  }
}

// All that a frame may contain, or any part of it, changed at random: parsed or
// refused, but never more memory than the bytes could ask for.
TEST(LinkMessagesTest, MutationsNeverHurt) {
  std::vector<std::string> seeds(3);
  AppendSubmit(FullRequest(), kNow, &seeds[0]);
  AppendEvent(FullEvent(), &seeds[1]);
  AppendHello({"1", "m", {1, 2, 3, {4}}, 5, 6, 7, 8}, &seeds[2]);
  AppendRefusal({absl::InternalError("x"), {5, {"a", "b"}}}, &seeds[2]);
  AppendDrafts({9, 1, 7, 20, {4, 5}, {0.5f, 1.0f}}, &seeds[2]);
  AppendAbort({8, 1, true}, &seeds[2]);
  SimulationRandom random(1);
  int num_parsed = 0, num_refused = 0;
  for (int i = 0; i < 60000; ++i) {
    std::string bytes = seeds[i % seeds.size()];
    for (int64_t k = random.Between(0, 4); k > 0; --k) {
      const size_t place = random.Below(bytes.size());
      switch (random.Below(4)) {
        case 0:
          bytes[place] = static_cast<char>(random.Next());
          break;
        case 1:
          bytes[place] ^= 1 << random.Below(8);
          break;
        case 2:
          bytes.erase(place, 1 + random.Below(8));
          break;
        default:
          bytes.insert(place, std::string(1 + random.Below(8),
                                          static_cast<char>(random.Next())));
      }
      if (bytes.empty()) bytes = "x";
    }
    LinkFrameReader reader;
    reader.Append(bytes);
    for (;;) {
      const auto frame = reader.Next();
      if (!frame.ok() || !frame->has_value()) break;
      const absl::string_view payload = (*frame)->payload;
      const bool is_parsed =
          ParseSubmit(payload, kLater).ok() + ParseEvent(payload).ok() +
          ParseHello(payload).ok() + ParseDrafts(payload).ok() +
          ParseAbort(payload).ok() + ParsePing(payload).ok();
      const auto refusal = ParseRefusal(payload);
      EXPECT_FALSE(refusal.ok() && refusal->reason.ok());
      num_parsed += is_parsed;
      num_refused += !is_parsed;
    }
  }
  EXPECT_GT(num_parsed, 1000);
  EXPECT_GT(num_refused, 1000);
}

TEST(LinkMessagesTest, EveryTruncationIsRefused) {
  std::string bytes;
  AppendSubmit(FullRequest(), kNow, &bytes);
  const absl::string_view payload =
      absl::string_view(bytes).substr(kLinkHeaderBytes);
  for (size_t size = 0; size < payload.size(); ++size) {
    EXPECT_FALSE(ParseSubmit(payload.substr(0, size), kLater).ok()) << size;
  }
  EXPECT_FALSE(ParseSubmit(std::string(payload) + "x", kLater).ok());
}

}  // namespace
}  // namespace quire
