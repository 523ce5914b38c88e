// PTX, the assembly of NVIDIA's virtual machine, as nvcc writes it: text to
// functions of instructions whose operands are numbered slots. What it does not
// know is an error that quotes the line. PTX ISA 9.0.
#ifndef QUIRE_TESTS_GPU_PTX_PTX_PROGRAM_H_
#define QUIRE_TESTS_GPU_PTX_PTX_PROGRAM_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quire::ptx {

// Slots of every function that hold what a thread is, in this order.
enum SpecialSlot : int {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kEnvreg1,
  kEnvreg2,
  kSink,  // For results that nobody wants.
  kNumSpecialSlots,
};

struct Thread;
struct Instruction;

// A register, a constant and an address of a variable are slots of 64 bits, of
// which an instruction looks at those of its type.
struct Instruction {
  using Handler = void (*)(Thread& thread, const Instruction& instruction);
  // Of all threads that execute it together; null where each is alone.
  using Collective = void (*)(Thread* const* lanes, uint32_t mask,
                              const Instruction& instruction);

  Handler handler = nullptr;
  Collective collective = nullptr;
  bool has_mask = false;  // Of lanes, its last operand; else all of the warp.
  int guard = -1;         // The slot of a predicate.
  bool is_guard_negated = false;
  std::array<int, 4> to = {};
  std::array<int, 10> from = {};
  std::vector<int> accumulators;  // Of wgmma, which has many results.
  int num_from = 0;
  int num_elements = 1;               // Of a vector.
  int64_t offset = 0;                 // Of an address, behind the slot's.
  bool is_predicate_negated = false;  // Of an operand: "!%p3".
  int target = -1;  // A branch's instruction; a call's function.
  std::vector<int64_t> call_in, call_out;  // Of the caller's local memory.
  std::string text;
};

struct Function {
  struct Parameter {
    int64_t offset = 0, num_bytes = 0;
  };
  std::string name;
  bool is_kernel = false;
  int max_threads = 1024;  // .maxntid
  std::vector<Parameter> parameters;
  int64_t parameter_bytes = 0;
  int num_slots = kNumSpecialSlots;
  std::vector<std::pair<int, uint64_t>> constants;     // Slots that hold one.
  std::vector<std::pair<int, int64_t>> of_parameters;  // ... an address there.
  std::vector<std::pair<int, int64_t>> of_local;       // ... of local memory.
  std::vector<int> of_dynamic_shared;
  int64_t local_bytes = 0;
  int64_t shared_bytes = 0;         // Static; dynamic memory follows.
  int64_t dynamic_alignment = 128;  // Of its start, at least.
  bool has_wgmma = false;
  std::vector<Instruction> code;
  // Of a function that is called: where its parameters and results lie.
  std::vector<std::pair<int64_t, int64_t>> local_in, local_out;
};

class Program {
 public:
  // The functions of a text; they stay where they are.
  static absl::StatusOr<std::unique_ptr<Program>> Parse(absl::string_view text);

  const Function* Find(const std::string& name) const;
  const std::vector<std::unique_ptr<Function>>& functions() const {
    return functions_;
  }

 private:
  friend class Parser;
  std::vector<std::unique_ptr<Function>> functions_;
  std::map<std::string, int, std::less<>> by_name_;
};

// What executes an instruction of this name, "add.s32"; false if unknown.
// instructions.cc.
bool FindHandler(const std::vector<std::string>& name, Instruction& found);
// Of what a warp executes together, by the whole name; null if it is no such
// instruction. warp_instructions.cc.
Instruction::Collective FindCollective(const std::string& name);

}  // namespace quire::ptx

#endif  // QUIRE_TESTS_GPU_PTX_PTX_PROGRAM_H_
