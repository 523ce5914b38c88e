#include "server/http/response_head.h"

#include <string>

#include "gtest/gtest.h"

namespace quire {
namespace {

// Sat, 21 Nov 2026 22:16:05 GMT
constexpr time_t kTime = 1795299365;

TEST(ResponseHeadTest, Length) {
  std::string out;
  ResponseHead head;
  head.content_type = "application/json";
  head.content_length = 12;
  AppendResponseHead(head, {{"X-A", "b c"}}, kTime, &out);
  EXPECT_EQ(out,
            "HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 22:16:05 GMT\r\n"
            "Content-Type: application/json\r\nContent-Length: 12\r\n"
            "X-A: b c\r\n\r\n");
}

TEST(ResponseHeadTest, ChunkedAndClose) {
  std::string out;
  ResponseHead head;
  head.framing = BodyFraming::kChunked;
  head.keep_alive = false;
  AppendResponseHead(head, {}, kTime, &out);
  EXPECT_EQ(out,
            "HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 22:16:05 GMT\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
}

TEST(ResponseHeadTest, NoLengthWhereThereIsNoBody) {
  std::string out;
  ResponseHead head;
  head.status = 204;
  AppendResponseHead(head, {}, kTime, &out);
  EXPECT_EQ(out.find("Content-Length"), std::string::npos);
}

TEST(ResponseHeadTest, LeavesOutFieldsThatWouldBreakTheHead) {
  std::string out;
  ResponseHead head;
  head.content_type = "text/plain\r\nX-Injected: 1";
  AppendResponseHead(head,
                     {{"X-A", "a\r\nX-Injected: 1"},
                      {"X-B", std::string("a\0b", 3)},
                      {"X C", "d"},
                      {"", "d"},
                      {"X-D\r\nX-Injected", "1"},
                      {"content-length", "5"},
                      {"Transfer-Encoding", "chunked"},
                      {"CONNECTION", "keep-alive"},
                      {"X-Good", "1"}},
                     kTime, &out);
  EXPECT_EQ(out,
            "HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 22:16:05 GMT\r\n"
            "Content-Length: 0\r\nX-Good: 1\r\n\r\n");
}

TEST(ResponseHeadTest, DefaultErrorBodies) {
  EXPECT_EQ(DefaultErrorBody(404, "no such path"),
            R"({"error":{"message":"no such path",)"
            R"("type":"invalid_request_error","param":null,"code":404}})");
  EXPECT_EQ(DefaultErrorBody(401, "a \"b\"\\\n"),
            R"({"error":{"message":"a \"b\"\\","type":"invalid_request_error",)"
            R"("param":null,"code":"invalid_api_key"}})");
  EXPECT_EQ(DefaultErrorBody(503, "x"),
            R"({"error":{"message":"x","type":"server_error",)"
            R"("param":null,"code":503}})");
}

}  // namespace
}  // namespace quire
