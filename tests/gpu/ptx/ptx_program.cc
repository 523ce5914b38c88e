#include "tests/gpu/ptx/ptx_program.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/base/status.h"

namespace quire::ptx {
namespace {

constexpr int64_t kMaxShared = 1 << 20;

int64_t BytesOfType(absl::string_view type) {
  if (absl::EndsWith(type, "128")) return 16;
  if (absl::EndsWith(type, "64")) return 8;
  if (absl::EndsWith(type, "32")) return 4;
  if (absl::EndsWith(type, "16")) return 2;
  return 1;
}

const std::map<std::string, int, std::less<>>& SpecialRegisters() {
  static const auto* const registers =
      new std::map<std::string, int, std::less<>>{
          {"%tid.x", kTidX},       {"%tid.y", kTidY},
          {"%tid.z", kTidZ},       {"%ntid.x", kNtidX},
          {"%ntid.y", kNtidY},     {"%ntid.z", kNtidZ},
          {"%ctaid.x", kCtaidX},   {"%ctaid.y", kCtaidY},
          {"%ctaid.z", kCtaidZ},   {"%nctaid.x", kNctaidX},
          {"%nctaid.y", kNctaidY}, {"%nctaid.z", kNctaidZ},
          {"%laneid", kLaneid},    {"%envreg1", kEnvreg1},
          {"%envreg2", kEnvreg2},  {"_", kSink}};
  return *registers;
}

}  // namespace

class Parser {
 public:
  Parser(absl::string_view text, Program& program)
      : text_(text), program_(program) {}

  absl::Status Run() {
    while (true) {
      Skip();
      if (at_ >= text_.size()) break;
      QUIRE_RETURN_IF_ERROR(ModuleStatement());
    }
    for (const auto& [function, at, name] : calls_) {
      Instruction& call = function->code[at];
      const auto found = program_.by_name_.find(name);
      if (found == program_.by_name_.end()) {
        return Error(absl::StrCat("no function ", name));
      }
      const Function& callee = *program_.functions_[found->second];
      if (callee.is_kernel || callee.local_in.size() != call.call_in.size() ||
          callee.local_out.size() != call.call_out.size()) {
        return Error(absl::StrCat("a call of ", name, " in another form"));
      }
      call.target = found->second;
    }
    return absl::OkStatus();
  }

 private:
  // What a name means in the scope of a function.
  struct Name {
    int slot = -1;
    int64_t local = -1;  // Of a variable in local memory, its offset.
  };
  using Scope = std::map<std::string, Name, std::less<>>;

  absl::Status Error(absl::string_view what) {
    const size_t begin = text_.rfind('\n', at_ == 0 ? 0 : at_ - 1);
    const size_t end = text_.find('\n', at_);
    return absl::InvalidArgumentError(
        absl::StrCat("PTX: ", what, " at \"",
                     text_.substr(begin == text_.npos ? 0 : begin + 1,
                                  (end == text_.npos ? text_.size() : end) -
                                      (begin == text_.npos ? 0 : begin + 1)),
                     "\""));
  }

  void Skip() {
    while (at_ < text_.size()) {
      if (isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else if (text_.substr(at_, 2) == "//") {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (text_.substr(at_, 2) == "/*") {
        at_ = std::min(text_.find("*/", at_), text_.size() - 2) + 2;
      } else {
        return;
      }
    }
  }
  bool Take(char c) {
    Skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  char Peek() {
    Skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  // A name, directive, number or string: whatever has no separator in it.
  std::string Word() {
    Skip();
    const size_t begin = at_;
    if (at_ < text_.size() && text_[at_] == '"') {
      at_ = std::min(text_.find('"', at_ + 1), text_.size() - 1) + 1;
      return std::string(text_.substr(begin, at_ - begin));
    }
    if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '!')) ++at_;
    while (at_ < text_.size() &&
           (isalnum(static_cast<unsigned char>(text_[at_])) ||
            absl::string_view("._$%:").find(text_[at_]) !=
                absl::string_view::npos)) {
      // A label ends with its colon; "L1::no_allocate" goes on.
      if (text_[at_] == ':') {
        if (text_.substr(at_, 2) != "::") break;
        ++at_;
      }
      ++at_;
    }
    return std::string(text_.substr(begin, at_ - begin));
  }

  absl::Status ModuleStatement() {
    const std::string word = Word();
    if (word == ".version" || word == ".target" || word == ".address_size") {
      do {
        Word();
      } while (Take(','));
      return absl::OkStatus();
    }
    if (word == ".visible" || word == ".weak" || word == ".extern" ||
        word == ".common") {
      return absl::OkStatus();  // Of what follows.
    }
    if (word == ".entry" || word == ".func") {
      return ParseFunction(word == ".entry");
    }
    if (word == ".shared") return Variable(module_, /*is_shared=*/true);
    if (word.empty()) return Error("unknown statement");
    return Error(absl::StrCat("unknown directive ", word));
  }

  // Behind ".shared" or ".local": ".align 16 .b8 name[64];".
  absl::Status Variable(Scope& scope, bool is_shared) {
    int64_t alignment = 0;
    std::string type = Word();
    if (type == ".align") {
      if (!absl::SimpleAtoi(Word(), &alignment)) return Error("no alignment");
      type = Word();
    }
    const std::string name = Word();
    int64_t count = 1;
    bool is_dynamic = false;
    if (Take('[')) {
      const std::string number = Word();
      is_dynamic = number.empty();
      if (!is_dynamic && !absl::SimpleAtoi(number, &count)) {
        return Error("no size");
      }
      if (!Take(']')) return Error("no ]");
    }
    if (!Take(';')) return Error("no ;");
    const int64_t bytes = BytesOfType(type) * count;
    alignment = std::max(alignment, BytesOfType(type));
    if (is_dynamic) {
      if (!is_shared) return Error("a size is missing");
      dynamic_.push_back(name);
      dynamic_alignment_ = std::max(dynamic_alignment_, alignment);
      return absl::OkStatus();
    }
    if (function_ == nullptr) return Error("shared by functions");
    int64_t& used =
        is_shared ? function_->shared_bytes : function_->local_bytes;
    used = (used + alignment - 1) / alignment * alignment;
    if (used + bytes > kMaxShared) return Error("too large");
    const int slot = function_->num_slots++;
    if (is_shared) {
      function_->constants.emplace_back(slot, used);
    } else {
      function_->of_local.emplace_back(slot, used);
    }
    scope[name] = {slot, is_shared ? -1 : used};
    used += bytes;
    return absl::OkStatus();
  }

  // "(.param .b64 name, .param .align 8 .b8 name[24])", of a kernel in the
  // block of parameters, else in local memory.
  absl::Status Parameters(bool is_kernel,
                          std::vector<std::pair<int64_t, int64_t>>& places) {
    if (!Take('(')) return Error("no (");
    while (!Take(')')) {
      if (Word() != ".param") return Error("no .param");
      int64_t alignment = 0;
      std::string type = Word();
      if (type == ".align") {
        if (!absl::SimpleAtoi(Word(), &alignment)) return Error("no alignment");
        type = Word();
      }
      std::string name = Word();
      if (name == ".ptr") {
        // What it points to, as newer compilers say.
        for (name = Word(); name.starts_with('.'); name = Word()) {
          if (name == ".align") Word();
        }
      }
      int64_t bytes = BytesOfType(type);
      alignment = std::max(alignment, bytes);
      if (Take('[')) {
        int64_t count = 0;
        if (!absl::SimpleAtoi(Word(), &count) || !Take(']')) {
          return Error("no size");
        }
        bytes *= count;
      }
      Take(',');
      int64_t& used =
          is_kernel ? function_->parameter_bytes : function_->local_bytes;
      used = (used + alignment - 1) / alignment * alignment;
      const int slot = function_->num_slots++;
      (is_kernel ? function_->of_parameters : function_->of_local)
          .emplace_back(slot, used);
      if (is_kernel) function_->parameters.push_back({used, bytes});
      places.emplace_back(used, bytes);
      scopes_.back()[name] = {slot, is_kernel ? -1 : used};
      used += bytes;
    }
    return absl::OkStatus();
  }

  absl::Status ParseFunction(bool is_kernel) {
    auto owned = std::make_unique<Function>();
    function_ = owned.get();
    function_->is_kernel = is_kernel;
    scopes_.assign(1, {});
    constants_.clear();
    labels_.clear();
    jumps_.clear();
    std::vector<std::pair<int64_t, int64_t>> places;
    if (Peek() == '(') {
      QUIRE_RETURN_IF_ERROR(Parameters(false, function_->local_out));
    }
    function_->name = Word();
    if (Peek() == '(') {
      QUIRE_RETURN_IF_ERROR(
          Parameters(is_kernel, is_kernel ? places : function_->local_in));
    }
    function_->dynamic_alignment =
        std::max(function_->dynamic_alignment, dynamic_alignment_);
    for (const std::string& name : dynamic_) {
      const int slot = function_->num_slots++;
      function_->of_dynamic_shared.push_back(slot);
      scopes_.back()[name] = {slot, -1};
    }
    while (Peek() != '{') {
      if (Take(';')) {  // A declaration; the definition follows.
        function_ = nullptr;
        return absl::OkStatus();
      }
      const std::string directive = Word();
      if (directive == ".maxntid") {
        int count = 0;
        function_->max_threads = 1;
        do {
          if (!absl::SimpleAtoi(Word(), &count)) return Error("no count");
          function_->max_threads *= count;
        } while (Take(','));
      } else if (directive == ".minnctapersm" || directive == ".maxnreg") {
        Word();
      } else if (directive != ".noreturn") {
        return Error(absl::StrCat("unknown directive ", directive));
      }
    }
    Take('{');
    while (!scopes_.empty()) QUIRE_RETURN_IF_ERROR(Statement());
    for (const auto& [instruction, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) return Error("unknown label " + label);
      function_->code[instruction].target = found->second;
    }
    program_.by_name_[function_->name] =
        static_cast<int>(program_.functions_.size());
    program_.functions_.push_back(std::move(owned));
    function_ = nullptr;
    return absl::OkStatus();
  }

  absl::Status Statement() {
    if (Take('{')) {
      scopes_.emplace_back();
      return absl::OkStatus();
    }
    if (Take('}')) {
      // Who falls off the end has returned.
      if (scopes_.size() == 1) {
        Instruction end;
        end.text = "ret";
        if (!FindHandler({"ret"}, end)) return Error("no ret");
        function_->code.push_back(end);
      }
      scopes_.pop_back();
      return absl::OkStatus();
    }
    if (Take(';')) return absl::OkStatus();
    const size_t begin = (Skip(), at_);
    Instruction instruction;
    std::string word;
    if (Take('@')) {
      std::string guard = Word();
      instruction.is_guard_negated = guard.starts_with('!');
      if (instruction.is_guard_negated) guard.erase(0, 1);
      QUIRE_ASSIGN_OR_RETURN(instruction.guard, SlotOf(guard));
    }
    word = Word();
    if (word.empty()) return Error("no statement");
    if (Peek() == ':') {
      Take(':');
      labels_[word] = static_cast<int>(function_->code.size());
      return absl::OkStatus();
    }
    if (word == ".reg") return Registers();
    if (word == ".shared" || word == ".local") {
      return Variable(scopes_.back(), word == ".shared");
    }
    if (word == ".param") return Variable(scopes_.back(), false);
    if (word == ".pragma") {
      Word();
      return Take(';') ? absl::OkStatus() : Error("no ;");
    }
    if (word.starts_with('.')) return Error("unknown directive " + word);
    const std::vector<std::string> name = absl::StrSplit(word, '.');
    QUIRE_RETURN_IF_ERROR(Operands(name, instruction));
    if (!Take(';')) return Error("no ;");
    instruction.text = std::string(text_.substr(begin, at_ - begin));
    std::replace(instruction.text.begin(), instruction.text.end(), '\n', ' ');
    if (!FindHandler(name, instruction)) {
      return Error(absl::StrCat("unknown instruction ", word));
    }
    function_->has_wgmma |= name[0] == "wgmma";
    function_->code.push_back(std::move(instruction));
    return absl::OkStatus();
  }

  // ".pred %p<12>;" or ".b16 low, high;".
  absl::Status Registers() {
    Word();
    do {
      const std::string name = Word();
      if (Take('<')) {
        int count = 0;
        if (!absl::SimpleAtoi(Word(), &count) || !Take('>')) {
          return Error("no count");
        }
        for (int i = 0; i < count; ++i) {
          scopes_.back()[absl::StrCat(name, i)] = {function_->num_slots++, -1};
        }
      } else {
        scopes_.back()[name] = {function_->num_slots++, -1};
      }
    } while (Take(','));
    return Take(';') ? absl::OkStatus() : Error("no ;");
  }

  const Name* Find(absl::string_view name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) {
        return &found->second;
      }
    }
    return nullptr;
  }

  int ConstantSlot(uint64_t bits) {
    const auto [place, is_new] =
        constants_.try_emplace(bits, function_->num_slots);
    if (is_new) {
      function_->constants.emplace_back(function_->num_slots++, bits);
    }
    return place->second;
  }

  // A register, a variable's address or a constant.
  absl::StatusOr<int> SlotOf(const std::string& word) {
    if (const Name* name = Find(word); name != nullptr) return name->slot;
    const auto special = SpecialRegisters().find(word);
    if (special != SpecialRegisters().end()) return special->second;
    if (const auto bits = Constant(word); bits.has_value()) {
      return ConstantSlot(*bits);
    }
    return Error(absl::StrCat("unknown name \"", word, "\""));
  }

  static std::optional<uint64_t> Constant(const std::string& word) {
    if (word.empty()) return std::nullopt;
    if (word.size() == 10 && absl::StartsWithIgnoreCase(word, "0f")) {
      return strtoull(word.c_str() + 2, nullptr, 16);
    }
    if (word.size() == 18 && absl::StartsWithIgnoreCase(word, "0d")) {
      return strtoull(word.c_str() + 2, nullptr, 16);
    }
    std::string digits = word;
    if (digits.back() == 'U') digits.pop_back();
    char* end = nullptr;
    const uint64_t value =
        digits[0] == '-'
            ? static_cast<uint64_t>(strtoll(digits.c_str(), &end, 0))
            : strtoull(digits.c_str(), &end, 0);
    if (end == digits.c_str() || *end != '\0') return std::nullopt;
    return value;
  }

  // "[%rd1+8]", "[name]", "[%r3]".
  absl::Status Address(Instruction& instruction, int& slot) {
    QUIRE_ASSIGN_OR_RETURN(slot, SlotOf(Word()));
    while (Take('+')) {
      int64_t offset = 0;
      if (!absl::SimpleAtoi(Word(), &offset)) return Error("no offset");
      instruction.offset += offset;
    }
    return Take(']') ? absl::OkStatus() : Error("no ]");
  }

  // Operands in their order: results first, and vectors as their elements. How
  // many results there are follows from the name.
  absl::Status Operands(const std::vector<std::string>& name,
                        Instruction& instruction) {
    if (name[0] == "call") return Call(instruction);
    if (name[0] == "bra") {
      jumps_.emplace_back(function_->code.size(), Word());
      return absl::OkStatus();
    }
    const bool is_product =
        name[0] == "wgmma" && name.size() > 1 && name[1] == "mma_async";
    const bool has_no_result =
        (name[0] == "wgmma" && !is_product) || name[0] == "st" ||
        name[0] == "red" || name[0] == "bar" || name[0] == "barrier" ||
        name[0] == "membar" || name[0] == "fence" || name[0] == "ret" ||
        name[0] == "exit" || name[0] == "trap" || name[0] == "griddepcontrol" ||
        name[0] == "cp";
    int num_to = 0, num_from = 0;
    const auto add = [&](bool is_result, int slot) -> absl::Status {
      if (is_result && is_product) {
        instruction.accumulators.push_back(slot);
      } else if (is_result) {
        if (num_to == static_cast<int>(instruction.to.size())) {
          return Error("too many results");
        }
        instruction.to[num_to++] = slot;
      } else {
        if (num_from == static_cast<int>(instruction.from.size())) {
          return Error("too many operands");
        }
        instruction.from[num_from++] = slot;
      }
      return absl::OkStatus();
    };
    for (int operand = 0; Peek() != ';'; ++operand) {
      if (operand > 0 && !Take(',')) return Error("no comma");
      const bool is_result = operand == 0 && !has_no_result;
      if (Take('{')) {
        int count = 0;
        do {
          QUIRE_ASSIGN_OR_RETURN(const int slot, SlotOf(Word()));
          QUIRE_RETURN_IF_ERROR(add(is_result, slot));
          ++count;
        } while (Take(','));
        if (!Take('}')) return Error("no }");
        if (name[0] == "ld" || name[0] == "st" || name[0] == "mov") {
          instruction.num_elements = is_result || count > 1 ? count : 1;
        }
        continue;
      }
      if (Take('[')) {
        int slot = 0;
        QUIRE_RETURN_IF_ERROR(Address(instruction, slot));
        QUIRE_RETURN_IF_ERROR(add(false, slot));
        continue;
      }
      std::string word = Word();
      // "!%p3": of setp, selp and the like, whose predicate may be negated.
      if (word.starts_with('!')) {
        if (instruction.is_predicate_negated) return Error("two negations");
        instruction.is_predicate_negated = true;
        word.erase(0, 1);
      }
      QUIRE_ASSIGN_OR_RETURN(const int slot, SlotOf(word));
      QUIRE_RETURN_IF_ERROR(add(is_result, slot));
      if (is_result && Take('|')) {  // "%r1|%p2".
        QUIRE_ASSIGN_OR_RETURN(const int second, SlotOf(Word()));
        QUIRE_RETURN_IF_ERROR(add(true, second));
      } else if (is_result) {
        instruction.to[1] = kSink;
      }
    }
    instruction.num_from = num_from;
    return absl::OkStatus();
  }

  // "(retval0), name, (param0, param1)".
  absl::Status Call(Instruction& instruction) {
    const auto list = [&](std::vector<int64_t>& places) -> absl::Status {
      while (!Take(')')) {
        const std::string word = Word();
        const Name* name = Find(word);
        if (name == nullptr || name->local < 0) {
          return Error(absl::StrCat("\"", word, "\" is no parameter"));
        }
        places.push_back(name->local);
        Take(',');
      }
      return absl::OkStatus();
    };
    if (Take('(')) {
      QUIRE_RETURN_IF_ERROR(list(instruction.call_out));
      Take(',');
    }
    const std::string name = Word();
    if (Take(',') && Take('(')) {
      QUIRE_RETURN_IF_ERROR(list(instruction.call_in));
    }
    // nvcc defines a function behind the kernels that call it.
    calls_.push_back({function_, function_->code.size(), name});
    return absl::OkStatus();
  }

  const absl::string_view text_;
  Program& program_;
  size_t at_ = 0;
  Scope module_;
  std::vector<std::string> dynamic_;
  int64_t dynamic_alignment_ = 1;
  Function* function_ = nullptr;
  std::vector<Scope> scopes_;
  std::map<uint64_t, int> constants_;
  std::map<std::string, int, std::less<>> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  struct CallSite {
    Function* function;
    size_t at;
    std::string name;
  };
  std::vector<CallSite> calls_;
};

absl::StatusOr<std::unique_ptr<Program>> Program::Parse(
    absl::string_view text) {
  auto program = std::make_unique<Program>();
  QUIRE_RETURN_IF_ERROR(Parser(text, *program).Run());
  return program;
}

const Function* Program::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : functions_[found->second].get();
}

}  // namespace quire::ptx
