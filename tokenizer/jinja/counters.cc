#include "tokenizer/jinja/counters.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quire::jinja {

Value MakeCounter(Runtime& runtime, const std::string& name,
                  const Arguments& arguments) {
  auto function = std::make_shared<Function>();
  function->name = name;
  if (name == "cycler") {
    if (arguments.positional.empty() || !arguments.named.empty()) {
      return runtime.Fail("cycler needs at least one item");
    }
    function->type = Function::Type::kCycler;
    function->self =
        runtime.List({arguments.positional.begin(), arguments.positional.end()},
                     SequenceKind::kTuple);
  } else {
    const auto bound = runtime.Bind(name, arguments, {"sep"});
    function->type = Function::Type::kJoiner;
    function->self = bound[0] != nullptr ? *bound[0] : runtime.String(", ");
  }
  function->depth = DepthOf(function->self) + 1;
  if (function->depth > kMaxValueDepth) {
    return runtime.FailLimit("values are nested too deeply");
  }
  return Value(std::shared_ptr<const Function>(std::move(function)));
}

Value CallCounter(Runtime& runtime, const Function& function,
                  const Arguments& arguments) {
  if (!arguments.positional.empty() || !arguments.named.empty()) {
    return runtime.Fail(absl::StrCat(function.name, " takes no arguments"));
  }
  const int64_t position = function.position++;
  if (function.type == Function::Type::kJoiner) {
    return position == 0 ? runtime.String("") : function.self;
  }
  if (function.name == "cycler") {
    return runtime.Fail("cycler is not callable; use next()");
  }
  return Value();
}

}  // namespace quire::jinja
