#include "server/telemetry/server_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "server/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kHangTimeout = absl::Seconds(60);

std::shared_ptr<TelemetryCounts> NewCounts() {
  return std::make_shared<TelemetryCounts>();
}

// Both ends of a pipe.
struct Pipe {
  Pipe() { EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0); }
  ~Pipe() {
    CloseReader();
    if (fds[1] >= 0) close(fds[1]);
  }
  void CloseReader() {
    if (fds[0] >= 0) close(fds[0]);
    fds[0] = -1;
  }
  int fds[2];
};

// An unlinked file that takes everything.
struct File {
  File() : file(tmpfile()) {}
  ~File() { fclose(file); }
  int fd() const { return fileno(file); }
  std::string Contents() const {
    std::string text;
    char buffer[1 << 16];
    off_t at = 0;
    for (ssize_t size; (size = pread(fd(), buffer, sizeof(buffer), at)) > 0;) {
      text.append(buffer, size);
      at += size;
    }
    return text;
  }
  FILE* file;
};

RequestRecord FullRecord() {
  RequestRecord record;
  record.request_id = "req-1";
  record.trace.trace_id = "0af7651916cd43dd8448eb211c80319c";
  record.trace.span_id = "b7ad6b7169203331";
  record.method = "POST";
  record.route = "/v1/completions";
  record.is_api = true;
  record.owner = "alice";
  record.arrival_time = absl::FromUnixSeconds(100);
  record.end_time = record.arrival_time + absl::Microseconds(1234567);
  record.status = 200;
  record.operation = "text_completion";
  record.model = "m";
  record.is_stream = true;
  record.num_prompt_tokens = 3;
  record.num_cached_tokens = 1;
  record.num_completion_tokens = 5;
  record.scheduled_time = record.arrival_time + absl::Milliseconds(2);
  record.first_token_time = record.arrival_time + absl::Milliseconds(7);
  record.finish_reason = "stop";
  return record;
}

TEST(ServerLogTest, RequestAsJson) {
  const absl::Time now = absl::FromUnixMillis(1'700'000'000'123);
  EXPECT_EQ(
      FormatRequestLine(LogFormat::kJson, FullRecord(), now),
      R"({"time":"2023-11-14T22:13:20.123Z","level":"INFO",)"
      R"("message":"request","request_id":"req-1",)"
      R"("trace_id":"0af7651916cd43dd8448eb211c80319c",)"
      R"("span_id":"b7ad6b7169203331","method":"POST",)"
      R"("route":"/v1/completions","status":200,"owner":"alice","model":"m",)"
      R"("stream":true,"prompt_tokens":3,"cached_tokens":1,)"
      R"("completion_tokens":5,"finish_reason":"stop","queue_ms":2.0,)"
      R"("ttft_ms":7.0,"total_ms":1234.567})");
}

TEST(ServerLogTest, RequestAsText) {
  RequestRecord record;
  record.request_id = "r";
  record.method = "GET";
  record.path = "/a b\"\n";
  record.status = 404;
  record.refusal = "no such path";
  record.is_cut_off = true;
  EXPECT_EQ(FormatRequestLine(LogFormat::kText, record,
                              absl::FromUnixMillis(1'700'000'000'123)),
            "2023-11-14T22:13:20.123Z INFO request request_id=r method=GET "
            "path=\"/a b\\\"\\n\" status=404 "
            "reason=\"no such path\" client_gone=true");
}

// R-L1 and G-L1: nothing that a client sends makes a line of its own, or one
// that does not parse.
TEST(ServerLogTest, HostileTextStaysInItsLine) {
  std::mt19937 random(1);
  const std::string pieces[] = {"\n",
                                "\r\n",
                                "\"",
                                "\\",
                                "\x1b[2J",
                                std::string(1, '\0'),
                                "\xff",
                                "\xc3",
                                "\xed\xa0\x80",
                                "{\"level\":\"ERROR\"}",
                                "\xe2\x80\xa8",
                                "\xe2\x80\xa9",
                                "\xc2\x85",
                                "\xc2\x9b"
                                "31m",
                                "\x7f",
                                "%0a",
                                "a",
                                "é"};
  const auto hostile = [&] {
    std::string text;
    const int num_pieces = random() % 20;
    for (int i = 0; i < num_pieces; ++i) {
      text += random() % 2 == 0 ? pieces[random() % std::size(pieces)]
                                : std::string(1, static_cast<char>(random()));
    }
    return text;
  };
  File file;
  constexpr int kNumLines = 100'000;
  const auto counts = NewCounts();
  {
    ServerLogOptions options;
    options.format = LogFormat::kJson;
    options.request_fd = file.fd();
    options.max_queued_bytes = 64 << 20;
    ServerLog log(options, counts);
    for (int i = 0; i < kNumLines; ++i) {
      RequestRecord record;
      record.method = "POST";
      record.path = hostile();
      record.owner = hostile();
      record.model = hostile();
      record.operation = "chat";
      record.body = hostile();
      record.request_id = absl::StrCat(i);
      if (i % 10 == 0) {
        log.Message(LogLevel::kWarning, hostile());
      } else {
        log.OnEnd(record);
      }
    }
    ASSERT_TRUE(log.Flush(kHangTimeout));
  }
  EXPECT_EQ(counts->num_log_lines_dropped, 0);
  int num_lines = 0;
  const std::string contents = file.Contents();
  for (const absl::string_view line : absl::StrSplit(contents, '\n')) {
    if (line.empty()) continue;
    const auto parsed = ParseJson(line);
    ASSERT_TRUE(parsed.ok()) << parsed.status() << line;
    ASSERT_TRUE(parsed->is_object());
    ASSERT_EQ((*parsed)["level"], num_lines % 10 == 0 ? "WARNING" : "INFO");
    // No terminal is told to do anything either.
    for (const char c : line) {
      ASSERT_GE(static_cast<unsigned char>(c), 0x20) << line;
    }
    for (const char* control :
         {"\x7f", "\xc2\x85", "\xc2\x9b", "\xe2\x80\xa8", "\xe2\x80\xa9"}) {
      ASSERT_FALSE(absl::StrContains(line, control)) << line;
    }
    ++num_lines;
  }
  EXPECT_EQ(num_lines, kNumLines);
}

TEST(ServerLogTest, TextLinesAreSingle) {
  RequestRecord record;
  for (int c = 0; c < 256; ++c) {
    record.path = absl::StrCat("/", std::string(1, static_cast<char>(c)));
    for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
      const std::string line = FormatRequestLine(format, record, absl::Now());
      for (const char byte : line) {
        EXPECT_GE(static_cast<unsigned char>(byte), 0x20) << c;
      }
    }
  }
  // Unicode's own line ends and control characters, and none but those.
  record.path = "/\xc2\x80\xc2\x9f\xc2\xa0\xe2\x80\xa7\xe2\x80\xa8\xe2\x80\xa9";
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    EXPECT_TRUE(
        absl::StrContains(FormatRequestLine(format, record, absl::Now()),
                          "/\\u0080\\u009f\xc2\xa0\xe2\x80\xa7\\u2028\\u2029"));
  }
  // What is long is cut.
  record.path = std::string(100'000, 'x');
  EXPECT_LT(FormatRequestLine(LogFormat::kJson, record, absl::Now()).size(),
            1000u);
}

TEST(ServerLogTest, Levels) {
  File requests, messages;
  const auto log_at = [&](LogLevel level) {
    ServerLogOptions options;
    options.level = level;
    options.request_fd = requests.fd();
    options.message_fd = messages.fd();
    options.max_body_bytes = 10;
    return std::make_unique<ServerLog>(options, NewCounts());
  };
  RequestRecord probe;
  probe.is_probe = true;
  auto log = log_at(LogLevel::kInfo);
  EXPECT_EQ(log->max_body_bytes(), 10);
  log->OnEnd(probe);
  log->Message(LogLevel::kDebug, "no");
  log->Message(LogLevel::kInfo, "yes");
  ASSERT_TRUE(log->Flush(kHangTimeout));
  EXPECT_EQ(requests.Contents(), "");
  const std::string message = messages.Contents();
  EXPECT_TRUE(absl::EndsWith(message, "Z INFO quire: yes\n")) << message;
  EXPECT_EQ(message.size(),
            strlen("2023-11-14T22:13:20.123Z INFO quire: yes\n"));
  log = log_at(LogLevel::kWarning);
  EXPECT_EQ(log->max_body_bytes(), 0);
  log->OnEnd(FullRecord());
  ASSERT_TRUE(log->Flush(kHangTimeout));
  EXPECT_EQ(requests.Contents(), "");
  log = log_at(LogLevel::kDebug);
  log->OnEnd(probe);
  ASSERT_TRUE(log->Flush(kHangTimeout));
  EXPECT_TRUE(absl::StrContains(requests.Contents(), "request"));
}

// A reader that has stopped: writers go on, what is queued stays bounded, what
// is lost is counted, and the end does not wait for it.
TEST(LogWriterTest, StuckReaderCostsLinesOnly) {
  Pipe pipe;
  // Full from the beginning.
  const std::string filler(4096, '.');
  fcntl(pipe.fds[1], F_SETFL, O_NONBLOCK);
  while (write(pipe.fds[1], filler.data(), filler.size()) > 0) {
  }
  fcntl(pipe.fds[1], F_SETFL, 0);
  const auto counts = NewCounts();
  constexpr int kNumLines = 20'000;
  constexpr int kNumQueued = (64 << 10) / 100;
  const absl::Time start = absl::Now();
  {
    LogWriter writer(pipe.fds[1], 64 << 10, counts);
    for (int i = 0; i < kNumLines; ++i) writer.Write(std::string(99, 'x'));
    EXPECT_FALSE(writer.Flush(absl::Milliseconds(10)));
    // The queue takes so many, and what is being written as many again.
    EXPECT_GE(counts->num_log_lines_dropped, kNumLines - 2 * kNumQueued);
    EXPECT_LE(counts->num_log_lines_dropped, kNumLines - kNumQueued);
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
}

TEST(LogWriterTest, ReaderThatComesBackGetsWholeLines) {
  Pipe pipe;
  const auto counts = NewCounts();
  LogWriter writer(pipe.fds[1], 64 << 10, counts);
  constexpr int kNumLines = 20'000;
  for (int i = 0; i < kNumLines; ++i) {
    writer.Write(absl::StrCat("<", i, std::string(90, '.'), ">"));
  }
  std::string text;
  std::thread reader([&] {
    char buffer[4096];
    for (ssize_t size;
         (size = read(pipe.fds[0], buffer, sizeof(buffer))) > 0;) {
      text.append(buffer, size);
      if (absl::EndsWith(text, "end\n")) return;
    }
  });
  ASSERT_TRUE(writer.Flush(kHangTimeout));
  writer.Write("end");
  reader.join();
  int64_t num_lines = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty() || line == "end") continue;
    ASSERT_TRUE(absl::StartsWith(line, "<") && absl::EndsWith(line, ">"))
        << line;
    ++num_lines;
  }
  EXPECT_EQ(num_lines + counts->num_log_lines_dropped, kNumLines);
}

TEST(LogWriterTest, ClosedPipeAndFullDisk) {
  const auto counts = NewCounts();
  Pipe pipe;
  pipe.CloseReader();
  {
    LogWriter writer(pipe.fds[1], 1 << 10, counts);
    writer.Write("lost");  // EPIPE, and no signal.
    ASSERT_TRUE(writer.Flush(kHangTimeout));
    EXPECT_EQ(counts->num_log_lines_dropped, 1);
  }
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  {
    LogWriter writer(full, 1 << 10, counts);
    writer.Write("lost");  // ENOSPC.
    ASSERT_TRUE(writer.Flush(kHangTimeout));
    EXPECT_EQ(counts->num_log_lines_dropped, 2);
    writer.Write(std::string(2000, 'x'));  // Longer than the queue.
    EXPECT_EQ(counts->num_log_lines_dropped, 3);
  }
  close(full);
}

TEST(LogWriterTest, ManyThreads) {
  File file;
  const auto counts = NewCounts();
  constexpr int kNumThreads = 4, kNumLines = 2000;
  {
    LogWriter writer(file.fd(), 64 << 20, counts);
    std::vector<std::thread> threads;
    for (int t = 0; t < kNumThreads; ++t) {
      threads.emplace_back([&writer, t] {
        for (int i = 0; i < kNumLines; ++i) {
          writer.Write(absl::StrCat(t, "/", i));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(writer.Flush(kHangTimeout));
  }
  const std::string contents = file.Contents();
  std::set<absl::string_view> lines = absl::StrSplit(contents, '\n');
  lines.erase("");
  EXPECT_EQ(lines.size(), size_t{kNumThreads * kNumLines});
}

}  // namespace
}  // namespace quire
