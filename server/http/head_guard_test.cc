#include "server/http/head_guard.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/http/chunked_decoder.h"

namespace quire {
namespace {

constexpr HeadLimits kLimits = {32 << 10, 100, 1 << 10};

// 0: accepted; -1: more bytes are needed; else the status of the refusal.
int Status(absl::string_view data, RequestHead* head,
           const HeadLimits& limits = kLimits) {
  HeadScanner scanner;
  size_t head_size = 0;
  if (auto error = scanner.Scan(data, limits, &head_size)) {
    return error->status;
  }
  if (head_size == 0) return -1;
  const auto error = ParseHead(data.substr(0, head_size), limits, head);
  return error ? error->status : 0;
}

int Status(absl::string_view data) {
  RequestHead head;
  return Status(data, &head);
}

// A GET with `fields` (each with its CR LF) after Host.
std::string Get(absl::string_view fields) {
  return absl::StrCat("GET / HTTP/1.1\r\nHost: x\r\n", fields, "\r\n");
}
std::string Line(absl::string_view request_line) {
  return absl::StrCat(request_line, "\r\nHost: x\r\n\r\n");
}

TEST(HeadGuardTest, ParsesAHead) {
  RequestHead head;
  ASSERT_EQ(Status("POST /v1/x?q=%41 HTTP/1.1\r\nHost: [::1]:80\r\n"
                   "X-A:  b c\t\r\nX-Empty:\r\nx-a: d\r\n"
                   "Content-Length: 0042\r\n\r\n",
                   &head),
            0);
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/v1/x");
  EXPECT_EQ(head.minor_version, 1);
  EXPECT_EQ(head.Field("x-a"), "b c");
  EXPECT_EQ(head.Field("x-empty"), "");
  EXPECT_EQ(head.fields.size(), 5);
  EXPECT_EQ(head.content_length, 42);
  EXPECT_TRUE(head.keep_alive);
  EXPECT_FALSE(head.is_chunked);
}

TEST(HeadGuardTest, RequestLines) {
  EXPECT_EQ(Status(Line("GET / HTTP/1.1")), 0);
  EXPECT_EQ(Status(Line("M-SEARCH /?a=b&c HTTP/1.1")), 0);
  for (const char* line : {"",
                           " ",
                           "GET",
                           "GET /",
                           "GET  / HTTP/1.1",
                           "GET /  HTTP/1.1",
                           " GET / HTTP/1.1",
                           "GET / HTTP/1.1 ",
                           "GET\t/ HTTP/1.1",
                           "G(T / HTTP/1.1",
                           "GET /a b HTTP/1.1",
                           "GET /\xc3\xa9 HTTP/1.1",
                           "GET /#f HTTP/1.1",
                           "GET http://x/ HTTP/1.1",
                           "OPTIONS * HTTP/1.1",
                           "CONNECT x:80 HTTP/1.1",
                           "GET / http/1.1",
                           "GET / HTTP/1",
                           "GET / HTTP",
                           "GET / HTTP/1.10",
                           "GET / HTTP/11",
                           "GET / HTTP/a.b",
                           "AMETHODWITHTOOMANYLETTERS / HTTP/1.1"}) {
    EXPECT_EQ(Status(Line(line)), 400) << line;
  }
  for (const char* line : {"GET / HTTP/0.9", "GET / HTTP/1.2", "GET / HTTP/2.0",
                           "GET / HTTP/9.9", "PRI * HTTP/2.0"}) {
    EXPECT_EQ(Status(Line(line)), 505) << line;
  }
}

TEST(HeadGuardTest, TargetLimit) {
  const std::string longest = absl::StrCat("/", std::string(1023, 'a'));
  EXPECT_EQ(Status(Line(absl::StrCat("GET ", longest, " HTTP/1.1"))), 0);
  EXPECT_EQ(Status(Line(absl::StrCat("GET ", longest, "a HTTP/1.1"))), 414);
  // Seen before the line ends.
  EXPECT_EQ(Status(absl::StrCat("GET /", std::string(2000, 'a'))), 414);
}

TEST(HeadGuardTest, LinesEndWithCrLf) {
  for (const char* data :
       {"GET / HTTP/1.1\nHost: x\n\n", "GET / HTTP/1.1\r\nHost: x\n\r\n",
        "GET / HTTP/1.1\rHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\n\rHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", "\nGET / HTTP/1.1\r\n\r\n"}) {
    EXPECT_EQ(Status(data), 400) << data;
  }
  EXPECT_EQ(Status("GET / HTTP/1.1\r\nHost: x\r\n\r"), -1);
}

TEST(HeadGuardTest, Fields) {
  EXPECT_EQ(Status(Get("a!#$%&'*+-.^_`|~9: \x80\xff\t x\r\n")), 0);
  for (const char* field :
       {"no colon\r\n", ": x\r\n", "a : x\r\n", " a: x\r\n", "\ta: x\r\n",
        "a: x\r\n folded\r\n", "a(: x\r\n", "a\xc3\xa9: x\r\n", "a: \x01\r\n",
        "a: \x7f\r\n", "a: \x1b[31m\r\n"}) {
    EXPECT_EQ(Status(Get(field)), 400) << field;
  }
  EXPECT_EQ(Status(Get(std::string("a: \0\r\n", 6))), 400);
}

TEST(HeadGuardTest, NumbersAndSizesOfFields) {
  std::string fields;
  for (int i = 0; i < 99; ++i) absl::StrAppend(&fields, "a", i, ": b\r\n");
  EXPECT_EQ(Status(Get(fields)), 0);
  EXPECT_EQ(Status(Get(fields + "z: b\r\n")), 431);
  EXPECT_EQ(Status(Get("a: " + std::string(7900, 'b') + "\r\n")), 0);
  EXPECT_EQ(Status(Get("a: " + std::string(8100, 'b') + "\r\n")), 431);
  // Three bytes each once they are escaped.
  EXPECT_EQ(Status(Get("a: " + std::string(2700, '%') + "\r\n")), 431);
  EXPECT_EQ(Status(Get("") + std::string(40000, 'b')), 0);  // A body's bytes.
  std::string large = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 5; ++i) {
    absl::StrAppend(&large, "a: ", std::string(7900, 'b'), "\r\n");
  }
  EXPECT_EQ(Status(large), 431);
  const HeadLimits small = {64, 100, 1 << 10};
  RequestHead head;
  const std::string exact = absl::StrCat("GET / HTTP/1.1\r\nHost: x\r\na: ",
                                         std::string(64 - 32, 'b'), "\r\n\r\n");
  ASSERT_EQ(exact.size(), 64);
  EXPECT_EQ(Status(exact, &head, small), 0);
  EXPECT_EQ(Status("A" + exact, &head, small), 431);
}

TEST(HeadGuardTest, Hosts) {
  EXPECT_EQ(Status("GET / HTTP/1.1\r\n\r\n"), 400);
  EXPECT_EQ(Status("GET / HTTP/1.0\r\n\r\n"), 0);
  EXPECT_EQ(Status(Get("Host: x\r\n")), 400);
  EXPECT_EQ(Status("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
  for (const char* host : {"a b", "a/b", "a@b", "a,b", "a\"", "a\\b"}) {
    EXPECT_EQ(
        Status(absl::StrCat("GET / HTTP/1.1\r\nHost: ", host, "\r\n\r\n")), 400)
        << host;
  }
}

TEST(HeadGuardTest, Framing) {
  for (const char* fields :
       {"Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\ncontent-length: 0\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: -1\r\n", "Content-Length: +1\r\n",
        "Content-Length: 1, 1\r\n", "Content-Length: 1 1\r\n",
        "Content-Length: 0x1\r\n", "Content-Length:\r\n",
        "Content-Length: 1.0\r\n", "Content-Length : 1\r\n"}) {
    EXPECT_EQ(Status(Get(fields)), 400) << fields;
  }
  EXPECT_EQ(Status(Get("Content-Length: 99999999999999999999\r\n")), 413);
  for (const char* coding : {"gzip", "gzip, chunked", "chunked, chunked",
                             "identity", "xchunked", "chunked;q=1", ""}) {
    EXPECT_EQ(Status(Get(absl::StrCat("Transfer-Encoding: ", coding, "\r\n"))),
              501)
        << coding;
  }
  EXPECT_EQ(Status("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400);
  RequestHead head;
  EXPECT_EQ(Status(Get("Transfer-Encoding: CHUNKED\r\n"), &head), 0);
  EXPECT_TRUE(head.is_chunked);
  EXPECT_TRUE(head.has_body());
}

TEST(HeadGuardTest, FieldsThatChangeTheMeaning) {
  EXPECT_EQ(Status(Get("Content-Encoding: gzip\r\n")), 415);
  EXPECT_EQ(Status(Get("Content-Encoding: identity\r\n")), 0);
  EXPECT_EQ(Status(Get("Expect: 200-ok\r\n")), 417);
  EXPECT_EQ(Status(Get("Authorization: a\r\nauthorization: b\r\n")), 400);
  EXPECT_EQ(Status(Get("Content-Type: a\r\nContent-Type: b\r\n")), 400);
  RequestHead head;
  ASSERT_EQ(Status(Get("Connection: keep-alive, Close\r\n"), &head), 0);
  EXPECT_FALSE(head.keep_alive);
  ASSERT_EQ(Status(Get("Connection: closed\r\n"), &head), 0);
  EXPECT_TRUE(head.keep_alive);
  ASSERT_EQ(Status("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &head),
            0);
  EXPECT_FALSE(head.keep_alive);
  ASSERT_EQ(Status(Get("Expect: 100-continue\r\n"), &head), 0);
  EXPECT_FALSE(head.expect_continue);  // There is no body to wait for.
}

TEST(HeadGuardTest, ScannerLooksAtEveryByteOnce) {
  const std::string data = Get("A: b\r\n") + "body";
  HeadScanner scanner;
  size_t head_size = 0;
  for (size_t size = 1; size <= data.size(); ++size) {
    ASSERT_FALSE(scanner.Scan(absl::string_view(data).substr(0, size), kLimits,
                              &head_size));
    if (head_size != 0) break;
  }
  EXPECT_EQ(head_size, data.size() - 4);
}

TEST(HeadGuardTest, CleanHeadHoldsOnlyWhatTheLibraryMaySee) {
  RequestHead head;
  ASSERT_EQ(Status("POST /p?q HTTP/1.1\r\nHost: h\r\nA: 1%0d%0a2\r\nRange: "
                   "bytes=0-1\r\nIf-Range: x\r\nAccept-Encoding: gzip\r\n"
                   "REMOTE_ADDR: 1\r\nLocal_Port: 2\r\nB%41: 3\r\nEmpty:\r\n"
                   "Content-Type: multipart/form-data\r\nContent-Length: 9\r\n"
                   "Connection: x\r\nExpect: 100-continue\r\nTE: gzip\r\n"
                   "Upgrade: h2c\r\nB: b\r\n\r\n",
                   &head),
            0);
  EXPECT_EQ(CleanHead(head),
            "POST /p HTTP/1.1\r\nhost: h\r\na: 1%250d%250a2\r\nb: b\r\n"
            "Content-Length: 0\r\n\r\n");
}

// 0 and the body, or the status.
int Decode(absl::string_view data, std::string* body, int64_t limit = 64) {
  ChunkedDecoder decoder(limit);
  size_t num_consumed = 0;
  if (auto error = decoder.Decode(data, body, &num_consumed)) {
    return error->status;
  }
  EXPECT_EQ(num_consumed, data.size());
  return decoder.is_done() ? 0 : -1;
}

TEST(ChunkedDecoderTest, Decodes) {
  std::string body;
  EXPECT_EQ(Decode("0\r\n\r\n", &body), 0);
  EXPECT_EQ(body, "");
  EXPECT_EQ(Decode("1\r\na\r\nB;x=\"y\"\r\n01234567890\r\n000\r\nT: v\r\nU: "
                   "w\r\n\r\n",
                   &body),
            0);
  EXPECT_EQ(body, "a01234567890");
  EXPECT_EQ(Decode("1\r\na\r\n0\r\n", &body), -1);
}

TEST(ChunkedDecoderTest, StopsAtTheEnd) {
  ChunkedDecoder decoder(64);
  std::string body;
  size_t num_consumed = 0;
  EXPECT_FALSE(
      decoder.Decode("1\r\na\r\n0\r\n\r\nGET /", &body, &num_consumed));
  EXPECT_TRUE(decoder.is_done());
  EXPECT_EQ(num_consumed, 11);
}

TEST(ChunkedDecoderTest, Refuses) {
  std::string body;
  for (const char* data :
       {"\r\n", "g\r\n", "-1\r\n", "+1\r\n", " 1\r\n", "1 \r\n", "0x1\r\n",
        "1\n", "1\r\r", "1\r\na\n", "1\r\nab", "1\r\na\rb", "1;\n", "1;\x01",
        "0\r\n\n", "0\r\n\r\r", "0\r\nT: \n", "0\r\nT\r\r"}) {
    EXPECT_EQ(Decode(data, &body), 400) << data;
  }
  EXPECT_EQ(Decode("41\r\n", &body), 413);
  EXPECT_EQ(Decode("7fffffffffffffff\r\n", &body), 413);
  EXPECT_EQ(Decode("ffffffffffffffffffff", &body), 413);
  EXPECT_EQ(Decode(absl::StrCat("1;", std::string(5000, 'e')), &body), 400);
  EXPECT_EQ(Decode(absl::StrCat("0\r\n", std::string(5000, 'e')), &body), 400);
}

}  // namespace
}  // namespace quire
