#include "benchmarks/serving/response_reader.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

using testing::ElementsAre;

constexpr char kStreamHead[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    "Transfer-Encoding: chunked\r\n\r\n";

std::string Chunk(const std::string& data) {
  return absl::StrCat(absl::Hex(data.size()), "\r\n", data, "\r\n");
}

struct ReadResult {
  std::vector<std::string> events;
  absl::Status status;
  int http_status = 0;
  bool is_done = false;
  bool is_reusable = false;
  std::string body;
};

// Reads `text` in pieces of `piece` bytes, then the end of the connection if
// `closes`.
ReadResult Read(const std::string& text, size_t piece, bool closes,
                const ResponseLimits& limits = {}) {
  ReadResult result;
  ResponseReader reader(limits);
  const auto on_event = [&](absl::string_view data) {
    result.events.emplace_back(data);
  };
  for (size_t i = 0; i < text.size() && result.status.ok(); i += piece) {
    result.status =
        reader.Append(absl::string_view(text).substr(i, piece), on_event);
  }
  if (closes && result.status.ok()) result.status = reader.Close(on_event);
  result.http_status = reader.http_status();
  result.is_done = reader.is_done();
  result.is_reusable = result.is_done && reader.is_reusable();
  result.body = reader.body();
  return result;
}

class PiecesTest : public testing::TestWithParam<size_t> {};

TEST_P(PiecesTest, ChunkedEvents) {
  const std::string text =
      absl::StrCat(kStreamHead, Chunk("data: {\"a\""),
                   Chunk(": 1}\n\n: ping\n\ndata: b\r\n\r\nda"),
                   Chunk("ta: c\ndata: d\n\ndata: [DONE]\n\n"), "0\r\n\r\n");
  const ReadResult read = Read(text, GetParam(), false);
  EXPECT_TRUE(read.status.ok()) << read.status;
  EXPECT_THAT(read.events, ElementsAre("{\"a\": 1}", "b", "c\nd", "[DONE]"));
  EXPECT_TRUE(read.is_done);
  EXPECT_TRUE(read.is_reusable);
}

TEST_P(PiecesTest, SizedBody) {
  const ReadResult read = Read(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n"
      "Connection: close\r\nContent-Length: 5\r\n\r\nerror",
      GetParam(), false);
  EXPECT_TRUE(read.status.ok()) << read.status;
  EXPECT_EQ(read.http_status, 500);
  EXPECT_EQ(read.body, "error");
  EXPECT_TRUE(read.is_done);
  EXPECT_FALSE(read.is_reusable);
}

TEST_P(PiecesTest, BodyUntilClose) {
  const ReadResult read =
      Read("HTTP/1.0 200 OK\nContent-Type: text/event-stream\n\ndata: x\n",
           GetParam(), true);
  EXPECT_TRUE(read.status.ok()) << read.status;
  EXPECT_THAT(read.events, ElementsAre("x"));
  EXPECT_FALSE(read.is_reusable);
}

TEST_P(PiecesTest, ClosedInTheMiddle) {
  const ReadResult read =
      Read(absl::StrCat(kStreamHead, Chunk("data: a\n\n")), GetParam(), true);
  EXPECT_EQ(read.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(read.status.message(), "middle"));
  EXPECT_THAT(read.events, ElementsAre("a"));
}

INSTANTIATE_TEST_SUITE_P(Sizes, PiecesTest,
                         testing::Values(1, 2, 3, 7, 64, 100000));

TEST(ResponseReaderTest, ClosedWithoutAnswer) {
  EXPECT_TRUE(absl::StrContains(Read("", 1, true).status.message(),
                                "without an answer"));
}

TEST(ResponseReaderTest, WhatIsNoHttpIsNamed) {
  for (const char* text :
       {"SSH-2.0-OpenSSH\r\n\r\n", "\r\n\r\n", "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"}) {
    const ReadResult read = Read(text, 1000, false);
    EXPECT_EQ(read.status.code(), absl::StatusCode::kDataLoss) << text;
  }
  for (const char* chunks :
       {"xyz\r\n", "\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "1\r\nab\r\n"}) {
    const ReadResult read = Read(absl::StrCat(kStreamHead, chunks), 1, false);
    EXPECT_EQ(read.status.code(), absl::StatusCode::kDataLoss) << chunks;
  }
}

TEST(ResponseReaderTest, LimitsHold) {
  ResponseLimits limits;
  limits.max_head_bytes = 100;
  limits.max_event_bytes = 50;
  limits.max_body_bytes = 1000;
  const std::string head =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
  const auto code = [&](const std::string& text) {
    return Read(text, 10, false, limits).status.code();
  };
  EXPECT_EQ(code("HTTP/1.1 200 OK\r\nX: " + std::string(200, 'x')),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(head + "data: " + std::string(60, 'x')),
            absl::StatusCode::kResourceExhausted);
  // Many lines of one event.
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "data: abcd\n";
  EXPECT_EQ(code(head + lines), absl::StatusCode::kResourceExhausted);
  std::string events;
  for (int i = 0; i < 200; ++i) events += "data: a\n\n";
  EXPECT_EQ(code(head + events), absl::StatusCode::kResourceExhausted);
}

TEST(ResponseReaderTest, AnyBytesEndInAStatus) {
  SimulationRandom random(1);
  const std::string good = absl::StrCat(kStreamHead, Chunk("data: {}\n\n"),
                                        Chunk("data: x\n\n"), "0\r\n\r\n");
  for (int run = 0; run < 2000; ++run) {
    std::string text = good;
    for (int flips = 1 + random.Below(3); flips > 0; --flips) {
      text[random.Below(text.size())] ^= 1 << random.Below(8);
    }
    text.resize(random.Between(1, text.size()));
    const ReadResult read = Read(text, 1 + random.Below(30), true);
    EXPECT_TRUE(read.is_done || !read.status.ok());
  }
}

}  // namespace
}  // namespace quire
