#include "tokenizer/jinja/interpreter.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tokenizer/jinja/context_value.h"
#include "tokenizer/jinja/counters.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/format.h"
#include "tokenizer/jinja/methods.h"
#include "tokenizer/jinja/operations.h"
#include "tokenizer/jinja/runtime.h"

namespace quire::jinja {

// Variables of one block. Macros keep the scope they were defined in.
struct Scope {
  std::vector<std::pair<int, Value>> variables;
  std::shared_ptr<Scope> parent;
  bool is_captured = false;
};

namespace {

using Json = nlohmann::ordered_json;
using ScopePtr = std::shared_ptr<Scope>;

// Evaluation may nest this many times deeper than TemplateLimits::max_depth:
// a macro call or a block takes several levels.
constexpr int kEvaluationFactor = 16;

enum class Flow { kNormal, kBreak, kContinue };

class Interpreter : public Runtime {
 public:
  Interpreter(const Program& program, const Json& context,
              absl::Span<const std::string> trusted_names, absl::Time now,
              const TemplateLimits& limits)
      : Runtime(limits, now),
        program_(program),
        context_(context),
        trusted_names_(trusted_names),
        globals_(program.names.size()) {}

  // Macros and namespaces may refer to each other in circles, and in chains
  // too long for recursive destruction: all are emptied while all are alive.
  ~Interpreter() override {
    for (const ScopePtr& scope : captured_scopes_) scope->variables.clear();
    for (const auto& ns : namespaces_) ns->items.clear();
  }

  absl::StatusOr<Text> Run() {
    scope_ = std::make_shared<Scope>();
    output_ = &result_;
    ExecuteAll(program_.body);
    if (!ok()) return status();
    return std::move(result_);
  }

  Value Call(const Value& callee, Arguments arguments) override {
    const Depth depth(this);
    if (!ok() || !Charge(1 + arguments.positional.size())) return Value();
    if (callee.Is(Kind::kLoop)) return CallLoop(callee, arguments);
    if (callee.IsUndefined()) return FailUndefined(callee);
    if (!callee.Is(Kind::kFunction)) {
      return Fail(
          absl::StrCat("'", TypeName(callee), "' object is not callable"));
    }
    const Function& function = callee.function();
    switch (function.type) {
      case Function::Type::kGlobal:
        return CallGlobal(function.name, arguments);
      case Function::Type::kMethod:
        return CallMethod(*this, function.self, function.name, arguments);
      case Function::Type::kMacro:
        return CallMacro(function, arguments);
      case Function::Type::kLoop:
        return CallLoop(function.self, arguments);
      case Function::Type::kCycler:
      case Function::Type::kJoiner:
        return CallCounter(*this, function, arguments);
    }
    return Value();
  }

 private:
  // Counts the nesting of evaluation while it lives.
  class Depth {
   public:
    explicit Depth(Interpreter* interpreter, int weight = 1)
        : interpreter_(interpreter), weight_(weight) {
      interpreter_->depth_ += weight_;
      if (interpreter_->depth_ >
          interpreter_->limits().max_depth * kEvaluationFactor) {
        interpreter_->FailLimit("evaluation is nested too deeply");
      }
    }
    ~Depth() { interpreter_->depth_ -= weight_; }

   private:
    Interpreter* const interpreter_;
    const int weight_;
  };

  // A new innermost scope while it lives.
  class ScopeGuard {
   public:
    ScopeGuard(Interpreter* interpreter, ScopePtr parent)
        : interpreter_(interpreter), outer_(interpreter->scope_) {
      interpreter_->scope_ = std::make_shared<Scope>();
      interpreter_->scope_->parent = std::move(parent);
    }
    explicit ScopeGuard(Interpreter* interpreter)
        : ScopeGuard(interpreter, interpreter->scope_) {}
    ~ScopeGuard() { interpreter_->scope_ = std::move(outer_); }

   private:
    Interpreter* const interpreter_;
    ScopePtr outer_;
  };

  // ---- Variables -----------------------------------------------------------

  // A look at all variables of a scope; few have more than this many.
  bool ChargeLook(size_t num_variables) {
    return num_variables < 64 ||
           Charge(static_cast<int64_t>(num_variables) / 8);
  }

  void Assign(int name_id, Value value) {
    if (!ChargeLook(scope_->variables.size())) return;
    for (auto& [id, old_value] : scope_->variables) {
      if (id == name_id) {
        old_value = std::move(value);
        return;
      }
    }
    scope_->variables.emplace_back(name_id, std::move(value));
  }

  Value Lookup(int name_id) {
    for (const Scope* scope = scope_.get(); scope != nullptr;
         scope = scope->parent.get()) {
      if (!ChargeLook(scope->variables.size())) return Value();
      for (const auto& [id, value] : scope->variables) {
        if (id == name_id) return value;
      }
    }
    std::optional<Value>& global = globals_[name_id];
    if (!global.has_value()) global = LookupGlobal(program_.names[name_id]);
    return *global;
  }

  Value LookupGlobal(const std::string& name) {
    if (context_.is_object()) {
      const auto it = context_.find(name);
      if (it != context_.end()) {
        const bool is_trusted =
            std::find(trusted_names_.begin(), trusted_names_.end(), name) !=
            trusted_names_.end();
        return ContextValue(*this, *it, is_trusted);
      }
    }
    for (const char* global : {"namespace", "range", "dict", "raise_exception",
                               "strftime_now", "cycler", "joiner"}) {
      if (name == global) {
        auto function = std::make_shared<Function>();
        function->name = name;
        return Value(std::shared_ptr<const Function>(std::move(function)));
      }
    }
    return Undefined(absl::StrCat("'", name, "' is undefined"));
  }

  // ---- Expressions ---------------------------------------------------------

  Value Evaluate(const Expr& expr) {
    if (expr.kind == ExprKind::kConst) return expr.value;
    if (!ok() || !Charge(1)) return Value();
    if (expr.kind == ExprKind::kName) return Lookup(expr.name_id);
    const Depth depth(this);
    set_line(expr.line);
    switch (expr.kind) {
      case ExprKind::kTuple:
        return EvaluateItems(expr, SequenceKind::kTuple);
      case ExprKind::kList:
        return EvaluateItems(expr, SequenceKind::kList);
      case ExprKind::kDict:
        return EvaluateDict(expr);
      case ExprKind::kAttr:
        return GetAttr(Evaluate(*expr.children[0]), expr.name);
      case ExprKind::kItem:
        return EvaluateItem(expr);
      case ExprKind::kCall:
        return EvaluateCall(expr, nullptr);
      case ExprKind::kFilter:
        return ApplyFilter(expr, Evaluate(*expr.children[0]));
      case ExprKind::kTest:
        return EvaluateTest(expr);
      case ExprKind::kNot:
        return Value::Bool(!Truthy(Evaluate(*expr.children[0])));
      case ExprKind::kNegate:
        return Negate(Evaluate(*expr.children[0]));
      case ExprKind::kPlus: {
        const Value value = Evaluate(*expr.children[0]);
        if (value.Is(Kind::kFloat)) return value;
        return Negate(Negate(value));
      }
      case ExprKind::kAnd: {
        Value left = Evaluate(*expr.children[0]);
        return Truthy(left) ? Evaluate(*expr.children[1]) : left;
      }
      case ExprKind::kOr: {
        Value left = Evaluate(*expr.children[0]);
        return Truthy(left) ? left : Evaluate(*expr.children[1]);
      }
      case ExprKind::kBinary: {
        const Value left = Evaluate(*expr.children[0]);
        return Binary(expr.name, left, Evaluate(*expr.children[1]));
      }
      case ExprKind::kConcat: {
        Text text;
        for (const ExprPtr& child : expr.children) {
          AppendValue(Evaluate(*child), &text);
          if (!ok()) break;
        }
        return String(std::move(text));
      }
      case ExprKind::kCompare:
        return EvaluateCompare(expr);
      case ExprKind::kIf:
        if (Truthy(Evaluate(*expr.children[0]))) {
          return Evaluate(*expr.children[1]);
        }
        if (expr.children[2] != nullptr) return Evaluate(*expr.children[2]);
        return Undefined(
            "the inline if-expression evaluated to false and no else section "
            "was defined.");
      default:
        return Fail("invalid expression");
    }
  }

  // The value of an optional part: none where it is absent.
  Value EvaluateOptional(const Expr* expr) {
    return expr == nullptr ? Value::None() : Evaluate(*expr);
  }

  Value EvaluateItems(const Expr& expr, SequenceKind kind) {
    std::vector<Value> items;
    items.reserve(expr.children.size());
    for (const ExprPtr& child : expr.children) {
      items.push_back(Evaluate(*child));
    }
    return List(std::move(items), kind);
  }

  Value EvaluateDict(const Expr& expr) {
    std::vector<std::pair<Value, Value>> items;
    for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
      const Value key = Evaluate(*expr.children[i]);
      SetEntry(&items, key, Evaluate(*expr.children[i + 1]));
    }
    return MakeDict(std::move(items));
  }

  Value EvaluateItem(const Expr& expr) {
    const Value object = Evaluate(*expr.children[0]);
    const Expr& index = *expr.children[1];
    if (index.kind != ExprKind::kSlice) {
      if (index.kind == ExprKind::kTuple) {
        for (const ExprPtr& child : index.children) {
          if (child->kind == ExprKind::kSlice) {
            return Fail("a slice cannot stand in a tuple");
          }
        }
      }
      return GetItem(object, Evaluate(index));
    }
    const Value start = EvaluateOptional(index.children[0].get());
    const Value stop = EvaluateOptional(index.children[1].get());
    const Value step = EvaluateOptional(index.children[2].get());
    return Slice(object, start, stop, step);
  }

  Value EvaluateCompare(const Expr& expr) {
    Value left = Evaluate(*expr.children[0]);
    for (size_t i = 0; i < expr.operators.size(); ++i) {
      Value right = Evaluate(*expr.children[i + 1]);
      if (!ok()) return Value();
      if (!Compare(expr.operators[i], left, right)) return Value::Bool(false);
      left = std::move(right);
    }
    return Value::Bool(true);
  }

  Arguments EvaluateArguments(const Expr& expr) {
    Arguments arguments;
    // Constants among them cost nothing by themselves.
    if (!Charge(expr.arguments.size() + expr.named_arguments.size())) {
      return arguments;
    }
    for (const ExprPtr& argument : expr.arguments) {
      arguments.positional.push_back(Evaluate(*argument));
    }
    if (expr.star_arguments != nullptr) {
      for (Value& value : Iterate(Evaluate(*expr.star_arguments))) {
        arguments.positional.push_back(std::move(value));
      }
    }
    for (const auto& [name, argument] : expr.named_arguments) {
      arguments.named.emplace_back(name, Evaluate(*argument));
    }
    if (expr.star_named_arguments != nullptr) {
      const Value named = Evaluate(*expr.star_named_arguments);
      if (!named.Is(Kind::kDict)) {
        Fail("argument after ** must be a mapping");
        return arguments;
      }
      for (const auto& [name, value] : named.dict().items) {
        if (!name.IsString()) {
          Fail("keywords must be strings");
          return arguments;
        }
        arguments.named.emplace_back(name.text().bytes(), value);
      }
      Charge(named.dict().items.size());
    }
    return arguments;
  }

  // A call; `caller` (may be null) is the macro of a call block.
  Value EvaluateCall(const Expr& expr, const Value* caller) {
    const Expr& callee = *expr.children[0];
    Value function;
    // A method call needs no function object.
    if (callee.kind == ExprKind::kAttr && caller == nullptr) {
      const Value self = Evaluate(*callee.children[0]);
      if (!ok()) return Value();
      if (FindMethod(self, callee.name) == MethodAccess::kSafe) {
        const Arguments arguments = EvaluateArguments(expr);
        set_line(expr.line);
        return ok() && Charge(1)
                   ? CallMethod(*this, self, callee.name, arguments)
                   : Value();
      }
      function = GetAttr(self, callee.name);
    } else {
      function = Evaluate(callee);
    }
    Arguments arguments = EvaluateArguments(expr);
    if (caller != nullptr) arguments.named.emplace_back("caller", *caller);
    set_line(expr.line);
    return Call(function, std::move(arguments));
  }

  Value ApplyFilter(const Expr& expr, const Value& input) {
    const FilterFunction filter = FindFilter(expr.name);
    if (filter == nullptr) {
      return Fail(absl::StrCat("no filter named '", expr.name, "'"));
    }
    const Arguments arguments = EvaluateArguments(expr);
    set_line(expr.line);
    return ok() ? filter(*this, input, arguments) : Value();
  }

  Value EvaluateTest(const Expr& expr) {
    const TestFunction test = FindTest(expr.name);
    if (test == nullptr) {
      return Fail(absl::StrCat("no test named '", expr.name, "'"));
    }
    const Value input = Evaluate(*expr.children[0]);
    const Arguments arguments = EvaluateArguments(expr);
    set_line(expr.line);
    return ok() ? Value::Bool(test(*this, input, arguments)) : Value();
  }

  // ---- Calls ---------------------------------------------------------------

  Value CallGlobal(const std::string& name, const Arguments& arguments) {
    if (name == "raise_exception") {
      const auto bound = Bind(name, arguments, {"message"}, 1);
      if (!ok()) return Value();
      return FailExactly(ToText(*bound[0]).bytes());
    }
    if (name == "strftime_now") return FormatNow(*this, arguments);
    if (name == "range") return MakeRange(*this, arguments);
    if (name == "dict" || name == "namespace") {
      return MakeMapping(name == "namespace", arguments);
    }
    return MakeCounter(*this, name, arguments);
  }

  // dict(...) and namespace(...): an optional mapping or list of pairs, then
  // keyword arguments.
  Value MakeMapping(bool is_namespace, const Arguments& arguments) {
    std::vector<std::pair<Value, Value>> items;
    if (arguments.positional.size() > 1) {
      return Fail("dict expected at most 1 argument");
    }
    if (!arguments.positional.empty()) {
      const Value& source = arguments.positional[0];
      if (source.Is(Kind::kDict)) {
        if (!Charge(source.dict().items.size())) return Value();
        items = source.dict().items;
      } else {
        for (const Value& pair : Iterate(source)) {
          const std::vector<Value> entry = Iterate(pair);
          if (entry.size() != 2) {
            return Fail("dictionary update sequence needs pairs");
          }
          SetEntry(&items, entry[0], entry[1]);
          if (!ok()) return Value();
        }
      }
    }
    for (const auto& [name, value] : arguments.named) {
      SetEntry(&items, String(name), value);
    }
    if (!ok()) return Value();
    if (!is_namespace) return MakeDict(std::move(items));
    auto ns = std::make_shared<Namespace>();
    namespaces_.push_back(ns);
    for (const auto& [key, value] : items) {
      if (!key.IsString()) return Fail("namespace attributes must be strings");
      SetNamespaceItem(ns.get(), key.text().bytes(), value);
    }
    return Value(std::move(ns));
  }

  void SetNamespaceItem(Namespace* ns, const std::string& name, Value value) {
    if (name.front() == '_') {
      Fail(absl::StrCat("a namespace cannot store the attribute '", name,
                        "': it begins with an underscore"));
      return;
    }
    if (!Charge(1 + ns->items.size() / 8)) return;
    for (auto& [key, old_value] : ns->items) {
      if (key == name) {
        old_value = std::move(value);
        return;
      }
    }
    ns->items.emplace_back(name, std::move(value));
  }

  Value MakeMacro(const MacroNode& node) {
    if (!scope_->is_captured) {
      scope_->is_captured = true;
      captured_scopes_.push_back(scope_);
    }
    auto function = std::make_shared<Function>();
    function->type = Function::Type::kMacro;
    function->name = node.name;
    function->macro = &node;
    function->scope = scope_;
    Charge(2);
    return Value(std::shared_ptr<const Function>(std::move(function)));
  }

  Value CallMacro(const Function& function, Arguments& arguments) {
    const Depth depth(this, kEvaluationFactor - 1);
    if (!ok()) return Value();
    const MacroNode& macro = *function.macro;
    // Held: the macro's own variable may be assigned anew while it runs.
    const ScopePtr definition = function.scope;
    const ScopeGuard guard(this, definition);
    BindMacro(macro, arguments);
    if (!ok()) return Value();
    Text text;
    Text* const outer = std::exchange(output_, &text);
    ExecuteAll(macro.body);
    output_ = outer;
    return String(std::move(text));
  }

  // Parameters become variables of the new scope; what is left over goes into
  // varargs, kwargs and caller if the body names them.
  void BindMacro(const MacroNode& macro, Arguments& arguments) {
    const size_t num_parameters = macro.parameters.size();
    const size_t num_positional = arguments.positional.size();
    bool has_caller_parameter = false;
    for (size_t i = 0; i < num_parameters && ok(); ++i) {
      const MacroNode::Parameter& parameter = macro.parameters[i];
      if (!Charge(1 + arguments.named.size() / 8)) return;
      has_caller_parameter |= parameter.name == "caller";
      const auto named = std::find_if(
          arguments.named.begin(), arguments.named.end(),
          [&](const auto& entry) { return entry.first == parameter.name; });
      if (i < num_positional) {
        // A named argument of that name stays and is reported below.
        Assign(parameter.name_id, arguments.positional[i]);
      } else if (named != arguments.named.end()) {
        Assign(parameter.name_id, std::move(named->second));
        arguments.named.erase(named);
      } else if (parameter.default_value != nullptr) {
        Assign(parameter.name_id, Evaluate(*parameter.default_value));
      } else {
        Assign(parameter.name_id,
               Undefined(absl::StrCat("parameter '", parameter.name,
                                      "' was not provided")));
      }
    }
    if (macro.uses_caller && !has_caller_parameter) {
      const auto named = std::find_if(
          arguments.named.begin(), arguments.named.end(),
          [](const auto& entry) { return entry.first == "caller"; });
      if (named != arguments.named.end()) {
        Assign(kCallerName, std::move(named->second));
        arguments.named.erase(named);
      } else {
        Assign(kCallerName, Undefined("No caller defined"));
      }
    }
    if (macro.uses_kwargs) {
      std::vector<std::pair<Value, Value>> items;
      for (auto& [name, value] : arguments.named) {
        items.emplace_back(String(name), std::move(value));
      }
      Assign(kKwargsName, MakeDict(std::move(items)));
    } else if (!arguments.named.empty()) {
      Fail(absl::StrCat("macro '", macro.name, "' takes no keyword argument '",
                        arguments.named.front().first, "'"));
    }
    if (macro.uses_varargs) {
      std::vector<Value> rest;
      for (size_t i = num_parameters; i < num_positional; ++i) {
        rest.push_back(arguments.positional[i]);
      }
      Assign(kVarargsName, List(std::move(rest), SequenceKind::kTuple));
    } else if (num_positional > num_parameters) {
      Fail(absl::StrCat("macro '", macro.name, "' takes not more than ",
                        num_parameters, " argument(s)"));
    }
  }

  // loop(items) runs the body of a recursive loop for other items.
  Value CallLoop(const Value& callee, const Arguments& arguments) {
    const LoopState& loop = callee.loop();
    if (loop.recursive_node == nullptr) {
      return Fail("the loop must have the 'recursive' marker to be called");
    }
    const auto bound = Bind("loop", arguments, {"iterable"}, 1);
    const Depth depth(this, kEvaluationFactor - 1);
    if (!ok()) return Value();
    const Stmt& stmt = *static_cast<const Stmt*>(loop.recursive_node);
    const ScopeGuard guard(this, loop.scope);
    Text text;
    Text* const outer = std::exchange(output_, &text);
    RunLoop(stmt, *bound[0], loop.depth0 + 1);
    output_ = outer;
    return String(std::move(text));
  }

  // ---- Statements ----------------------------------------------------------

  void AppendValue(const Value& value, Text* out) {
    if (value.IsString()) {
      if (ChargeBytes(value.text().size())) out->Append(value.text());
    } else if (!value.IsUndefined()) {
      out->Append(ToText(value));
    }
    CheckOutput(*out);
  }

  void CheckOutput(const Text& out) {
    if (static_cast<int64_t>(out.size()) > limits().max_output_bytes) {
      FailLimit(absl::StrCat("output is longer than ",
                             limits().max_output_bytes, " bytes"));
    }
  }

  Flow ExecuteAll(const StmtList& body) {
    for (const auto& stmt : body) {
      const Flow flow = Execute(*stmt);
      if (!ok()) return Flow::kNormal;
      if (flow != Flow::kNormal) return flow;
    }
    return Flow::kNormal;
  }

  Flow Execute(const Stmt& stmt) {
    if (!Charge(1)) return Flow::kNormal;
    if (stmt.kind == StmtKind::kText) {
      AppendValue(stmt.value, output_);
      return Flow::kNormal;
    }
    const Depth depth(this);
    set_line(stmt.line);
    switch (stmt.kind) {
      case StmtKind::kPrint:
        AppendValue(Evaluate(*stmt.expr), output_);
        break;
      case StmtKind::kIf:
        return ExecuteIf(stmt);
      case StmtKind::kFor:
        RunLoop(stmt, Evaluate(*stmt.expr), 0);
        break;
      case StmtKind::kSet:
        AssignTarget(*stmt.target, Evaluate(*stmt.expr));
        break;
      case StmtKind::kSetBlock:
      case StmtKind::kFilter:
        return ExecuteCapture(stmt);
      case StmtKind::kWith: {
        std::vector<Value> values;
        if (!Charge(stmt.assignments.size())) return Flow::kNormal;
        for (const auto& [target, expr] : stmt.assignments) {
          values.push_back(Evaluate(*expr));
        }
        const ScopeGuard guard(this);
        for (size_t i = 0; i < values.size(); ++i) {
          AssignTarget(*stmt.assignments[i].first, values[i]);
        }
        return ExecuteAll(stmt.body);
      }
      case StmtKind::kMacro:
        Assign(stmt.name_id, MakeMacro(stmt.macro));
        break;
      case StmtKind::kCall: {
        const Value caller = MakeMacro(stmt.macro);
        AppendValue(EvaluateCall(*stmt.expr, &caller), output_);
        break;
      }
      case StmtKind::kGeneration: {
        const ScopeGuard guard(this);
        return ExecuteAll(stmt.body);
      }
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
      default:
        break;
    }
    return Flow::kNormal;
  }

  Flow ExecuteIf(const Stmt& stmt) {
    for (const auto& [condition, body] : stmt.branches) {
      const bool holds = Truthy(Evaluate(*condition));
      if (!Charge(1)) return Flow::kNormal;
      if (holds) return ExecuteAll(body);
    }
    return ExecuteAll(stmt.else_body);
  }

  // `{% set x %}` and `{% filter %}`: the output of the body is a value.
  Flow ExecuteCapture(const Stmt& stmt) {
    Text text;
    Flow flow;
    {
      const ScopeGuard guard(this);
      Text* const outer = std::exchange(output_, &text);
      flow = ExecuteAll(stmt.body);
      output_ = outer;
    }
    if (flow != Flow::kNormal || !ok()) return flow;
    Value value = String(std::move(text));
    if (stmt.expr != nullptr) value = ApplyFilterChain(*stmt.expr, value);
    if (stmt.kind == StmtKind::kFilter) {
      AppendValue(value, output_);
    } else {
      AssignTarget(*stmt.target, value);
    }
    return flow;
  }

  Value ApplyFilterChain(const Expr& expr, const Value& input) {
    const Depth depth(this);
    if (!ok()) return Value();
    const Expr* inner = expr.children[0].get();
    return ApplyFilter(
        expr, inner == nullptr ? input : ApplyFilterChain(*inner, input));
  }

  void AssignTarget(const Expr& target, const Value& value) {
    if (!ok()) return;
    if (target.kind == ExprKind::kName) {
      Assign(target.name_id, value);
      return;
    }
    if (target.kind == ExprKind::kNsRef) {
      const Value ns = Lookup(target.name_id);
      if (!ns.Is(Kind::kNamespace)) {
        Fail("cannot assign attribute on non-namespace object");
        return;
      }
      SetNamespaceItem(&ns.ns(), target.name, value);
      return;
    }
    const std::vector<Value> items = Iterate(value);
    if (items.size() != target.children.size()) {
      Fail(absl::StrCat("cannot unpack ", items.size(), " values into ",
                        target.children.size()));
      return;
    }
    for (size_t i = 0; i < items.size(); ++i) {
      AssignTarget(*target.children[i], items[i]);
    }
  }

  // The items that a loop with a condition visits.
  std::vector<Value> FilterItems(const Stmt& stmt, std::vector<Value> items) {
    std::vector<Value> kept;
    for (Value& item : items) {
      const ScopeGuard guard(this);
      AssignTarget(*stmt.target, item);
      if (Truthy(Evaluate(*stmt.condition))) kept.push_back(std::move(item));
      if (!ok()) break;
    }
    return kept;
  }

  void RunLoop(const Stmt& stmt, const Value& iterable, int64_t depth0) {
    if (!ok()) return;
    Value items = iterable;
    const bool is_plain = iterable.Is(Kind::kSequence) &&
                          iterable.sequence().kind <= SequenceKind::kRange;
    if (!is_plain || stmt.condition != nullptr) {
      std::vector<Value> list = Iterate(iterable);
      if (stmt.condition != nullptr) list = FilterItems(stmt, std::move(list));
      items = List(std::move(list));
    }
    if (!ok()) return;
    const std::vector<Value>& list = items.sequence().items;
    if (list.empty()) {
      const ScopeGuard guard(this);
      ExecuteAll(stmt.else_body);
      return;
    }
    auto state = std::make_shared<LoopState>();
    state->items = items;
    state->depth0 = depth0;
    if (stmt.is_recursive) {
      state->recursive_node = &stmt;
      state->scope = scope_;
      if (!scope_->is_captured) {
        scope_->is_captured = true;
        captured_scopes_.push_back(scope_);
      }
    }
    const Value loop{std::move(state)};
    if (DepthOf(loop) > kMaxValueDepth) {
      FailLimit("values are nested too deeply");
      return;
    }
    for (size_t i = 0; i < list.size(); ++i) {
      if (!Charge(1)) return;
      loop.loop().index0 = i;
      const ScopeGuard guard(this);
      scope_->variables.emplace_back(kLoopName, loop);
      AssignTarget(*stmt.target, list[i]);
      const Flow flow = ExecuteAll(stmt.body);
      if (!ok() || flow == Flow::kBreak) return;
    }
  }

  const Program& program_;
  const Json& context_;
  const absl::Span<const std::string> trusted_names_;
  std::vector<std::optional<Value>> globals_;  // By name_id, once looked up.
  ScopePtr scope_;
  std::vector<ScopePtr> captured_scopes_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  Text result_;
  Text* output_ = nullptr;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<Text> RunTemplate(const Program& program,
                                 const nlohmann::ordered_json& context,
                                 absl::Span<const std::string> trusted_names,
                                 absl::Time now, const TemplateLimits& limits) {
  return Interpreter(program, context, trusted_names, now, limits).Run();
}

}  // namespace quire::jinja
