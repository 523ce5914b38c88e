#include "tokenizer/jinja/context_value.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace quire::jinja {
namespace {

using Json = nlohmann::ordered_json;

Value FromJson(Runtime& runtime, const Json& json, bool is_control, int depth) {
  if (depth >= kMaxValueDepth) {
    return runtime.FailLimit("a variable is nested too deeply");
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::Bool(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::Int(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const uint64_t number = json.get<uint64_t>();
      if (number > INT64_MAX) {
        return Value::Float(static_cast<double>(number));
      }
      return Value::Int(static_cast<int64_t>(number));
    }
    case Json::value_t::number_float:
      return Value::Float(json.get<double>());
    case Json::value_t::string:
      return Value(std::make_shared<const Text>(
          json.get_ref<const std::string&>(), is_control));
    case Json::value_t::array: {
      auto list = std::make_shared<Sequence>();
      list->items.reserve(json.size());
      for (const Json& item : json) {
        list->items.push_back(FromJson(runtime, item, is_control, depth + 1));
        list->depth = std::max(list->depth, DepthOf(list->items.back()) + 1);
      }
      return Value(std::shared_ptr<const Sequence>(std::move(list)));
    }
    case Json::value_t::object: {
      auto dict = std::make_shared<Dict>();
      dict->items.reserve(json.size());
      for (auto it = json.begin(); it != json.end(); ++it) {
        dict->items.emplace_back(
            Value(std::make_shared<const Text>(it.key(), is_control)),
            FromJson(runtime, it.value(), is_control, depth + 1));
        dict->depth =
            std::max(dict->depth, DepthOf(dict->items.back().second) + 1);
      }
      return Value(std::shared_ptr<const Dict>(std::move(dict)));
    }
    default:
      return Value::None();
  }
}

}  // namespace

Value ContextValue(Runtime& runtime, const nlohmann::ordered_json& json,
                   bool is_control) {
  return FromJson(runtime, json, is_control, 0);
}

}  // namespace quire::jinja
