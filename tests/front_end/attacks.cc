#include "tests/front_end/attacks.h"

#include <sys/socket.h>
#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/http/test_client.h"
#include "server/json_text.h"
#include "tests/front_end/server_process.h"

namespace quire {
namespace {

constexpr char kKey[] = "key-of-the-tests";
constexpr absl::string_view kChat = "/v1/chat/completions";
constexpr absl::string_view kComplete = "/v1/completions";

std::string Head(absl::string_view method, absl::string_view path,
                 absl::string_view fields = "") {
  return absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: x\r\n",
                      "Authorization: Bearer ", kKey, "\r\n", fields);
}

std::string Post(absl::string_view path, absl::string_view body,
                 absl::string_view fields = "") {
  return absl::StrCat(Head("POST", path, fields),
                      "Content-Length: ", body.size(), "\r\n\r\n", body);
}

std::string Repeat(absl::string_view text, int count) {
  std::string all;
  all.reserve(text.size() * count);
  for (int i = 0; i < count; ++i) all.append(text.data(), text.size());
  return all;
}

std::string Gzip(const std::string& plain) {
  z_stream stream = {};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, plain.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(plain.data()));
  stream.avail_in = plain.size();
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = packed.size();
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// What an attack does to a server: empty, or how it succeeded.
using Attack = std::function<std::string(ServerProcess&)>;

struct Row {
  const char* name;  // Of the specification's row.
  Attack attack;
  bool is_slow = false;
};

TestClient Connect(const ServerProcess& server) {
  TestClient client;
  client.Connect(server.port());
  return client;
}

std::string Expect(int status, const TestResponse& response,
                   bool is_closed_too = false) {
  if (response.status == status) return "";
  if (is_closed_too && response.status == 0) return "";
  return absl::StrCat("status ", response.status, ", not ", status, ": ",
                      response.body.substr(0, 200));
}

// All of `bytes` in one request on a connection of its own.
Attack Sends(std::string bytes, int status) {
  return [bytes = std::move(bytes), status](ServerProcess& server) {
    TestClient client = Connect(server);
    return Expect(status, client.Ask(bytes));
  };
}

// Body bytes without end, as chunks.
std::string EndlessChunks(ServerProcess& server) {
  TestClient client = Connect(server);
  client.Send(Head("POST", kComplete, "Transfer-Encoding: chunked\r\n\r\n"));
  const std::string chunk =
      absl::StrCat("10000\r\n", std::string(1 << 16, ' '), "\r\n");
  char byte;
  for (int i = 0; i < 4096 && client.Send(chunk); ++i) {
    if (recv(client.fd(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) {
      return Expect(413, client.Receive());
    }
  }
  return "256 MiB of chunks were taken";
}

std::string Smuggling(ServerProcess& server) {
  // The hidden request has the right key: were it served, it would be 200.
  const std::string hidden = Head("GET", "/v1/models", "\r\n");
  const auto with_length = [&](const std::string& head) {
    return absl::StrCat(head, "Content-Length: ", hidden.size(), "\r\n\r\n",
                        hidden);
  };
  TestClient client = Connect(server);
  client.Send(with_length(Head("GET", "/health")));
  if (client.Receive().status != 200) return "the outer request";
  client.Send(Head("GET", "/version", "\r\n"));
  const TestResponse next = client.Receive();
  if (!absl::StrContains(next.body, "version")) {
    return absl::StrCat("a body was answered: ", next.body.substr(0, 100));
  }
  TestClient refused = Connect(server);
  refused.Send(with_length(Head("POST", "/nowhere")));
  std::string rest;
  if (refused.Receive().status != 404) return "no 404";
  if (!refused.ReceiveEof(&rest) || !rest.empty()) return "read on after 404";
  for (const char* fields :
       {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        "Content-Length : 5\r\n\r\nabcde",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"}) {
    TestClient ambiguous = Connect(server);
    const TestResponse response =
        ambiguous.Ask(absl::StrCat(Head("POST", kComplete, fields), hidden));
    if (response.status != 400) return absl::StrCat(fields, " was accepted");
    if (!ambiguous.ReceiveEof(&rest)) return "the connection stays open";
  }
  return "";
}

std::string PercentDecoding(ServerProcess& server) {
  TestClient client = Connect(server);
  const TestResponse response = client.Ask(
      Post(kComplete, R"({"prompt":"a","max_tokens":1})",
           "X-Request-Id: a%0d%0aX-Evil: 1\r\nX-Other: %0d%0aX-Evil: 1\r\n"));
  if (absl::StrContains(response.head, "X-Evil")) return "a field got in";
  TestClient key = Connect(server);
  return Expect(401,
                key.Ask(absl::StrCat(
                    "GET /v1/models HTTP/1.1\r\nHost: x\r\n",
                    "Authorization: Bearer key%2dof%2dthe%2dtests\r\n\r\n")));
}

std::string HeaderInjection(ServerProcess& server) {
  TestClient client = Connect(server);
  const TestResponse response = client.Ask(Post(
      kComplete,
      R"({"prompt":"a","max_tokens":1,"model":"demo","x\r\nX-Evil: 1":2})"));
  if (absl::StrContains(response.head, "X-Evil")) return "a field got in";
  return Expect(200, response);
}

std::string Pipelining(ServerProcess& server) {
  TestClient client = Connect(server);
  client.Send(Repeat(Head("GET", "/version", "\r\n"), 1000));
  for (int i = 0; i < 1000; ++i) {
    if (client.Receive().status != 200) return absl::StrCat("answer ", i);
  }
  return "";
}

// Alternating good and bad at once, some hundred connections.
std::string ProbesBehindRequests(ServerProcess& server) {
  std::vector<TestClient> busy;
  for (int i = 0; i < 200; ++i) {
    busy.push_back(Connect(server));
    busy.back().Send(Post(kComplete,
                          R"({"prompt":"a","max_tokens":400,"stream":true,)"
                          R"("ignore_eos":true})"));
  }
  for (const int port : {server.port(), server.ops_port()}) {
    const absl::Time begin = absl::Now();
    if (Get(port, "/health/live").first != 200) return "no probe";
    // Of the other tests in CI, not of a promise: that is overload's.
    if (absl::Now() - begin > absl::Seconds(5)) return "a probe took seconds";
  }
  return "";
}

std::string IdleCosts(ServerProcess& server) {
  std::vector<TestClient> idle;
  for (int i = 0; i < 500; ++i) {
    idle.push_back(Connect(server));
    idle.back().Send("GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
    if (idle.back().Receive().status != 200) return "not answered";
  }
  return server.CountThreads() < 64 ? "" : "a thread for each";
}

// One byte every now and then does not hold a head open.
std::string SlowHead(ServerProcess& server) {
  TestClient client = Connect(server);
  client.Send("GET /version HTTP/1.1\r\nHost: x\r\nX: ");
  const absl::Time begin = absl::Now();
  char byte;
  while (absl::Now() - begin < absl::Seconds(15)) {
    client.Send("a");
    if (recv(client.fd(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0) {
      const absl::Duration held = absl::Now() - begin;
      if (held > absl::Seconds(8))
        return absl::StrCat("held for ", absl::FormatDuration(held));
      return Expect(408, client.Receive());
    }
    absl::SleepFor(absl::Milliseconds(200));
  }
  return "held for 15 s";
}

// Errors say nothing of the inside.
std::string VerboseErrors(ServerProcess& server) {
  for (const std::string& body :
       {std::string("{\"prompt\":\"\xff\"}"),
        std::string(R"({"prompt":1e999})"),
        std::string(R"({"prompt":"a","temperature":"x"})"),
        std::string(R"({"prompt":"a","n":-9223372036854775808})")}) {
    TestClient client = Connect(server);
    const TestResponse response = client.Ask(Post(kComplete, body));
    const std::string all = response.head + response.body;
    for (const char* secret :
         {"0x", "/work", "/tmp", "/home", ".cc", "std::", "what()", "nlohmann",
          "json.exception", "httplib", "EXCEPTION"}) {
      if (absl::StrContains(all, secret))
        return absl::StrCat(secret, ": ", all);
    }
    if (response.status != 400) return Expect(400, response);
  }
  return "";
}

std::string AuthorizationByPath(ServerProcess& server) {
  for (const char* target :
       {"/v1/models", "/v1/models?x=/health", "/v1/models/", "//v1/models",
        "/v1/./models", "/health/../v1/models", "/v1/%6dodels", "/v1/models%20",
        "/v1/models;/health", "/v1/models#/health"}) {
    TestClient client = Connect(server);
    const TestResponse response = client.Ask(absl::StrCat(
        "GET ", target,
        " HTTP/1.1\r\nHost: x/health\r\nX-Original-URL: /health\r\n\r\n"));
    if (response.status == 200) return absl::StrCat(target, " without a key");
    TestClient other = Connect(server);
    const TestResponse answer = other.Ask(
        absl::StrCat("GET ", target, " HTTP/1.1\r\nHost: health\r\n\r\n"));
    if (answer.status == 200) return absl::StrCat(target, " without a key");
  }
  return "";
}

std::string CrossOrigin(ServerProcess& server) {
  TestClient client = Connect(server);
  const TestResponse response = client.Ask(
      Head("GET", "/v1/models", "Origin: http://evil.example\r\n\r\n"));
  return response.Field("access-control-allow-origin").empty()
             ? Expect(200, response)
             : "an origin was allowed";
}

// Whether a reader of the log may take some of `text` for a line end or for a
// command to its terminal: C0 but the line ends of the log itself, DEL, C1, the
// line separators of Unicode, or bytes that are no text.
bool HasControls(absl::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const absl::string_view rest = text.substr(i);
    const auto byte = static_cast<uint8_t>(rest[0]);
    if ((byte < 0x20 && byte != '\n') || byte == 0x7f) return true;
    if (byte == 0xc2 && rest.size() > 1 && static_cast<uint8_t>(rest[1]) < 0xa0)
      return true;
    if (absl::StartsWith(rest, "\xe2\x80\xa8") ||
        absl::StartsWith(rest, "\xe2\x80\xa9")) {
      return true;
    }
  }
  return !IsValidUtf8(text);
}

// Requests that have `hostile` wherever a client may put something.
std::vector<std::string> HostileRequests(const std::string& hostile) {
  std::string quoted;
  AppendJsonString(absl::StrCat("demo", hostile), &quoted);
  std::string encoded;
  for (const unsigned char c : hostile) {
    absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
  }
  std::vector<std::string> requests = {
      Head("GET", absl::StrCat("/nowhere", hostile), "\r\n"),
      Head("GET", absl::StrCat("/nowhere", encoded), "\r\n"),
      Head("GET", absl::StrCat("/v1/models?a=", hostile), "\r\n"),
      Head("GET", absl::StrCat("/v1/models/demo", encoded), "\r\n"),
      Head(absl::StrCat("GET", hostile), "/v1/models", "\r\n"),
      // Within the text, not in front of the JSON's end: white space there.
      Post(kComplete, absl::StrCat(R"({"prompt":"a","max_tokens":1,)", hostile,
                                   R"("user":"b"})"))};
  for (const char* field : {"X-Request-Id", "User-Agent", "traceparent",
                            "tracestate", "X-Request-Timeout"}) {
    requests.push_back(Post(kComplete, R"({"prompt":"a","max_tokens":1})",
                            absl::StrCat(field, ": a", hostile, "\r\n")));
  }
  for (const char* name :
       {"prompt", "model", "user", "request_id", "cache_salt", "not_a_field"}) {
    requests.push_back(
        Post(kComplete, absl::StrCat(R"({"prompt":"a","max_tokens":1,")", name,
                                     "\":", quoted, "}")));
  }
  return requests;
}

std::string LogInjectionIn(const std::string& format) {
  ServerProcessOptions options;
  options.serve_args = {
      "--api-key",     kKey, "--log-format", format, "--enable-log-requests",
      "--max-log-len", "512"};
  const auto server = ServerProcess::Start(options);
  if (server == nullptr) return "not started";
  const std::string forged =
      format == "json" ? R"({"level":"INFO","message":"request","forged":1})"
                       : "2026-01-01T00:00:00.000Z INFO request forged=1";
  int num_requests = 0;
  for (const std::string& hostile :
       {absl::StrCat("\n", forged, "\n"), absl::StrCat("\r\n", forged),
        absl::StrCat("\r", forged), std::string("\x1b[31m"),
        std::string("\0", 1), std::string("\x7f"),
        std::string("\xc2\x9b"
                    "31m"),
        std::string("\xc2\x85"), absl::StrCat("\xe2\x80\xa8", forged),
        std::string("\xff\xc3"), std::string("\\u000a\\u001b"),
        std::string("\" forged=\"1")}) {
    for (const std::string& request : HostileRequests(hostile)) {
      TestClient client = Connect(*server);
      if (client.Ask(request).status == 0) return "no answer";
      ++num_requests;
    }
  }
  // A line is written behind its answer.
  std::string text;
  const auto num_lines = [&] {
    return std::count(text.begin(), text.end(), '\n');
  };
  WaitUntil([&] {
    text += server->TakeOutput();
    return num_lines() >= num_requests;
  });
  if (num_lines() != num_requests) {
    return absl::StrCat(num_lines(), " lines of ", num_requests, " requests");
  }
  for (const absl::string_view line :
       absl::StrSplit(absl::StripSuffix(text, "\n"), '\n')) {
    bool is_request = absl::StrContains(line, " INFO request request_id=");
    if (format == "json") {
      const auto parsed = ParseJson(line);
      is_request = parsed.ok() && parsed->is_object() &&
                   parsed->value("message", "") == "request" &&
                   parsed->contains("request_id");
    }
    if (!is_request) return absl::StrCat("no line of the log's own: ", line);
  }
  for (const std::string& log : {text, server->ErrorText()}) {
    if (HasControls(log)) return "control characters";
  }
  return "";
}

// With a server of its own, which logs bodies, too.
std::string LogInjection(ServerProcess&) {
  for (const char* format : {"text", "json"}) {
    const std::string problem = LogInjectionIn(format);
    if (!problem.empty()) return absl::StrCat(format, ": ", problem);
  }
  return "";
}

std::vector<Row> HttpRows() {
  const std::string get = Head("GET", "/v1/models");
  const std::string bomb = Gzip(std::string(64 << 20, 'a'));
  return {
      {"CVE-2023-26130 CRLF in a content type",
       Sends(Post(kComplete, R"({"prompt":"a","max_tokens":1})",
                  "Content-Type: a\tb\x0b\r\n"),
             400)},
      {"CVE-2025-46728 chunked body without end", EndlessChunks},
      {"CVE-2025-46728 body above the limit",
       Sends(Head("POST", kComplete, "Content-Length: 999999999999\r\n\r\n"),
             413)},
      {"CVE-2025-53628 line of 64 MiB",
       Sends(absl::StrCat(get, "X: ", std::string(64 << 20, 'a')), 431)},
      {"CVE-2025-53628 request line of 64 MiB",
       Sends(absl::StrCat("GET /", std::string(64 << 20, 'a')), 414)},
      {"CVE-2025-53629 chunk of 2^60 bytes",
       Sends(Head("POST", kComplete,
                  "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n"),
             413)},
      {"CVE-2025-53629 chunk extensions without end",
       Sends(absl::StrCat(Head("POST", kComplete,
                               "Transfer-Encoding: chunked\r\n\r\n1;"),
                          std::string(16 << 20, 'a')),
             400)},
      {"CVE-2025-52887 200,000 fields",
       Sends(get + Repeat("a: b\r\n", 200'000) + "\r\n", 431)},
      {"CVE-2025-66570 REMOTE_ADDR of the client",
       Sends(absl::StrCat(get,
                          "REMOTE_ADDR: 127.0.0.1\r\nLOCAL_ADDR: a\r\n"
                          "LOCAL_PORT: 1\r\nREMOTE_PORT: 1\r\n\r\n"),
             200)},
      {"CVE-2026-22776, -28435 gzip bomb",
       Sends(Post(kComplete, bomb, "Content-Encoding: gzip\r\n"), 415)},
      {"CVE-2026-22776, -28435 brotli",
       Sends(Post(kComplete, "x", "Content-Encoding: br\r\n"), 415)},
      {"CVE-2026-28434 exception text", VerboseErrors},
      {"CVE-2026-29076 regex recursion in Range",
       Sends(absl::StrCat(get, "Range: bytes=", Repeat("0-1,", 1800),
                          "0-1\r\n\r\n"),
             200)},
      {"CVE-2026-29076 regex recursion in a path",
       Sends(absl::StrCat("GET /", std::string(900, '/'),
                          " HTTP/1.1\r\nHost: x\r\n\r\n"),
             404)},
      {"CVE-2026-29076 regex recursion in multipart",
       Sends(
           Post(kComplete, Repeat("--b\r\nContent-Disposition: x\r\n", 30'000),
                "Content-Type: multipart/form-data; boundary=b\r\n"),
           400)},
      {"CVE-2026-34441 request smuggling", Smuggling},
      {"CVE-2026-45352 negative chunk size",
       Sends(Head("POST", kComplete,
                  "Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n"),
             400)},
      {"CVE-2026-45372 percent-decoded field values", PercentDecoding},
      {"CVE-2025-66577, 2026-46527 trusted proxies",
       Sends(absl::StrCat(get, "X-Forwarded-For: 127.0.0.1\r\n\r\n"), 200)},
      {"CVE-2025-0825, 2026-21428 CRLF in answers' fields", HeaderInjection},
      {"multi-range amplification",
       [](ServerProcess& server) {
         TestClient client = Connect(server);
         const TestResponse response = client.Ask(
             absl::StrCat("GET /metrics HTTP/1.1\r\nHost: x\r\nRange: bytes=",
                          Repeat("0-,", 2500), "0-\r\n\r\n"));
         if (response.body.size() > 1 << 20) return std::string("amplified");
         return Expect(200, response);
       }},
      {"slowloris", SlowHead, /*is_slow=*/true},
      {"idle keep-alive connections", IdleCosts},
      {"pipelined requests", Pipelining},
      {"probes behind streams", ProbesBehindRequests},
  };
}

// A request that peers answered with a crash, gigabytes or seconds.
Row Asks(const char* name, absl::string_view path, std::string body,
         int status) {
  return {name, Sends(Post(path, body), status)};
}

// Counts that multiply, and numbers out of range.
std::vector<Row> NumberRows() {
  std::vector<Row> rows;
  rows.push_back(Asks("CVE-2026-34756 n of 16384", kComplete,
                      R"({"prompt":"a","n":16384})", 400));
  rows.push_back(Asks("CVE-2024-8939 best_of of 10^9", kComplete,
                      R"({"prompt":"a","best_of":1000000000})", 400));
  rows.push_back(Asks(
      "CVE-2026-34756 n times prompts", kComplete,
      absl::StrCat(R"({"n":128,"prompt":["a")", Repeat(R"(,"a")", 127), "]}"),
      400));
  rows.push_back(Asks(
      "vLLM #5907 prompt_logprobs of everything", kComplete,
      absl::StrCat(R"({"n":128,"prompt_logprobs":20,)",
                   R"("max_tokens":1,"prompt":[72)", Repeat(",72", 1900), "]}"),
      400));
  // Just below the limit, where an answer is largest.
  const auto scores = [](const char* more, int num_ids) {
    return absl::StrCat(R"({"n":128,"max_tokens":1,)", more, R"("prompt":[72)",
                        Repeat(",72", num_ids - 1), "]}");
  };
  rows.push_back(Asks("many prompt_logprobs", kComplete,
                      scores(R"("prompt_logprobs":20,)", 97), 200));
  rows.push_back(Asks("many prompt_logprobs in a stream", kComplete,
                      scores(R"("prompt_logprobs":20,"stream":true,)", 97),
                      200));
  rows.push_back(Asks("many logprobs of an echo", kComplete,
                      scores(R"("echo":true,"logprobs":20,)", 96), 200));
  rows.push_back(Asks("many logprobs", kComplete,
                      R"({"n":128,"logprobs":20,"prompt":"a",)"
                      R"("max_tokens":97,"ignore_eos":true})",
                      200));
  const auto chat = [](const char* more) {
    return absl::StrCat(R"({"messages":[{"role":"user","content":"a"}],)",
                        R"("logprobs":true,"ignore_eos":true,)", more, "}");
  };
  rows.push_back(Asks("many logprobs of a chat", kChat,
                      chat(R"("n":128,"top_logprobs":20,"max_tokens":97)"),
                      200));
  rows.push_back(Asks("logprobs to the end of the context", kChat,
                      chat(R"("n":128,"top_logprobs":20)"), 200));
  rows.push_back(Asks("logprobs of many tokens", kChat,
                      chat(R"("n":128,"max_tokens":1000)"), 200));
  rows.push_back(Asks("more logprobs than an answer holds", kComplete,
                      R"({"n":128,"logprobs":20,"prompt":"a",)"
                      R"("max_tokens":98,"ignore_eos":true})",
                      400));
  rows.push_back(
      Asks("vLLM #52054 prompt_logprobs of a long prompt", kComplete,
           absl::StrCat(R"({"prompt_logprobs":20,"max_tokens":1,)",
                        R"("prompt":[72)", Repeat(",72", 1900), "]}"),
           200));
  for (const char* value :
       {"-9223372036854775809", "-1", "4294967297", "1e400", "2.5"}) {
    rows.push_back(
        Asks("CVE-2026-21869, 24173, 24214 numbers out of range", kComplete,
             absl::StrCat(R"({"prompt":"a","max_tokens":)", value, "}"), 400));
  }
  return rows;
}

std::vector<Row> ModelServerRows() {
  std::vector<Row> rows;
  rows.push_back(Asks("CVE-2025-48942 bad schema", kComplete,
                      R"({"prompt":"a","guided_json":{"type":"nothing"}})",
                      400));
  rows.push_back(Asks("CVE-2025-48943 bad regex", kComplete,
                      R"({"prompt":"a","guided_regex":"{1,129}"})", 400));
  rows.push_back(Asks("llama.cpp #25602 {2,1}", kComplete,
                      R"({"prompt":"a","guided_regex":"a{2,1}"})", 400));
  rows.push_back(Asks("llama.cpp #12234 deep grammar", kComplete,
                      absl::StrCat(R"({"prompt":"a","grammar":")",
                                   Repeat("(", 200'000), R"("})"),
                      400));
  rows.push_back(
      Asks("CVE-2025-48887 tool calls of parentheses", kChat,
           absl::StrCat(R"({"max_tokens":1,"messages":[{"role":)",
                        R"("assistant","content":")", Repeat("[f(a=(", 2000),
                        R"("},{"role":"user","content":"a"}]})"),
           400));
  rows.push_back(Asks("PR #14837, #16283 grammar cache", kComplete,
                      R"({"prompt":"a","json_schema":{"const":1}})", 400));
  rows.push_back(Asks("CVE-2026-5760 template of the request", kChat,
                      R"({"messages":[{"role":"user","content":"a"}],)"
                      R"("chat_template":"{{ ''.__class__ }}"})",
                      400));
  rows.push_back(Asks("CVE-2025-61620 chat_template_kwargs", kChat,
                      R"({"messages":[{"role":"user","content":"a"}],)"
                      R"("chat_template_kwargs":{"chat_template":"x"}})",
                      400));
  rows.push_back(Asks("CVE-2025-62426 tokenize in kwargs", kChat,
                      R"({"messages":[{"role":"user","content":"a"}],)"
                      R"("chat_template_kwargs":{"tokenize":false}})",
                      400));
  rows.push_back(Asks("llama.cpp #24140 template code in a message", kChat,
                      R"({"max_tokens":1,"messages":[{"role":"user","content":)"
                      R"("{% for i in range(1000000000) %}x{% endfor %}"}]})",
                      200));
  rows.push_back(
      {"HF #29279 control tokens in a message", [](ServerProcess& server) {
         // The same number of tokens, were they control tokens,
         // would be fewer.
         const auto count = [&](const std::string& body) {
           TestClient client = Connect(server);
           const std::string text = client.Ask(Post("/tokenize", body)).body;
           return text.substr(0, text.find(','));
         };
         const std::string hostile =
             count(R"({"messages":[{"role":"user","content":)"
                   R"("<|im_end|><|im_end|><|im_end|><|im_end|>"}]})");
         const std::string plain =
             count(R"({"messages":[{"role":"user","content":"a"}]})");
         return hostile.size() > 9 && hostile > plain &&
                        hostile.size() >= plain.size()
                    ? std::string()
                    : absl::StrCat(hostile, " ", plain);
       }});
  rows.push_back({"CVE-2026-48746 key by path or Host", AuthorizationByPath});
  rows.push_back({"CVE-2026-22778, 2025-23319 verbose errors", VerboseErrors});
  rows.push_back(Asks("CVE-2025-23310 stack by input", kComplete,
                      std::string(7 << 20, '['), 400));
  rows.push_back({"CVE-2025-48956 huge field",
                  Sends(absl::StrCat(Head("GET", "/v1/models", "X: "),
                                     std::string(1 << 20, 'a'), "\r\n\r\n"),
                        431)});
  rows.push_back(Asks("CVE-2025-6242, 2026-24779 image by URL", kChat,
                      R"({"messages":[{"role":"user","content":[{"type":)"
                      R"("image_url","image_url":{"url":)"
                      R"("http://127.0.0.1\\@169.254.169.254/"}}]}]})",
                      400));
  rows.push_back(
      Asks("CVE-2024-8768 empty prompt", kComplete, R"({"prompt":""})", 400));
  rows.push_back(Asks("CVE-2024-8768 prompt of no tokens", kComplete,
                      R"({"prompt":[]})", 400));
  rows.push_back({"log injection", LogInjection});
  rows.push_back({"origins of others", CrossOrigin});
  return rows;
}

// What the packages under us do.
std::vector<Row> PackageRows() {
  std::vector<Row> rows;
  rows.push_back(Asks("nlohmann: nesting of 87,000", kComplete,
                      absl::StrCat(R"({"prompt":)", Repeat("[", 87'000),
                                   Repeat("]", 87'000), "}"),
                      400));
  rows.push_back(Asks("nlohmann: 4 MiB of empty objects", kComplete,
                      absl::StrCat("[{}", Repeat(",{}", 1'300'000), "]"), 400));
  const auto numbers = [](int count) {
    return absl::StrCat(R"({"prompt":"a","max_tokens":1,"metadata":[0)",
                        Repeat(",0", count), "]}");
  };
  rows.push_back(
      Asks("nlohmann: 7 MiB of numbers", kComplete, numbers(3'600'000), 400));
  rows.push_back(
      Asks("nlohmann: a million numbers", kComplete, numbers(1'000'000), 200));
  rows.push_back(Asks("nlohmann: bad UTF-8", kComplete,
                      "{\"prompt\":\"\xc3\x28\xed\xa0\x80\"}", 400));
  for (const auto& [num_words, status] :
       {std::pair(1'400'000, 400), std::pair(400'000, 200)}) {
    const std::string text = Repeat("word ", num_words);
    rows.push_back(Asks("text of megabytes", kComplete,
                        absl::StrCat(R"({"prompt":")", text, R"("})"), 400));
    rows.push_back(Asks(
        "text of megabytes to be cut", kComplete,
        absl::StrCat(R"({"max_tokens":1,)",
                     R"("truncate_prompt_tokens":5,"prompt":")", text, R"("})"),
        status));
    rows.push_back(Asks("text of megabytes to be tokenized", "/tokenize",
                        absl::StrCat(R"({"prompt":")", text, R"("})"), status));
  }
  return rows;
}

}  // namespace

std::vector<Figure> RunAttacks(bool is_full) {
  constexpr double kMiB = 1 << 20;
  std::vector<Figure> figures;
  std::vector<Row> rows = HttpRows();
  for (auto* more : {&NumberRows, &ModelServerRows, &PackageRows}) {
    for (Row& row : more()) rows.push_back(std::move(row));
  }
  ServerProcessOptions options;
  options.serve_args = {"--api-key",      kKey, "--max-model-len", "2048",
                        "--max-num-seqs", "256"};
  std::unique_ptr<ServerProcess> server;
  for (const Row& row : rows) {
    if (row.is_slow && !is_full) continue;
    // One of its own for each: a peak is not hidden by what another left.
    if (server == nullptr || is_full) server = ServerProcess::Start(options);
    if (server == nullptr) return {{"attacks: server not started", 1}};
    const std::string name = absl::StrCat("attack ", row.name, ": ");
    const std::string warm = R"({"prompt":"a","max_tokens":1})";
    Connect(*server).Ask(Post(kComplete, warm));
    server->ResetPeak();
    const int64_t before = server->ResidentBytes();
    const std::string problem = row.attack(*server);
    const double growth = (server->PeakBytes() - before) / kMiB;
    const TestResponse next = Connect(*server).Ask(Post(kComplete, warm));
    if (!problem.empty()) {
      std::fprintf(stderr, "%s%s\n", name.c_str(), problem.c_str());
    }
    figures.push_back({name + "succeeded", problem.empty() ? 0.0 : 1.0});
    figures.push_back({name + "status of the next request", double(next.status),
                       "", Bound::kExactly, 200});
    figures.push_back(
        {name + "peak memory", growth, "MiB", Bound::kAtMost, 64});
    if (!server->IsAlive()) {
      std::fprintf(stderr, "%s\n", server->ErrorText().c_str());
      server.reset();
    }
  }
  return figures;
}

}  // namespace quire
