// The syntax tree of a template. Immutable after parsing.
#ifndef QUIRE_TOKENIZER_JINJA_AST_H_
#define QUIRE_TOKENIZER_JINJA_AST_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace quire::jinja {

enum class ExprKind {
  kConst,   // value
  kName,    // name_id
  kNsRef,   // name_id . name; only as the target of an assignment
  kTuple,   // children
  kList,    // children
  kDict,    // children: key, value, key, value, ...
  kAttr,    // children[0] . name
  kItem,    // children[0] [ children[1] ]
  kSlice,   // children[0..2]: start, stop, step; null where absent
  kCall,    // children[0] ( arguments )
  kFilter,  // children[0] | name ( arguments ); children[0] is null in blocks
  kTest,    // children[0] is name ( arguments )
  kNot,
  kNegate,
  kPlus,
  kAnd,
  kOr,
  kBinary,   // name is the operator
  kConcat,   // children
  kCompare,  // children[0] operators[0] children[1] operators[1] ...
  kIf,       // children: condition, then, otherwise (null: undefined)
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int height = 1;  // Of the tree below; the parser bounds it.
  int name_id = -1;
  std::string name;
  Value value;
  std::vector<ExprPtr> children;
  std::vector<std::string> operators;
  // Of a call, filter or test.
  std::vector<ExprPtr> arguments;
  std::vector<std::pair<std::string, ExprPtr>> named_arguments;
  ExprPtr star_arguments;
  ExprPtr star_named_arguments;
};

enum class StmtKind {
  kText,        // value
  kPrint,       // expr
  kIf,          // branches; else_body
  kFor,         // target in expr if condition: body; else_body
  kSet,         // target = expr
  kSetBlock,    // target = the output of body, through the filters of expr
  kWith,        // assignments: body
  kFilter,      // body through the filters of expr
  kMacro,       // macro
  kCall,        // expr with macro as its caller
  kGeneration,  // body, in a scope of its own
  kDo,          // expr
  kBreak,
  kContinue,
};

struct Stmt;
using StmtList = std::vector<std::unique_ptr<Stmt>>;

struct MacroNode {
  std::string name;
  struct Parameter {
    int name_id;
    std::string name;
    ExprPtr default_value;  // Null: none.
  };
  std::vector<Parameter> parameters;
  StmtList body;
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
  int line = 0;
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  Value value;
  ExprPtr target;
  ExprPtr expr;
  ExprPtr condition;
  bool is_recursive = false;
  std::vector<std::pair<ExprPtr, StmtList>> branches;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;
  StmtList body;
  StmtList else_body;
  MacroNode macro;
  int name_id = -1;  // Of a macro.
};

// Names that the runtime itself defines have fixed ids.
enum ReservedName : int {
  kLoopName = 0,
  kCallerName,
  kVarargsName,
  kKwargsName,
  kNumReservedNames,
};

struct Program {
  StmtList body;
  std::vector<std::string> names;  // By name_id.
};

}  // namespace quire::jinja

#endif  // QUIRE_TOKENIZER_JINJA_AST_H_
