// What a client of a stream reads: events of the engine, with whatever tokens,
// through ApiCall.
//
// Input: two bytes of flags, a byte for the number of choices, a stop string
// ended by 0xFF, then the events: a byte that names choice, end and flush, a
// count, and so many token ids. Every event of the stream must be one JSON
// object on one line, in the order that clients rely on, and all of them
// together must hold the same text as the answer in one piece.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "server/api_call.h"
#include "server/fake_tokenizer.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

// The client, which insists on the order of HttpResponder.
class Client : public HttpResponder {
 public:
  void Send(int status, absl::string_view, std::string body,
            const HttpHeaders&) override {
    QUIRE_CHECK(!is_stream && !is_finished);
    this->status = status;
    this->body = std::move(body);
    is_finished = true;
  }
  void StartStream(const HttpHeaders&) override {
    QUIRE_CHECK(!is_stream && !is_finished);
    is_stream = true;
    status = 200;
  }
  void Write(std::string data) override {
    QUIRE_CHECK(is_stream && !is_finished);
    // Pieces are whole events: the transport puts its pings in between.
    QUIRE_CHECK(data.empty() || absl::EndsWith(data, "\n\n"));
    body += data;
  }
  void Finish() override {
    QUIRE_CHECK(is_stream && !is_finished);
    is_finished = true;
  }
  void OnDisconnect(std::function<void()>) override {}

  int status = 0;
  std::string body;
  bool is_stream = false;
  bool is_finished = false;
};

struct Input {
  uint8_t flags = 0, more_flags = 0;
  int num_choices = 1;
  std::string stop;
  struct Event {
    int choice_idx = 0;
    bool flushes = false;
    OutputEvent event;
  };
  std::vector<Event> events;
  bool fails = false;  // In the end, in place of what is open.
};

Input Parse(absl::string_view data) {
  Input input;
  const auto next = [&data]() -> uint8_t {
    if (data.empty()) return 0;
    const uint8_t byte = static_cast<uint8_t>(data[0]);
    data.remove_prefix(1);
    return byte;
  };
  input.flags = next();
  input.more_flags = next();
  input.num_choices = 1 + next() % 3;
  const size_t end = std::min(data.find('\xFF'), data.size());
  input.stop = std::string(data.substr(0, end));
  // Requests are UTF-8: no stop string begins within a character.
  if (!IsValidUtf8(input.stop)) input.stop.clear();
  data.remove_prefix(std::min(end + 1, data.size()));
  while (!data.empty()) {
    Input::Event& event = input.events.emplace_back();
    const uint8_t kind = next();
    event.choice_idx = kind % input.num_choices;
    event.flushes = kind & 0x10;
    for (int i = 0, num_tokens = next() % 8; i < num_tokens; ++i) {
      TokenOutput token;
      token.token_id = next() * FakeTokenizer::kVocabSize / 256;
      token.logprob = kind & 0x20 ? -0.5f : -1e30f;
      token.top_logprobs = {{token.token_id, token.logprob}, {65, -2.0f}};
      event.event.tokens.push_back(std::move(token));
    }
    event.event.num_draft_tokens = kind & 0x08 ? 2 : 0;
    event.event.num_accepted_tokens = kind & 0x08 ? 1 : 0;
    event.event.time = absl::FromUnixSeconds(kind);
    event.event.scheduled_time = absl::FromUnixSeconds(1);
    if (kind & 0x40) {
      event.event.finish_reason =
          kind & 0x80 ? FinishReason::kStop : FinishReason::kLength;
    }
  }
  input.fails = input.more_flags & 0x80;
  return input;
}

ApiCallOptions MakeOptions(const Input& input, bool stream) {
  ApiCallOptions options;
  options.kind = input.flags & 1 ? ApiKind::kChat : ApiKind::kCompletion;
  options.id = "id";
  options.model = "a \"model\"\n";
  options.stream = stream;
  options.include_usage = input.flags & 2;
  options.continuous_usage_stats = input.flags & 4;
  options.wants_logprobs = input.flags & 8;
  options.skip_special_tokens = input.flags & 16;
  options.include_stop_str_in_output = input.flags & 32;
  options.return_token_ids = input.flags & 64;
  options.return_tokens_as_token_ids = input.flags & 128;
  options.has_metrics = input.more_flags & 1;
  options.min_tokens = (input.more_flags >> 1) & 3;
  options.num_choices = input.num_choices;
  options.best_of = options.n = input.num_choices;
  if (!input.stop.empty()) options.stop_strings = {input.stop};
  return options;
}

// What the client has in the end. Every choice ends.
std::shared_ptr<Client> Answer(const Input& input, bool stream) {
  static const FakeTokenizer& tokenizer = *new FakeTokenizer;
  const auto client = std::make_shared<Client>();
  ApiCall call(MakeOptions(input, stream), &tokenizer, client);
  call.Start();
  for (const Input::Event& event : input.events) {
    call.Append(event.choice_idx, event.event);
    if (event.flushes) call.Flush();
  }
  if (input.fails) call.Fail(absl::UnavailableError("the \"reason\"\n"));
  for (int i = 0; i < input.num_choices; ++i) {
    OutputEvent last;
    last.finish_reason = FinishReason::kAbort;
    call.Append(i, last);
  }
  call.Flush();
  QUIRE_CHECK(call.is_complete() && client->is_finished);
  return client;
}

struct Texts {
  std::vector<std::string> texts;
  std::vector<std::string> finish_reasons;
  bool has_failed = false;

  bool operator==(const Texts&) const = default;
};

// What a client takes from a chunk or from the whole answer, without the tree:
// to build it took most of an execution.
class AnswerReader final : public nlohmann::json_sax<Json> {
 public:
  struct Choice {
    int64_t index = -1;
    std::string text;  // Or content.
    std::string finish_reason;
    bool has_role = false;
    bool has_finish_reason = false;
  };

  // Aborts unless `text` is one JSON object.
  explicit AnswerReader(absl::string_view text) {
    QUIRE_CHECK(Json::sax_parse(text.data(), text.data() + text.size(), this));
  }

  bool has_error() const { return has_error_; }
  const std::vector<Choice>& choices() const { return choices_; }

  bool null() override { return depth_ > 0; }
  bool boolean(bool) override { return depth_ > 0; }
  bool number_integer(number_integer_t) override { return depth_ > 0; }
  bool number_unsigned(number_unsigned_t value) override {
    if (IsInChoice() && keys_[3] == "index") {
      choices_.back().index = static_cast<int64_t>(value);
    }
    return depth_ > 0;
  }
  bool number_float(number_float_t, const string_t&) override {
    return depth_ > 0;
  }
  bool string(string_t& value) override {
    if (IsInChoice() && keys_[3] == "finish_reason") {
      choices_.back().finish_reason = value;
    } else if ((IsInChoice() && keys_[3] == "text") ||
               (IsInMessage() && keys_[4] == "content")) {
      choices_.back().text = value;
    }
    return depth_ > 0;
  }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override {
    if (++depth_ == 3 && keys_[1] == "choices") choices_.emplace_back();
    return true;
  }
  bool start_array(std::size_t) override { return depth_++ > 0; }
  bool end_object() override { return depth_-- > 0; }
  bool end_array() override { return depth_-- > 0; }
  bool key(string_t& key) override {
    if (depth_ < static_cast<int>(keys_.size())) keys_[depth_] = key;
    has_error_ |= depth_ == 1 && key == "error";
    if (IsInChoice()) {
      choices_.back().has_finish_reason |= key == "finish_reason";
    }
    if (IsInMessage()) choices_.back().has_role |= key == "role";
    return true;
  }
  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool IsInChoice() const { return depth_ == 3 && keys_[1] == "choices"; }
  bool IsInMessage() const {
    return depth_ == 4 && keys_[1] == "choices" &&
           (keys_[3] == "delta" || keys_[3] == "message");
  }

  int depth_ = 0;                    // Open objects and arrays.
  std::array<std::string, 5> keys_;  // The newest of the object at each depth.
  bool has_error_ = false;
  std::vector<Choice> choices_;
};

Texts ReadStream(const Input& input, const std::string& body) {
  const bool is_chat = input.flags & 1;
  Texts read;
  read.texts.resize(input.num_choices);
  read.finish_reasons.resize(input.num_choices);
  std::vector<bool> has_role(input.num_choices);
  absl::string_view rest = body;
  QUIRE_CHECK(absl::ConsumeSuffix(&rest, "data: [DONE]\n\n"));
  for (absl::string_view event : absl::StrSplit(rest, "\n\n")) {
    if (event.empty()) continue;
    QUIRE_CHECK(!absl::StrContains(event, '\n'));
    QUIRE_CHECK(absl::ConsumePrefix(&event, "data: "));
    const AnswerReader parsed(event);
    QUIRE_CHECK(!read.has_failed);  // Nothing comes behind an error.
    if (parsed.has_error()) {
      read.has_failed = true;
      continue;
    }
    for (const AnswerReader::Choice& choice : parsed.choices()) {
      const int64_t index = choice.index;
      QUIRE_CHECK(index >= 0 && index < input.num_choices);
      QUIRE_CHECK(read.finish_reasons[index].empty());
      if (is_chat) {
        QUIRE_CHECK(choice.has_role == !has_role[index]);
        has_role[index] = true;
      }
      read.texts[index] += choice.text;
      // null, or the last of the choice; never empty.
      QUIRE_CHECK(choice.has_finish_reason);
      read.finish_reasons[index] = choice.finish_reason;
    }
  }
  return read;
}

Texts ReadWhole(const Input& input, const Client& client) {
  Texts read;
  read.texts.resize(input.num_choices);
  read.finish_reasons.resize(input.num_choices);
  const AnswerReader parsed(client.body);
  read.has_failed = client.status != 200;
  QUIRE_CHECK(read.has_failed == parsed.has_error());
  if (read.has_failed) return read;
  QUIRE_CHECK(parsed.choices().size() ==
              static_cast<size_t>(input.num_choices));
  for (int i = 0; i < input.num_choices; ++i) {
    read.texts[i] = parsed.choices()[i].text;
    read.finish_reasons[i] = parsed.choices()[i].finish_reason;
  }
  return read;
}

void Run(absl::string_view data) {
  const Input input = Parse(data);
  const auto stream = Answer(input, /*stream=*/true);
  const auto whole = Answer(input, /*stream=*/false);
  const Texts streamed = ReadStream(input, stream->body);
  const Texts at_once = ReadWhole(input, *whole);
  QUIRE_CHECK(streamed.has_failed == at_once.has_failed);
  if (!at_once.has_failed) QUIRE_CHECK(streamed == at_once);
}

}  // namespace
}  // namespace quire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quire::Run(absl::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
