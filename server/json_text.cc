#include "server/json_text.h"

#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxParameterBytes = 64;

// Builds the tree, within the limits; rejects by returning false. Unlike
// nlohmann's own builder it finds duplicate keys without a search of all.
class LimitedBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit LimitedBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return AddPlain(Json()); }
  bool boolean(bool value) override { return AddPlain(Json(value)); }
  bool number_integer(number_integer_t value) override {
    return AddPlain(Json(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return AddPlain(Json(value));
  }
  bool number_float(number_float_t value, const string_t&) override {
    if (std::isfinite(value)) return AddPlain(Json(value));
    return Fail("the body is not valid JSON: a number is out of range");
  }
  bool string(string_t& value) override {
    return Count() && AddScalar(Json(std::move(value)));
  }
  bool binary(binary_t&) override { return false; }  // Not in text.
  bool start_object(std::size_t) override { return Enter(Json::object()); }
  bool start_array(std::size_t) override { return Enter(Json::array()); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& key) override {
    Open& object = open_.back();
    const bool is_outermost = open_.size() == 1;
    if (++object.num_keys > object.max_keys) {
      if (is_outermost) member_.clear();  // None of them is to blame.
      return FailLimit(
          absl::StrCat("an object with more than ", object.max_keys, " keys"));
    }
    if (is_outermost) member_ = key;
    auto& members = object.value->get_ref<Json::object_t&>();
    const auto [it, is_new] = object.index_of_key.emplace(key, members.size());
    if (is_new) members.emplace_back(std::move(key), Json());
    object.next = &members.begin()[it->second].second;
    *object.next = Json();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // So nlohmann tells of a number that no double holds.
    constexpr int kNumberOverflow = 406;
    if (error.id == kNumberOverflow) {
      return Fail(
          absl::StrCat("the body is not valid JSON: a number is out of range "
                       "near byte ",
                       position));
    }
    return Fail(
        absl::StrCat("the body is not valid JSON: syntax error near "
                     "byte ",
                     position));
  }

  Json TakeRoot() { return std::move(root_); }
  absl::Status error() const {
    absl::Status status = absl::InvalidArgumentError(
        problem_.empty() ? "the body is not valid JSON" : problem_);
    if (is_limit_ && !member_.empty() && member_.size() <= kMaxParameterBytes) {
      status.SetPayload(kParameterPayload, absl::Cord(member_));
    }
    return status;
  }

 private:
  // A list or object whose end is still to come.
  struct Open {
    Json* value = nullptr;  // In its parent, which does not grow meanwhile.
    Json* next = nullptr;   // Of an object: where the newest key's value goes.
    int num_keys = 0;
    int max_keys = 0;
    absl::flat_hash_map<std::string, size_t> index_of_key;
  };

  bool Fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }
  bool FailLimit(const std::string& limit) {
    is_limit_ = problem_.empty();
    return Fail(absl::StrCat("the body exceeds a limit: ", limit));
  }
  bool Count() {
    if (++num_nodes_ <= limits_.max_nodes) return true;
    return FailLimit(absl::StrCat("more than ", limits_.max_nodes,
                                  " strings, lists and objects"));
  }
  // Where the value is from now on.
  Json* Place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Open& parent = open_.back();
    if (parent.value->is_array()) {
      auto& items = parent.value->get_ref<Json::array_t&>();
      items.push_back(std::move(value));
      return &items.back();
    }
    *parent.next = std::move(value);
    return parent.next;
  }
  bool AddPlain(Json value) {
    if (++num_plain_values_ > limits_.max_plain_values) {
      return FailLimit(absl::StrCat("more than ", limits_.max_plain_values,
                                    " numbers, booleans and nulls"));
    }
    return AddScalar(std::move(value));
  }
  bool AddScalar(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Enter(Json value) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth) {
      return FailLimit(absl::StrCat("values nested deeper than ",
                                    limits_.max_depth, " levels"));
    }
    if (!Count()) return false;
    Open open;
    const bool is_wide = open_.size() == 1 && limits_.wide_member != nullptr &&
                         open_.back().value->is_object() &&
                         member_ == limits_.wide_member;
    open.max_keys = is_wide ? limits_.max_wide_keys : limits_.max_keys;
    open.value = Place(std::move(value));
    open_.push_back(std::move(open));
    return true;
  }
  bool Leave() {
    open_.pop_back();
    if (open_.empty()) member_.clear();
    return true;
  }

  const JsonLimits limits_;
  Json root_;
  std::vector<Open> open_;
  std::string member_;  // The newest key of the outermost object.
  int num_nodes_ = 0;
  int num_plain_values_ = 0;
  bool is_limit_ = false;
  std::string problem_;
};

// Length of the well-formed UTF-8 sequence at the start of `text` (Unicode 15,
// table 3-7), or 0.
int Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  int length = 0;
  uint8_t low = 0x80, high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  if (text.size() < static_cast<size_t>(length)) return 0;
  if (byte(1) < low || byte(1) > high) return 0;
  for (int i = 2; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text,
                               const JsonLimits& limits) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  LimitedBuilder builder(limits);
  if (!Json::sax_parse(begin, end, &builder)) return builder.error();
  return builder.TakeRoot();
}

std::string DumpJson(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void AppendJsonString(absl::string_view text, std::string* out) {
  static constexpr char kHex[] = "0123456789abcdef";
  out->push_back('"');
  for (size_t i = 0; i < text.size();) {
    const uint8_t c = static_cast<uint8_t>(text[i]);
    if (c >= 0x80) {
      const int length = Utf8SequenceLength(text.substr(i));
      if (length == 0) {
        out->append("\xef\xbf\xbd");
        ++i;
      } else {
        out->append(text.data() + i, length);
        i += length;
      }
      continue;
    }
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        if (c < 0x20 || c == 0x7f) {
          out->append("\\u00");
          out->push_back(kHex[c >> 4]);
          out->push_back(kHex[c & 15]);
        } else {
          out->push_back(static_cast<char>(c));
        }
    }
    ++i;
  }
  out->push_back('"');
}

void AppendJsonNumber(double value, std::string* out) {
  if (!std::isfinite(value)) {
    out->append("-9999.0");
    return;
  }
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  const absl::string_view digits(buffer, result.ptr - buffer);
  absl::StrAppend(out, digits);
  if (digits.find_first_of(".e") == absl::string_view::npos) out->append(".0");
}

bool IsValidUtf8(absl::string_view text) {
  while (!text.empty()) {
    const int length = Utf8SequenceLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace quire
