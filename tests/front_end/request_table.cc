#include "tests/front_end/request_table.h"

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "server/heap_returner.h"
#include "server/http/test_client.h"
#include "tests/front_end/server_process.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kKey[] = "key-of-the-tests";

struct Case {
  std::string name;
  std::string bytes;
  int status = 0;
  Json error;  // Null: none.
  bool is_stream = false;
  int num_choices = 0;  // 0: not looked at.
};

// Characters below 256, in UTF-8, to bytes.
std::string BytesOf(const std::string& text) {
  std::string bytes;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      bytes += text[i];
    } else {
      bytes += static_cast<char>((lead & 3) << 6 | (text[++i] & 0x3f));
    }
  }
  return bytes;
}

std::string Assemble(const Json& pieces) {
  std::string bytes;
  for (const Json& piece : pieces) {
    if (piece.is_string()) {
      bytes += BytesOf(piece.get<std::string>());
      continue;
    }
    const std::string text = BytesOf(piece[0].get<std::string>());
    for (int i = piece[1].get<int>(); i > 0; --i) bytes += text;
  }
  return bytes;
}

Case ParseCase(const Json& line) {
  Case parsed;
  parsed.name = absl::StrCat(line["group"].get<std::string>(), ": ",
                             line["name"].get<std::string>());
  parsed.status = line["status"].get<int>();
  parsed.error = line.value("error", Json());
  parsed.is_stream = line.value("stream", false);
  parsed.num_choices = line.value("choices", 0);
  if (line.contains("raw")) {
    parsed.bytes = Assemble(line["raw"]);
    return parsed;
  }
  const std::string body = Assemble(line["body"]);
  parsed.bytes = absl::StrCat(line["request"].get<std::string>(),
                              " HTTP/1.1\r\nHost: x\r\n");
  if (line.value("key", true)) {
    absl::StrAppend(&parsed.bytes, "Authorization: Bearer ", kKey, "\r\n");
  }
  for (const Json& field : line.value("fields", Json::array())) {
    absl::StrAppend(&parsed.bytes, field[0].get<std::string>(), ": ",
                    field[1].get<std::string>(), "\r\n");
  }
  absl::StrAppend(&parsed.bytes, "Content-Length: ", body.size(), "\r\n\r\n",
                  body);
  return parsed;
}

std::vector<Case> ReadTable(const std::string& path) {
  std::vector<Case> cases;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json parsed = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_object()) cases.push_back(ParseCase(parsed));
  }
  return cases;
}

// Empty, or what is wrong with the answer.
std::string Judge(const Case& asked, const TestResponse& response) {
  if (response.status != asked.status) {
    return absl::StrCat("status ", response.status, ", not ", asked.status);
  }
  if (!response.is_complete) return "the answer is cut off";
  if (asked.is_stream) {
    if (!absl::EndsWith(response.body, "data: [DONE]\n\n")) return "no end";
    return absl::StrContains(response.body, "\"error\"") ? "an error" : "";
  }
  const bool is_text =
      absl::StartsWith(response.Field("content-type"), "text/");
  const Json body =
      Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
  if (body.is_discarded()) return is_text ? "" : "no JSON";
  if (!asked.error.is_null() && body != Json{{"error", asked.error}}) {
    return "another error object";
  }
  if (asked.num_choices > 0 &&
      (!body.contains("choices") ||
       static_cast<int>(body["choices"].size()) != asked.num_choices)) {
    return "another number of choices";
  }
  return "";
}

// When it had time to give back what is free, which is not growth.
int64_t BytesAtRest(const ServerProcess& server) {
  absl::SleepFor(HeapReturner::kCalm + absl::Seconds(1));
  return server.ResidentBytes();
}

}  // namespace

std::vector<Figure> RunRequestTable(RequestTable table, int num_rounds,
                                    const std::string& program) {
  const bool is_bad = table == RequestTable::kBad;
  const std::string name = absl::StrCat(
      is_bad ? "bad requests" : "odd requests",
      absl::StrContains(program, "hash") ? "" : " to the demo model", ": ");
  const std::vector<Case> cases = ReadTable(RunfilePath(absl::StrCat(
      "tests/front_end/", is_bad ? "bad" : "odd", "_requests.jsonl")));
  std::set<std::string> names;
  for (const Case& asked : cases) names.insert(asked.name);
  ServerProcessOptions options;
  options.program = program;
  options.serve_args = {"--api-key",      kKey,  "--max-body-size", "1MiB",
                        "--max-num-seqs", "256", "--max-model-len", "2048"};
  auto server = ServerProcess::Start(options);
  if (server == nullptr) return {{name + "server not started", 1}};

  int num_wrong = 0;
  int num_unhealthy = 0;
  std::vector<double> millis;
  int64_t warm_bytes = 0;
  for (int round = 0; round < num_rounds; ++round) {
    for (const Case& asked : cases) {
      TestClient client;
      client.Connect(server->port());
      const absl::Time begin = absl::Now();
      const TestResponse response = client.Ask(asked.bytes);
      millis.push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
      const std::string problem = Judge(asked, response);
      if (!problem.empty()) {
        ++num_wrong;
        if (round == 0) {
          std::fprintf(stderr, "%s: %s: %d %s\n", asked.name.c_str(),
                       problem.c_str(), response.status,
                       response.body.substr(0, 500).c_str());
        }
      }
      server->TakeOutput();
      num_unhealthy += Get(server->ops_port(), "/health/live").first != 200;
    }
    // What caches and arenas take once they have taken in the first rounds.
    if (num_rounds >= 10 && round == num_rounds / 10) {
      warm_bytes = BytesAtRest(*server);
    }
    // A leak goes on to the end, other growth does not.
    if (num_rounds >= 10 && round % (num_rounds / 10) == 0) {
      std::fprintf(stderr, "%sround %d: %.1f MiB\n", name.c_str(), round,
                   double(server->ResidentBytes()) / (1 << 20));
    }
  }
  std::vector<Figure> figures = {
      {name + "in the table", double(names.size()), "", Bound::kAtLeast,
       is_bad ? 300.0 : 100.0},
      {name + "of one name", double(cases.size() - names.size())},
      {name + "other answers than they should get", double(num_wrong)},
      {name + "not healthy after", double(num_unhealthy)}};
  if (is_bad) {
    figures.push_back({name + "p99 of the time to an answer",
                       Percentile(millis, 0.99), "ms", Bound::kAtMost, 50,
                       true});
  }
  if (num_rounds >= 10) {
    figures.push_back(
        {absl::StrCat(name, "growth over ", num_rounds, " rounds"),
         double(BytesAtRest(*server) - warm_bytes) / (1 << 20), "MiB",
         Bound::kAtMost, 1});
  }
  figures.push_back({name + "still running or held afterwards",
                     server->WaitUntilIdle() ? 0.0 : 1.0});
  const std::optional<int> exit_code = server->Terminate();
  figures.push_back({name + "exit code", double(exit_code.value_or(-1))});
  return figures;
}

}  // namespace quire
