#include "tokenizer/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/jinja/token_cursor.h"

namespace quire::jinja {
namespace {

// Left-associative chains (a + b + c ...) nest to the left without brackets;
// they may be this many times deeper than brackets.
constexpr int kChainFactor = 8;

// After an error every function returns whatever it has (see TokenCursor).
class Parser : private TokenCursor {
 public:
  Parser(std::vector<Token> tokens, const TemplateLimits& limits)
      : TokenCursor(std::move(tokens)), limits_(limits) {
    for (const char* name : {"loop", "caller", "varargs", "kwargs"}) {
      Intern(name);
    }
  }

  absl::StatusOr<std::unique_ptr<const Program>> Run() {
    auto program = std::make_unique<Program>();
    program->body = ParseBody({});
    if (!status().ok()) return status();
    program->names = std::move(names_);
    return program;
  }

 private:
  // Counts the nesting of the source while it lives.
  class Nesting {
   public:
    explicit Nesting(Parser* parser) : parser_(parser) {
      if (++parser_->depth_ > parser_->limits_.max_depth) {
        parser_->Fail("nested too deeply");
      }
    }
    ~Nesting() { --parser_->depth_; }

   private:
    Parser* const parser_;
  };

  int Intern(absl::string_view name) {
    const auto [it, is_new] =
        name_ids_.try_emplace(name, static_cast<int>(names_.size()));
    if (is_new) names_.emplace_back(name);
    return it->second;
  }

  ExprPtr New(ExprKind kind) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = Current().line;
    return expr;
  }

  // Adds a child (null: absent) and keeps the height within its bound.
  void Adopt(Expr* parent, ExprPtr child) {
    Grow(parent, child.get());
    parent->children.push_back(std::move(child));
  }
  void Grow(Expr* parent, const Expr* child) {
    if (child == nullptr) return;
    parent->height = std::max(parent->height, child->height + 1);
    if (parent->height > limits_.max_depth * kChainFactor) {
      Fail("expression is too long");
    }
  }

  // ---- Expressions, loosest binding first -------------------------------

  ExprPtr ParseExpression(bool with_condition = true) {
    return with_condition ? ParseCondition() : ParseOr();
  }

  ExprPtr ParseCondition() {
    const Nesting nesting(this);
    ExprPtr left = ParseOr();
    while (IsName("if")) {
      ExprPtr expr = New(ExprKind::kIf);
      Next();
      Adopt(expr.get(), ParseOr());
      Adopt(expr.get(), std::move(left));
      Adopt(expr.get(), SkipName("else") ? ParseCondition() : nullptr);
      left = std::move(expr);
    }
    return left;
  }

  ExprPtr ParseOr() {
    ExprPtr left = ParseAnd();
    while (IsName("or")) {
      ExprPtr expr = New(ExprKind::kOr);
      Next();
      Adopt(expr.get(), std::move(left));
      Adopt(expr.get(), ParseAnd());
      left = std::move(expr);
    }
    return left;
  }

  ExprPtr ParseAnd() {
    ExprPtr left = ParseNot();
    while (IsName("and")) {
      ExprPtr expr = New(ExprKind::kAnd);
      Next();
      Adopt(expr.get(), std::move(left));
      Adopt(expr.get(), ParseNot());
      left = std::move(expr);
    }
    return left;
  }

  ExprPtr ParseNot() {
    if (!IsName("not")) return ParseCompare();
    const Nesting nesting(this);
    ExprPtr expr = New(ExprKind::kNot);
    Next();
    Adopt(expr.get(), ParseNot());
    return expr;
  }

  // The comparison operator at the current token, or "".
  std::string TakeComparison() {
    if (Current().type == TokenType::kOperator) {
      for (const char* op : {"==", "!=", "<", "<=", ">", ">="}) {
        if (Current().text == op) {
          Next();
          return op;
        }
      }
      return "";
    }
    if (SkipName("in")) return "in";
    if (IsName("not") && Look().type == TokenType::kName &&
        Look().text == "in") {
      Next();
      Next();
      return "not in";
    }
    return "";
  }

  ExprPtr ParseCompare() {
    ExprPtr left = ParseSum();
    std::string op = TakeComparison();
    if (op.empty()) return left;
    ExprPtr expr = New(ExprKind::kCompare);
    Adopt(expr.get(), std::move(left));
    for (; !op.empty(); op = TakeComparison()) {
      expr->operators.push_back(op);
      Adopt(expr.get(), ParseSum());
    }
    return expr;
  }

  template <typename ParseOperand>
  ExprPtr ParseBinaryChain(std::initializer_list<const char*> operators,
                           ParseOperand parse_operand) {
    ExprPtr left = parse_operand();
    while (Current().type == TokenType::kOperator) {
      const auto op =
          std::find(operators.begin(), operators.end(), Current().text);
      if (op == operators.end()) break;
      ExprPtr expr = New(ExprKind::kBinary);
      expr->name = *op;
      Next();
      Adopt(expr.get(), std::move(left));
      Adopt(expr.get(), parse_operand());
      left = std::move(expr);
    }
    return left;
  }

  ExprPtr ParseSum() {
    return ParseBinaryChain({"+", "-"}, [this] { return ParseConcat(); });
  }

  ExprPtr ParseConcat() {
    ExprPtr first = ParseProduct();
    if (!IsOperator("~")) return first;
    ExprPtr expr = New(ExprKind::kConcat);
    Adopt(expr.get(), std::move(first));
    while (SkipOperator("~")) Adopt(expr.get(), ParseProduct());
    return expr;
  }

  ExprPtr ParseProduct() {
    return ParseBinaryChain({"*", "/", "//", "%"},
                            [this] { return ParsePower(); });
  }

  // Left-associative, and below the unary operators, unlike Python.
  ExprPtr ParsePower() {
    return ParseBinaryChain({"**"}, [this] { return ParseUnary(true); });
  }

  ExprPtr ParseUnary(bool with_filter) {
    ExprPtr expr;
    if (IsOperator("-") || IsOperator("+")) {
      const Nesting nesting(this);
      expr = New(IsOperator("-") ? ExprKind::kNegate : ExprKind::kPlus);
      Next();
      Adopt(expr.get(), ParseUnary(false));
    } else {
      expr = ParsePrimary(false);
    }
    expr = ParsePostfix(std::move(expr));
    return with_filter ? ParseFilters(std::move(expr)) : std::move(expr);
  }

  ExprPtr ParsePrimary(bool with_namespace) {
    ExprPtr expr = New(ExprKind::kConst);
    const Token token = Current();
    switch (token.type) {
      case TokenType::kName:
        Next();
        ParseNamePrimary(token.text, with_namespace, expr.get());
        return expr;
      case TokenType::kString: {
        std::string text;
        while (Current().type == TokenType::kString) {
          text += Current().text;
          Next();
        }
        expr->value = Value(std::make_shared<const Text>(text, true));
        return expr;
      }
      case TokenType::kInteger:
        expr->value = ParseInteger(token.text);
        Next();
        return expr;
      case TokenType::kFloat: {
        double number = 0;
        if (!absl::SimpleAtod(token.text, &number)) Fail("invalid number");
        expr->value = Value::Float(number);
        Next();
        return expr;
      }
      default:
        break;
    }
    if (SkipOperator("(")) {
      expr = ParseTuple(true, true, "");
      ExpectOperator(")");
      return expr;
    }
    if (IsOperator("[")) return ParseList();
    if (IsOperator("{")) return ParseDict();
    Fail(absl::StrCat("unexpected ", Describe(token)));
    return expr;
  }

  void ParseNamePrimary(const std::string& name, bool with_namespace,
                        Expr* expr) {
    if (name == "true" || name == "True") {
      expr->value = Value::Bool(true);
    } else if (name == "false" || name == "False") {
      expr->value = Value::Bool(false);
    } else if (name == "none" || name == "None") {
      expr->value = Value::None();
    } else {
      expr->kind = ExprKind::kName;
      expr->name_id = Intern(name);
      if (with_namespace && SkipOperator(".")) {
        expr->kind = ExprKind::kNsRef;
        expr->name = ExpectAnyName();
      }
      for (MacroNode* macro : open_macros_) {
        macro->uses_caller |= expr->name_id == kCallerName;
        macro->uses_varargs |= expr->name_id == kVarargsName;
        macro->uses_kwargs |= expr->name_id == kKwargsName;
      }
    }
  }

  Value ParseInteger(const std::string& text) {
    int base = 10;
    if (text.size() > 2 && text[0] == '0') {
      base = text[1] == 'x' || text[1] == 'X'   ? 16
             : text[1] == 'o' || text[1] == 'O' ? 8
             : text[1] == 'b' || text[1] == 'B' ? 2
                                                : 10;
    }
    const absl::string_view digits =
        absl::string_view(text).substr(base == 10 ? 0 : 2);
    int64_t value = 0;
    for (const char c : digits) {
      const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
      if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
          __builtin_add_overflow(value, digit, &value)) {
        Fail(absl::StrCat("invalid or too large integer '", text, "'"));
        break;
      }
    }
    if (digits.empty()) Fail("invalid integer");
    return Value::Int(value);
  }

  // Whether the tuple being parsed without brackets ends here.
  bool IsTupleEnd(absl::string_view end_name) const {
    const TokenType type = Current().type;
    return type == TokenType::kVariableEnd || type == TokenType::kBlockEnd ||
           type == TokenType::kEnd || IsOperator(")") ||
           (!end_name.empty() && IsName(end_name));
  }

  // Expressions with commas between them make a tuple; one without a comma is
  // itself. An empty tuple needs its brackets.
  ExprPtr ParseTuple(bool with_condition, bool has_brackets,
                     absl::string_view end_name) {
    return ParseTupleOf([&] { return ParseExpression(with_condition); },
                        has_brackets, end_name);
  }

  template <typename ParseElement>
  ExprPtr ParseTupleOf(ParseElement parse_element, bool has_brackets,
                       absl::string_view end_name) {
    ExprPtr tuple = New(ExprKind::kTuple);
    bool has_comma = false;
    while (!IsTupleEnd(end_name)) {
      Adopt(tuple.get(), parse_element());
      if (!SkipOperator(",")) break;
      has_comma = true;
    }
    if (has_comma) return tuple;
    if (!tuple->children.empty()) return std::move(tuple->children[0]);
    if (!has_brackets) {
      Fail(absl::StrCat("expected an expression, got ", Describe(Current())));
    }
    return tuple;
  }

  ExprPtr ParseList() {
    ExprPtr list = New(ExprKind::kList);
    Next();
    while (!IsOperator("]") && !AtEnd()) {
      if (!list->children.empty()) ExpectOperator(",");
      if (IsOperator("]")) break;
      Adopt(list.get(), ParseExpression());
    }
    ExpectOperator("]");
    return list;
  }

  ExprPtr ParseDict() {
    ExprPtr dict = New(ExprKind::kDict);
    Next();
    while (!IsOperator("}") && !AtEnd()) {
      if (!dict->children.empty()) ExpectOperator(",");
      if (IsOperator("}")) break;
      Adopt(dict.get(), ParseExpression());
      ExpectOperator(":");
      Adopt(dict.get(), ParseExpression());
    }
    ExpectOperator("}");
    return dict;
  }

  ExprPtr ParsePostfix(ExprPtr expr) {
    while (true) {
      if (IsOperator(".") || IsOperator("[")) {
        expr = ParseSubscript(std::move(expr));
      } else if (IsOperator("(")) {
        expr = ParseCall(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr ParseFilters(ExprPtr expr) {
    while (true) {
      if (SkipOperator("|")) {
        expr = ParseFilter(std::move(expr));
      } else if (IsName("is")) {
        expr = ParseTest(std::move(expr));
      } else if (IsOperator("(")) {
        expr = ParseCall(std::move(expr));
      } else {
        return expr;
      }
    }
  }

  ExprPtr ParseSubscript(ExprPtr object) {
    ExprPtr expr = New(ExprKind::kItem);
    Adopt(expr.get(), std::move(object));
    if (SkipOperator(".")) {
      if (Current().type == TokenType::kInteger) {
        ExprPtr index = New(ExprKind::kConst);
        index->value = ParseInteger(Current().text);
        Next();
        Adopt(expr.get(), std::move(index));
        return expr;
      }
      expr->kind = ExprKind::kAttr;
      expr->name = ExpectAnyName();
      return expr;
    }
    Next();
    ExprPtr indexes = New(ExprKind::kTuple);
    while (!IsOperator("]") && !AtEnd()) {
      if (!indexes->children.empty()) ExpectOperator(",");
      Adopt(indexes.get(), ParseIndex());
    }
    ExpectOperator("]");
    Adopt(expr.get(), indexes->children.size() == 1
                          ? std::move(indexes->children[0])
                          : std::move(indexes));
    return expr;
  }

  ExprPtr ParseIndex() {
    ExprPtr slice = New(ExprKind::kSlice);
    const auto at_part_end = [this] {
      return IsOperator(":") || IsOperator("]") || IsOperator(",");
    };
    ExprPtr start = IsOperator(":") ? nullptr : ParseExpression();
    if (!SkipOperator(":")) return start;
    Adopt(slice.get(), std::move(start));
    Adopt(slice.get(), at_part_end() ? nullptr : ParseExpression());
    if (SkipOperator(":") && !at_part_end()) {
      Adopt(slice.get(), ParseExpression());
    } else {
      Adopt(slice.get(), nullptr);
    }
    return slice;
  }

  ExprPtr ParseCall(ExprPtr callee) {
    ExprPtr expr = New(ExprKind::kCall);
    Adopt(expr.get(), std::move(callee));
    ParseArguments(expr.get());
    return expr;
  }

  void ParseArguments(Expr* expr) {
    ExpectOperator("(");
    bool is_first = true;
    while (!IsOperator(")") && !AtEnd()) {
      if (!is_first) ExpectOperator(",");
      if (IsOperator(")")) break;
      is_first = false;
      bool is_ordered = expr->star_named_arguments == nullptr;
      if (SkipOperator("*")) {
        is_ordered &= expr->star_arguments == nullptr;
        expr->star_arguments = ParseExpression();
        Grow(expr, expr->star_arguments.get());
      } else if (SkipOperator("**")) {
        expr->star_named_arguments = ParseExpression();
        Grow(expr, expr->star_named_arguments.get());
      } else if (Current().type == TokenType::kName &&
                 Look().type == TokenType::kOperator && Look().text == "=") {
        std::string name = ExpectAnyName();
        Next();
        expr->named_arguments.emplace_back(std::move(name), ParseExpression());
        Grow(expr, expr->named_arguments.back().second.get());
      } else {
        is_ordered &=
            expr->star_arguments == nullptr && expr->named_arguments.empty();
        expr->arguments.push_back(ParseExpression());
        Grow(expr, expr->arguments.back().get());
      }
      if (!is_ordered) Fail("invalid syntax for function call expression");
    }
    ExpectOperator(")");
  }

  std::string ParseDottedName() {
    std::string name = ExpectAnyName();
    while (SkipOperator(".")) absl::StrAppend(&name, ".", ExpectAnyName());
    return name;
  }

  // The filter whose name is the current token.
  ExprPtr ParseFilter(ExprPtr input) {
    ExprPtr expr = New(ExprKind::kFilter);
    Adopt(expr.get(), std::move(input));
    expr->name = ParseDottedName();
    if (IsOperator("(")) ParseArguments(expr.get());
    return expr;
  }

  ExprPtr ParseTest(ExprPtr input) {
    ExprPtr expr = New(ExprKind::kTest);
    Next();
    const bool is_negated = SkipName("not");
    Adopt(expr.get(), std::move(input));
    expr->name = ParseDottedName();
    const TokenType type = Current().type;
    if (IsOperator("(")) {
      ParseArguments(expr.get());
    } else if ((type == TokenType::kName || type == TokenType::kString ||
                type == TokenType::kInteger || type == TokenType::kFloat ||
                IsOperator("[") || IsOperator("{")) &&
               !IsName("else") && !IsName("or") && !IsName("and")) {
      if (IsName("is")) Fail("tests cannot be chained with 'is'");
      expr->arguments.push_back(ParsePostfix(ParsePrimary(false)));
      Grow(expr.get(), expr->arguments.back().get());
    }
    if (!is_negated) return expr;
    ExprPtr negated = New(ExprKind::kNot);
    Adopt(negated.get(), std::move(expr));
    return negated;
  }

  // ---- Statements --------------------------------------------------------

  // Statements up to a block whose first name is in `end_names`; stands at that
  // name then. Without end names, up to the end of the template.
  StmtList ParseBody(const std::vector<absl::string_view>& end_names) {
    const Nesting nesting(this);
    StmtList body;
    while (!AtEnd()) {
      auto stmt = std::make_unique<Stmt>();
      stmt->line = Current().line;
      if (Current().type == TokenType::kText) {
        stmt->value = Value(std::make_shared<const Text>(Current().text, true));
        Next();
      } else if (Current().type == TokenType::kVariableBegin) {
        Next();
        stmt->kind = StmtKind::kPrint;
        stmt->expr = ParseTuple(true, false, "");
        ExpectType(TokenType::kVariableEnd);
      } else {
        ExpectType(TokenType::kBlockBegin);
        if (Current().type == TokenType::kName &&
            std::find(end_names.begin(), end_names.end(), Current().text) !=
                end_names.end()) {
          return body;
        }
        ParseStatement(stmt.get());
        ExpectType(TokenType::kBlockEnd);
      }
      body.push_back(std::move(stmt));
    }
    if (!end_names.empty()) {
      Fail(absl::StrCat("unexpected end of template, expected '",
                        end_names.back(), "'"));
    }
    return body;
  }

  // The body of a block: from the end of its opening tag to its end name.
  StmtList ParseBlock(const std::vector<absl::string_view>& end_names) {
    SkipOperator(":");
    ExpectType(TokenType::kBlockEnd);
    return ParseBody(end_names);
  }

  void ParseStatement(Stmt* stmt) {
    const Token token = Current();
    const std::string tag = ExpectAnyName();
    if (tag == "if") return ParseIf(stmt);
    if (tag == "for") return ParseFor(stmt);
    if (tag == "set") return ParseSet(stmt);
    if (tag == "macro") return ParseMacro(stmt);
    if (tag == "call") return ParseCallBlock(stmt);
    if (tag == "with") return ParseWith(stmt);
    if (tag == "filter") {
      stmt->kind = StmtKind::kFilter;
      stmt->expr = ParseFilterChain();
      stmt->body = ParseBlock({"endfilter"});
      Next();
      return;
    }
    if (tag == "generation") {
      // As in Python, where it is a call block, a loop outside is out of reach.
      const int outer_loops = std::exchange(loop_depth_, 0);
      stmt->kind = StmtKind::kGeneration;
      stmt->body = ParseBlock({"endgeneration"});
      Next();
      loop_depth_ = outer_loops;
      return;
    }
    if (tag == "print") {
      stmt->kind = StmtKind::kPrint;
      stmt->expr = ParseTuple(true, false, "");
      return;
    }
    if (tag == "break" || tag == "continue") {
      stmt->kind = tag == "break" ? StmtKind::kBreak : StmtKind::kContinue;
      if (loop_depth_ == 0) Fail(absl::StrCat("'", tag, "' outside loop"));
      return;
    }
    for (const char* name :
         {"include", "import", "from", "extends", "block", "autoescape"}) {
      if (tag == name) {
        return Fail(
            absl::StrCat("tag '", tag, "' is not available in chat templates"));
      }
    }
    Fail(absl::StrCat("unknown tag '", tag, "'"));
  }

  // Filters without an input: `upper | trim`.
  ExprPtr ParseFilterChain() {
    ExprPtr filter = ParseFilter(nullptr);
    while (SkipOperator("|")) filter = ParseFilter(std::move(filter));
    return filter;
  }

  void ParseIf(Stmt* stmt) {
    stmt->kind = StmtKind::kIf;
    while (status().ok()) {
      ExprPtr condition = ParseTuple(false, false, "");
      stmt->branches.emplace_back(std::move(condition),
                                  ParseBlock({"elif", "else", "endif"}));
      if (SkipName("elif")) continue;
      if (SkipName("else")) {
        stmt->else_body = ParseBlock({"endif"});
      }
      ExpectName("endif");
      return;
    }
  }

  // Names, tuples of names and, if allowed, attributes of namespaces.
  ExprPtr ParseTarget(bool with_namespace, absl::string_view end_name) {
    ExprPtr target = ParseTupleOf([&] { return ParsePrimary(with_namespace); },
                                  false, end_name);
    CheckTarget(target.get());
    return target;
  }

  void CheckTarget(const Expr* target) {
    if (target->kind == ExprKind::kTuple) {
      for (const ExprPtr& child : target->children) CheckTarget(child.get());
    } else if (target->kind != ExprKind::kName &&
               target->kind != ExprKind::kNsRef) {
      Fail("cannot assign to this expression");
    } else if (target->name_id == kLoopName && loop_depth_ > 0 &&
               target->kind == ExprKind::kName) {
      Fail("cannot assign to the special variable 'loop' in a for loop");
    }
  }

  void ParseFor(Stmt* stmt) {
    stmt->kind = StmtKind::kFor;
    ++loop_depth_;
    stmt->target = ParseTarget(false, "in");
    --loop_depth_;
    ExpectName("in");
    stmt->expr = ParseTuple(false, false, "recursive");
    if (SkipName("if")) stmt->condition = ParseExpression();
    stmt->is_recursive = SkipName("recursive");
    ++loop_depth_;
    stmt->body = ParseBlock({"else", "endfor"});
    --loop_depth_;
    if (SkipName("else")) stmt->else_body = ParseBlock({"endfor"});
    ExpectName("endfor");
  }

  void ParseSet(Stmt* stmt) {
    stmt->target = ParseTarget(true, "");
    if (SkipOperator("=")) {
      stmt->kind = StmtKind::kSet;
      stmt->expr = ParseTuple(true, false, "");
      return;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (SkipOperator("|")) stmt->expr = ParseFilterChain();
    stmt->body = ParseBlock({"endset"});
    Next();
  }

  void ParseWith(Stmt* stmt) {
    stmt->kind = StmtKind::kWith;
    while (Current().type != TokenType::kBlockEnd && !AtEnd()) {
      if (!stmt->assignments.empty()) ExpectOperator(",");
      ExprPtr target = ParsePrimary(false);
      CheckTarget(target.get());
      ExpectOperator("=");
      stmt->assignments.emplace_back(std::move(target), ParseExpression());
    }
    stmt->body = ParseBlock({"endwith"});
    Next();
  }

  void ParseParameters(MacroNode* macro) {
    ExpectOperator("(");
    while (!IsOperator(")") && !AtEnd()) {
      if (!macro->parameters.empty()) ExpectOperator(",");
      MacroNode::Parameter parameter;
      parameter.name = ExpectAnyName();
      parameter.name_id = Intern(parameter.name);
      if (SkipOperator("=")) {
        parameter.default_value = ParseExpression();
      } else if (parameter.name_id == kCallerName) {
        Fail("the special parameter 'caller' needs a default");
      } else if (!macro->parameters.empty() &&
                 macro->parameters.back().default_value != nullptr) {
        Fail("non-default argument follows default argument");
      }
      macro->parameters.push_back(std::move(parameter));
    }
    ExpectOperator(")");
  }

  void ParseMacroBody(Stmt* stmt, absl::string_view end_name) {
    stmt->macro.line = stmt->line;
    open_macros_.push_back(&stmt->macro);
    const int outer_loops = std::exchange(loop_depth_, 0);
    stmt->macro.body = ParseBlock({end_name});
    loop_depth_ = outer_loops;
    open_macros_.pop_back();
    Next();
  }

  void ParseMacro(Stmt* stmt) {
    stmt->kind = StmtKind::kMacro;
    stmt->macro.name = ExpectAnyName();
    stmt->name_id = Intern(stmt->macro.name);
    ParseParameters(&stmt->macro);
    ParseMacroBody(stmt, "endmacro");
  }

  void ParseCallBlock(Stmt* stmt) {
    stmt->kind = StmtKind::kCall;
    stmt->macro.name = "caller";
    if (IsOperator("(")) ParseParameters(&stmt->macro);
    stmt->expr = ParseExpression();
    if (stmt->expr->kind != ExprKind::kCall) Fail("expected a call");
    ParseMacroBody(stmt, "endcall");
  }

  const TemplateLimits limits_;
  int depth_ = 0;
  int loop_depth_ = 0;
  std::vector<MacroNode*> open_macros_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, int> name_ids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Program>> ParseTemplate(
    absl::string_view source, const TemplateLimits& limits) {
  if (static_cast<int64_t>(source.size()) > limits.max_source_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template has ", source.size(),
                     " bytes; the limit is ", limits.max_source_bytes));
  }
  QUIRE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens), limits).Run();
}

}  // namespace quire::jinja
