#include "engine/weights/pickle_reader.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace quire {
namespace {

// A 405B model's pickle has some 200 KiB, one of 10,000 experts some 5 MiB. The
// limits keep what a hostile pickle takes to a few hundred MiB.
constexpr size_t kMaxPickleBytes = 16 << 20;
constexpr size_t kMaxValues = 2'000'000;
// Copied by OrderedDict, of what may be copied again and again.
constexpr size_t kMaxCopied = 4'000'000;
constexpr size_t kMaxStorageKey = 128;
constexpr size_t kMaxDimensions = 8;

enum class Kind : uint8_t {
  kNone,
  kBool,
  kInt,
  kFloat,
  kText,
  kTuple,
  kList,
  kDict,
  kGlobal,
  kStorage,
  kTensor,
  kMark,
};

const char* KindName(Kind kind) {
  switch (kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "a boolean";
    case Kind::kInt:
      return "an integer";
    case Kind::kFloat:
      return "a float";
    case Kind::kText:
      return "a string";
    case Kind::kTuple:
      return "a tuple";
    case Kind::kList:
      return "a list";
    case Kind::kDict:
      return "a dictionary";
    case Kind::kGlobal:
      return "a name";
    case Kind::kStorage:
      return "a storage";
    case Kind::kTensor:
      return "a tensor";
    case Kind::kMark:
      return "a mark";
  }
  return "?";
}

// Values refer to each other by pointer and all belong to the reader: a pickle
// can make cycles.
struct Value {
  Kind kind = Kind::kNone;
  int64_t number = 0;            // kBool, kInt; the elements of kStorage.
  std::string text;              // kText, kGlobal; the key of kStorage.
  std::vector<Value*> elements;  // kTuple, kList; keys and values of kDict.
  // kStorage, kTensor; none for bytes that a tensor's dtype explains.
  std::optional<StoredDType> dtype;
  Value* storage = nullptr;  // kTensor.
  int64_t offset = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};

struct NamedDType {
  const char* name;
  StoredDType dtype;
};

constexpr NamedDType kStorages[] = {
    {"torch.FloatStorage", StoredDType::kF32},
    {"torch.HalfStorage", StoredDType::kF16},
    {"torch.BFloat16Storage", StoredDType::kBF16},
    {"torch.DoubleStorage", StoredDType::kF64},
    {"torch.LongStorage", StoredDType::kI64},
    {"torch.IntStorage", StoredDType::kI32},
    {"torch.ShortStorage", StoredDType::kI16},
    {"torch.CharStorage", StoredDType::kI8},
    {"torch.ByteStorage", StoredDType::kU8},
    {"torch.BoolStorage", StoredDType::kBool},
};

constexpr char kUntypedStorage[] = "torch.storage.UntypedStorage";

constexpr NamedDType kDTypes[] = {
    {"torch.float32", StoredDType::kF32},
    {"torch.float16", StoredDType::kF16},
    {"torch.bfloat16", StoredDType::kBF16},
    {"torch.float64", StoredDType::kF64},
    {"torch.int64", StoredDType::kI64},
    {"torch.int32", StoredDType::kI32},
    {"torch.int16", StoredDType::kI16},
    {"torch.int8", StoredDType::kI8},
    {"torch.uint8", StoredDType::kU8},
    {"torch.bool", StoredDType::kBool},
    {"torch.uint16", StoredDType::kU16},
    {"torch.uint32", StoredDType::kU32},
    {"torch.uint64", StoredDType::kU64},
    {"torch.float8_e4m3fn", StoredDType::kF8E4M3},
    {"torch.float8_e5m2", StoredDType::kF8E5M2},
    {"torch.float8_e8m0fnu", StoredDType::kF8E8M0},
};

constexpr char kOrderedDict[] = "collections.OrderedDict";
constexpr char kRebuildTensor[] = "torch._utils._rebuild_tensor";
constexpr char kRebuildTensorV2[] = "torch._utils._rebuild_tensor_v2";
constexpr char kRebuildTensorV3[] = "torch._utils._rebuild_tensor_v3";
constexpr char kRebuildParameter[] = "torch._utils._rebuild_parameter";
constexpr char kRebuildParameterWithState[] =
    "torch._utils._rebuild_parameter_with_state";
constexpr char kRebuildFromType[] = "torch._tensor._rebuild_from_type_v2";
constexpr char kSize[] = "torch.Size";
constexpr const char* kOtherNames[] = {
    kOrderedDict,
    kRebuildTensor,
    kRebuildTensorV2,
    kRebuildTensorV3,
    kRebuildParameter,
    kRebuildParameterWithState,
    kRebuildFromType,
    kSize,
    kUntypedStorage,
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
};

template <size_t n>
std::optional<StoredDType> DTypeIn(const NamedDType (&names)[n],
                                   const std::string& name) {
  for (const NamedDType& known : names) {
    if (name == known.name) return known.dtype;
  }
  return std::nullopt;
}

bool IsKnownName(const std::string& name) {
  if (DTypeIn(kStorages, name) || DTypeIn(kDTypes, name)) return true;
  for (const char* known : kOtherNames) {
    if (name == known) return true;
  }
  return false;
}

class PickleReader {
 public:
  PickleReader(absl::Span<const uint8_t> pickle, const std::string& path)
      : rest_(pickle), size_(pickle.size()), path_(path) {}

  // The value that the pickle stands for.
  absl::StatusOr<Value*> Read() {
    if (size_ > kMaxPickleBytes) {
      return Error(absl::StrCat(size_, " bytes, more than the limit of ",
                                kMaxPickleBytes));
    }
    while (!is_done_) {
      QUIRE_RETURN_IF_ERROR(Step());
      if (values_.size() > kMaxValues) return Error("too many values");
    }
    return Pop();
  }

  absl::Status Error(absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": pickle, byte ", size_ - rest_.size(), ": ", message));
  }

 private:
  Value* New(Kind kind) {
    values_.emplace_back();
    values_.back().kind = kind;
    return &values_.back();
  }
  void Push(Value* value) { stack_.push_back(value); }
  void PushInt(int64_t number) {
    Value* value = New(Kind::kInt);
    value->number = number;
    Push(value);
  }

  absl::StatusOr<Value*> Pop() {
    if (stack_.empty()) return Error("the stack is empty");
    Value* value = stack_.back();
    stack_.pop_back();
    return value;
  }
  absl::StatusOr<Value*> Top() {
    if (stack_.empty()) return Error("the stack is empty");
    return stack_.back();
  }
  absl::StatusOr<Value*> PopKind(Kind kind) {
    QUIRE_ASSIGN_OR_RETURN(Value * value, Pop());
    if (value->kind == kind) return value;
    return Error(absl::StrCat("expected ", KindName(kind), ", found ",
                              KindName(value->kind)));
  }
  // What lies above the topmost mark, and takes both away.
  absl::StatusOr<std::vector<Value*>> PopToMark() {
    size_t at = stack_.size();
    while (at > 0 && stack_[at - 1]->kind != Kind::kMark) --at;
    if (at == 0) return Error("there is no mark on the stack");
    std::vector<Value*> values(stack_.begin() + at, stack_.end());
    stack_.resize(at - 1);
    return values;
  }

  absl::StatusOr<absl::Span<const uint8_t>> Take(uint64_t count) {
    if (count > rest_.size()) return Error("it ends in the middle");
    const absl::Span<const uint8_t> bytes = rest_.subspan(0, count);
    rest_.remove_prefix(count);
    return bytes;
  }
  template <typename T>
  absl::StatusOr<T> TakeLittle() {
    QUIRE_ASSIGN_OR_RETURN(const auto bytes, Take(sizeof(T)));
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  // Bytes behind their number, as T.
  template <typename T>
  absl::StatusOr<std::string> TakeText() {
    QUIRE_ASSIGN_OR_RETURN(const T count, TakeLittle<T>());
    QUIRE_ASSIGN_OR_RETURN(const auto bytes, Take(count));
    return std::string(bytes.begin(), bytes.end());
  }
  absl::StatusOr<std::string> TakeLine() {
    const auto end = std::find(rest_.begin(), rest_.end(), '\n');
    if (end == rest_.end()) return Error("it ends in the middle");
    std::string line(rest_.begin(), end);
    rest_.remove_prefix(line.size() + 1);
    return line;
  }

  absl::Status PushText(absl::StatusOr<std::string> text) {
    QUIRE_RETURN_IF_ERROR(text.status());
    Value* value = New(Kind::kText);
    value->text = std::move(*text);
    Push(value);
    return absl::OkStatus();
  }
  absl::Status PushGlobal(const std::string& module, const std::string& name) {
    std::string full = absl::StrCat(module, ".", name);
    if (!IsKnownName(full)) {
      return Error(absl::StrCat(
          Quoted(full),
          " is not known: only tensors and containers are read, and nothing "
          "is executed (save the weights as safetensors)"));
    }
    Value* value = New(Kind::kGlobal);
    value->text = std::move(full);
    Push(value);
    return absl::OkStatus();
  }
  absl::Status PushTuple(int count) {
    if (stack_.size() < static_cast<size_t>(count)) {
      return Error("the stack is empty");
    }
    Value* value = New(Kind::kTuple);
    value->elements.assign(stack_.end() - count, stack_.end());
    stack_.resize(stack_.size() - count);
    for (const Value* element : value->elements) {
      if (element->kind == Kind::kMark) return Error("a mark in a tuple");
    }
    Push(value);
    return absl::OkStatus();
  }
  absl::Status PushMemo(uint64_t idx) {
    const auto it = memo_.find(idx);
    if (it == memo_.end()) {
      return Error(absl::StrCat("nothing is remembered as ", idx));
    }
    Push(it->second);
    return absl::OkStatus();
  }
  absl::Status Memoize(uint64_t idx) {
    QUIRE_ASSIGN_OR_RETURN(Value * value, Top());
    if (value->kind == Kind::kMark) return Error("a mark is remembered");
    memo_[idx] = value;
    return absl::OkStatus();
  }
  absl::Status Append(std::vector<Value*> values) {
    QUIRE_ASSIGN_OR_RETURN(Value * list, Top());
    if (list->kind != Kind::kList) return Error("append to what is no list");
    list->elements.insert(list->elements.end(), values.begin(), values.end());
    return absl::OkStatus();
  }
  absl::Status SetItems(std::vector<Value*> values) {
    QUIRE_ASSIGN_OR_RETURN(Value * dict, Top());
    if (dict->kind != Kind::kDict || values.size() % 2 != 0) {
      return Error("items for what is no dictionary");
    }
    dict->elements.insert(dict->elements.end(), values.begin(), values.end());
    return absl::OkStatus();
  }

  // Of LONG1: little endian, two's complement.
  absl::Status PushLong(absl::Span<const uint8_t> bytes) {
    if (bytes.size() > 8) return Error("an integer of more than 64 bits");
    uint64_t bits = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      bits |= uint64_t{bytes[i]} << (8 * i);
    }
    if (!bytes.empty() && bytes.size() < 8 && (bytes.back() & 0x80)) {
      bits |= ~uint64_t{0} << (8 * bytes.size());
    }
    PushInt(static_cast<int64_t>(bits));
    return absl::OkStatus();
  }

  absl::Status Step();
  absl::Status StepContainer(uint8_t opcode);
  absl::Status PushStorage();
  absl::Status Reduce();
  absl::StatusOr<Value*> Call(const std::string& name, Value* args);
  absl::StatusOr<Value*> RebuildTensor(const std::string& name,
                                       const std::vector<Value*>& args);
  absl::StatusOr<std::vector<int64_t>> Ints(const Value& value);

  absl::Span<const uint8_t> rest_;
  const size_t size_;
  const std::string& path_;
  std::deque<Value> values_;  // Addresses stay.
  std::vector<Value*> stack_;
  std::unordered_map<uint64_t, Value*> memo_;
  size_t num_copied_ = 0;
  bool is_done_ = false;
};

absl::Status PickleReader::Step() {
  QUIRE_ASSIGN_OR_RETURN(const uint8_t opcode, TakeLittle<uint8_t>());
  switch (opcode) {
    case 0x80:  // PROTO
      return Take(1).status();
    case 0x95:  // FRAME
      return Take(8).status();
    case '.':  // STOP
      is_done_ = true;
      return absl::OkStatus();
    case 'N':  // NONE
      Push(New(Kind::kNone));
      return absl::OkStatus();
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      Push(New(Kind::kBool));
      stack_.back()->number = opcode == 0x88;
      return absl::OkStatus();
    case 'J': {  // BININT
      QUIRE_ASSIGN_OR_RETURN(const int32_t number, TakeLittle<int32_t>());
      PushInt(number);
      return absl::OkStatus();
    }
    case 'K': {  // BININT1
      QUIRE_ASSIGN_OR_RETURN(const uint8_t number, TakeLittle<uint8_t>());
      PushInt(number);
      return absl::OkStatus();
    }
    case 'M': {  // BININT2
      QUIRE_ASSIGN_OR_RETURN(const uint16_t number, TakeLittle<uint16_t>());
      PushInt(number);
      return absl::OkStatus();
    }
    case 0x8a: {  // LONG1
      QUIRE_ASSIGN_OR_RETURN(const uint8_t count, TakeLittle<uint8_t>());
      QUIRE_ASSIGN_OR_RETURN(const auto bytes, Take(count));
      return PushLong(bytes);
    }
    case 'G':  // BINFLOAT
      QUIRE_RETURN_IF_ERROR(Take(8).status());
      Push(New(Kind::kFloat));
      return absl::OkStatus();
    case 'X':  // BINUNICODE
    case 'T':  // BINSTRING
    case 'B':  // BINBYTES
      return PushText(TakeText<uint32_t>());
    case 0x8c:  // SHORT_BINUNICODE
    case 'U':   // SHORT_BINSTRING
    case 'C':   // SHORT_BINBYTES
      return PushText(TakeText<uint8_t>());
    case 0x8d:  // BINUNICODE8
      return PushText(TakeText<uint64_t>());
    case 'c': {  // GLOBAL
      QUIRE_ASSIGN_OR_RETURN(const std::string module, TakeLine());
      QUIRE_ASSIGN_OR_RETURN(const std::string name, TakeLine());
      return PushGlobal(module, name);
    }
    case 0x93: {  // STACK_GLOBAL
      QUIRE_ASSIGN_OR_RETURN(const Value* name, PopKind(Kind::kText));
      QUIRE_ASSIGN_OR_RETURN(const Value* module, PopKind(Kind::kText));
      return PushGlobal(module->text, name->text);
    }
    case 'Q':  // BINPERSID
      return PushStorage();
    case 0x81:  // NEWOBJ: as REDUCE, for the classes known here.
    case 'R':   // REDUCE
      return Reduce();
    default:
      return StepContainer(opcode);
  }
}

absl::Status PickleReader::StepContainer(uint8_t opcode) {
  switch (opcode) {
    case '(':  // MARK
      Push(New(Kind::kMark));
      return absl::OkStatus();
    case '}':  // EMPTY_DICT
      Push(New(Kind::kDict));
      return absl::OkStatus();
    case ']':  // EMPTY_LIST
      Push(New(Kind::kList));
      return absl::OkStatus();
    case ')':  // EMPTY_TUPLE
      return PushTuple(0);
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      return PushTuple(opcode - 0x84);
    case 't':    // TUPLE
    case 'l':    // LIST
    case 'd': {  // DICT
      QUIRE_ASSIGN_OR_RETURN(std::vector<Value*> values, PopToMark());
      Value* value = New(opcode == 't'   ? Kind::kTuple
                         : opcode == 'l' ? Kind::kList
                                         : Kind::kDict);
      if (value->kind == Kind::kDict && values.size() % 2 != 0) {
        return Error("a key without a value");
      }
      value->elements = std::move(values);
      Push(value);
      return absl::OkStatus();
    }
    case 'a': {  // APPEND
      QUIRE_ASSIGN_OR_RETURN(Value * value, Pop());
      return Append({value});
    }
    case 'e': {  // APPENDS
      QUIRE_ASSIGN_OR_RETURN(std::vector<Value*> values, PopToMark());
      return Append(std::move(values));
    }
    case 's': {  // SETITEM
      QUIRE_ASSIGN_OR_RETURN(Value * value, Pop());
      QUIRE_ASSIGN_OR_RETURN(Value * key, Pop());
      return SetItems({key, value});
    }
    case 'u': {  // SETITEMS
      QUIRE_ASSIGN_OR_RETURN(std::vector<Value*> values, PopToMark());
      return SetItems(std::move(values));
    }
    case 'q': {  // BINPUT
      QUIRE_ASSIGN_OR_RETURN(const uint8_t idx, TakeLittle<uint8_t>());
      return Memoize(idx);
    }
    case 'r': {  // LONG_BINPUT
      QUIRE_ASSIGN_OR_RETURN(const uint32_t idx, TakeLittle<uint32_t>());
      return Memoize(idx);
    }
    case 0x94:  // MEMOIZE
      return Memoize(memo_.size());
    case 'h': {  // BINGET
      QUIRE_ASSIGN_OR_RETURN(const uint8_t idx, TakeLittle<uint8_t>());
      return PushMemo(idx);
    }
    case 'j': {  // LONG_BINGET
      QUIRE_ASSIGN_OR_RETURN(const uint32_t idx, TakeLittle<uint32_t>());
      return PushMemo(idx);
    }
    case 'b': {  // BUILD: attributes of a dictionary or tensor; not needed.
      QUIRE_RETURN_IF_ERROR(Pop().status());
      QUIRE_ASSIGN_OR_RETURN(const Value* object, Top());
      if (object->kind == Kind::kDict || object->kind == Kind::kTensor) {
        return absl::OkStatus();
      }
      return Error(absl::StrCat("attributes for ", KindName(object->kind)));
    }
    case '0':  // POP
      return Pop().status();
    case '1':  // POP_MARK
      return PopToMark().status();
    case '2': {  // DUP
      QUIRE_ASSIGN_OR_RETURN(Value * value, Top());
      Push(value);
      return absl::OkStatus();
    }
    default:
      return Error(absl::StrCat("opcode 0x", absl::Hex(opcode, absl::kZeroPad2),
                                " is not known"));
  }
}

// ("storage", type, key, location, number of elements)
absl::Status PickleReader::PushStorage() {
  QUIRE_ASSIGN_OR_RETURN(const Value* id, PopKind(Kind::kTuple));
  const std::vector<Value*>& parts = id->elements;
  if (parts.size() != 5 || parts[0]->kind != Kind::kText ||
      parts[0]->text != "storage" || parts[1]->kind != Kind::kGlobal ||
      parts[2]->kind != Kind::kText || parts[4]->kind != Kind::kInt ||
      parts[4]->number < 0 || parts[2]->text.size() > kMaxStorageKey) {
    return Error("what should be a storage is none");
  }
  Value* storage = New(Kind::kStorage);
  storage->dtype = DTypeIn(kStorages, parts[1]->text);
  if (!storage->dtype && parts[1]->text != kUntypedStorage) {
    return Error(absl::StrCat(Quoted(parts[1]->text), " is no storage"));
  }
  storage->text = parts[2]->text;
  storage->number = parts[4]->number;
  Push(storage);
  return absl::OkStatus();
}

absl::Status PickleReader::Reduce() {
  QUIRE_ASSIGN_OR_RETURN(Value * args, PopKind(Kind::kTuple));
  QUIRE_ASSIGN_OR_RETURN(const Value* callee, PopKind(Kind::kGlobal));
  QUIRE_ASSIGN_OR_RETURN(Value * value, Call(callee->text, args));
  Push(value);
  return absl::OkStatus();
}

// What `name` would return for these arguments.
absl::StatusOr<Value*> PickleReader::Call(const std::string& name,
                                          Value* args) {
  const std::vector<Value*>* parts = &args->elements;
  if (name == kOrderedDict) {
    Value* dict = New(Kind::kDict);
    if (parts->empty()) return dict;
    if (parts->size() != 1 || (*parts)[0]->kind != Kind::kList) {
      return Error("OrderedDict of something else than a list");
    }
    for (const Value* pair : (*parts)[0]->elements) {
      if (pair->elements.size() != 2 || pair->kind == Kind::kDict) {
        return Error("OrderedDict of something else than pairs");
      }
      dict->elements.insert(dict->elements.end(), pair->elements.begin(),
                            pair->elements.end());
      if (++num_copied_ > kMaxCopied) return Error("too many values");
    }
    return dict;
  }
  if (name == kSize) {
    if (parts->size() != 1 ||
        ((*parts)[0]->kind != Kind::kTuple &&
         (*parts)[0]->kind != Kind::kList) ||
        (*parts)[0]->elements.size() > kMaxDimensions) {
      return Error("torch.Size of something else than a short tuple");
    }
    Value* tuple = New(Kind::kTuple);
    tuple->elements = (*parts)[0]->elements;
    return tuple;
  }
  if (name == kRebuildFromType) {
    // (function, type, arguments, attributes)
    if (parts->size() != 4 || (*parts)[0]->kind != Kind::kGlobal ||
        (*parts)[2]->kind != Kind::kTuple ||
        (*parts)[0]->text == kRebuildFromType) {
      return Error("_rebuild_from_type_v2 of something else than a tensor");
    }
    return Call((*parts)[0]->text, (*parts)[2]);
  }
  if (name == kRebuildParameter || name == kRebuildParameterWithState) {
    if (parts->empty() || (*parts)[0]->kind != Kind::kTensor) {
      return Error("a parameter of something else than a tensor");
    }
    return (*parts)[0];
  }
  if (name == kRebuildTensor || name == kRebuildTensorV2 ||
      name == kRebuildTensorV3) {
    return RebuildTensor(name, *parts);
  }
  return Error(absl::StrCat(Quoted(name), " is nothing to call"));
}

absl::StatusOr<std::vector<int64_t>> PickleReader::Ints(const Value& value) {
  if (value.kind != Kind::kTuple && value.kind != Kind::kList) {
    return Error("a shape that is no tuple");
  }
  if (value.elements.size() > kMaxDimensions) {
    return Error(
        absl::StrCat("a shape of more than ", kMaxDimensions, " dimensions"));
  }
  std::vector<int64_t> numbers;
  for (const Value* element : value.elements) {
    if (element->kind != Kind::kInt || element->number < 0) {
      return Error("a shape of something else than natural numbers");
    }
    numbers.push_back(element->number);
  }
  return numbers;
}

// (storage, offset, shape, strides, ...); v3 has the dtype as the seventh.
absl::StatusOr<Value*> PickleReader::RebuildTensor(
    const std::string& name, const std::vector<Value*>& args) {
  if (args.size() < 4 || args[0]->kind != Kind::kStorage ||
      args[1]->kind != Kind::kInt || args[1]->number < 0) {
    return Error("a tensor of something else than a storage");
  }
  Value* tensor = New(Kind::kTensor);
  tensor->storage = args[0];
  tensor->dtype = args[0]->dtype;
  if (name == kRebuildTensorV3) {
    if (args.size() < 7 || args[6]->kind != Kind::kGlobal) {
      return Error("a tensor without its dtype");
    }
    tensor->dtype = DTypeIn(kDTypes, args[6]->text);
  }
  if (!tensor->dtype) return Error("a tensor of an unknown dtype");
  tensor->offset = args[1]->number;
  QUIRE_ASSIGN_OR_RETURN(tensor->shape, Ints(*args[2]));
  QUIRE_ASSIGN_OR_RETURN(tensor->strides, Ints(*args[3]));
  if (tensor->shape.size() != tensor->strides.size()) {
    return Error("a tensor with more or fewer strides than dimensions");
  }
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadTensorPickle(
    absl::Span<const uint8_t> pickle, const std::string& path) {
  PickleReader reader(pickle, path);
  QUIRE_ASSIGN_OR_RETURN(const Value* dict, reader.Read());
  if (dict->kind != Kind::kDict) {
    return reader.Error(absl::StrCat("it holds ", KindName(dict->kind),
                                     ", not a dictionary of tensors"));
  }
  for (size_t i = 0; i + 1 < dict->elements.size(); i += 2) {
    const Value* value = dict->elements[i + 1];
    if (dict->elements[i]->kind == Kind::kText &&
        dict->elements[i]->text == "state_dict" && value->kind == Kind::kDict) {
      dict = value;
      break;
    }
  }
  std::vector<PickledTensor> tensors;
  std::set<absl::string_view> names;
  for (size_t i = 0; i + 1 < dict->elements.size(); i += 2) {
    const Value* key = dict->elements[i];
    const Value* value = dict->elements[i + 1];
    if (key->kind != Kind::kText || value->kind != Kind::kTensor) continue;
    if (!names.insert(key->text).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", Quoted(key->text), ": duplicate key"));
    }
    tensors.push_back({key->text, *value->dtype, value->storage->text,
                       value->storage->number, value->offset, value->shape,
                       value->strides});
  }
  return tensors;
}

}  // namespace quire
