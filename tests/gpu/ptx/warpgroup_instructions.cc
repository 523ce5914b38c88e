// PTX ISA 9.0, section "Asynchronous Warpgroup Level Matrix Instructions": A in
// registers, B in shared memory with the swizzle of 128 bytes. Layouts are the
// canonical ones of CUTLASS, include/cute/atom/mma_traits_sm90_gmma.hpp.
#include "tests/gpu/ptx/warpgroup_instructions.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/dtype.h"
#include "tests/gpu/ptx/ptx_machine.h"

namespace quire::ptx {

void AsyncProxy::Write(int thread, int64_t offset) {
  const int64_t chunk = offset / 16;
  auto is_written = is_written_[thread * num_chunks_ + chunk];
  if (is_written) return;
  is_written = true;
  written_[thread].push_back(chunk);
  ++num_hidden_[chunk];
}
void AsyncProxy::BeginCopy(int thread, int64_t offset, int group) {
  copies_[thread].emplace_back(offset / 16, group);
  ++num_hidden_[offset / 16];
}
void AsyncProxy::EndCopies(int thread, int end) {
  std::erase_if(copies_[thread], [&](const auto& copy) {
    const auto [chunk, group] = copy;
    if (group >= end) return false;
    --num_hidden_[chunk];
    Write(thread, chunk * 16);
    return true;
  });
}
void AsyncProxy::Fence(int thread) {
  for (const int64_t chunk : written_[thread]) {
    is_written_[thread * num_chunks_ + chunk] = false;
    --num_hidden_[chunk];
  }
  written_[thread].clear();
}

namespace {

using Product = Warpgroups::Product;
using Warp = Warpgroups::Warp;
constexpr int kLanes = Warpgroups::kLanes;
constexpr int kDepth = Warpgroups::kDepth;
constexpr int kRow =
    128;  // Bytes, of which eight are a pattern of the swizzle.

// An accumulator of a product under way: a NaN.
constexpr uint64_t kPoison = 0xfff2f2f27ff2f2f2;

// Operands behind the accumulators: A's registers, then these.
enum Operand : int {
  kDescriptor = 4,
  kScaleD,
  kScaleA,
  kScaleB,
  kTransB,
  kNumOperands
};

struct Descriptor {
  int64_t start, leading, stride;  // Bytes.
};

// What is wrong with the bits; empty if nothing.
std::string Decode(uint64_t bits, bool is_transposed, Descriptor& found) {
  const auto field = [&](int first, int width) {
    return static_cast<int64_t>(bits >> first & ((uint64_t{1} << width) - 1));
  };
  found = {field(0, 14) * 16, field(16, 14) * 16, field(32, 14) * 16};
  if (field(14, 2) != 0 || field(30, 2) != 0 || field(46, 3) != 0 ||
      field(52, 10) != 0) {
    return "reserved bits of a descriptor are set";
  }
  if (field(62, 2) != 1) {
    return absl::StrCat("layout type ", field(62, 2),
                        ", not 1 (a swizzle of 128 bytes)");
  }
  if (field(49, 3) != 0) {
    return absl::StrCat("base offset ", field(49, 3),
                        ", not 0 (patterns begin at multiples of 1024 bytes)");
  }
  // Rows of 128 bytes and patterns of eight of them are read from their start;
  // depth by depth, some of a row.
  const int64_t num_read = is_transposed ? kRow : kDepth * 2;
  if (found.start % (8 * kRow) + num_read > kRow) {
    return absl::StrCat("a matrix begins within a pattern, at ", found.start);
  }
  return "";
}

// Of the element of B at a column and a depth, in shared memory.
int64_t OffsetOf(const Descriptor& d, bool is_transposed, int column,
                 int depth) {
  const int64_t offset =
      is_transposed
          ? d.start + column / 64 * d.leading + depth / 8 * d.stride +
                depth % 8 * kRow + column % 64 * 2
          : d.start + column / 8 * d.stride + column % 8 * kRow + depth * 2;
  return offset ^ (offset / kRow % 8 * 16);
}

Warp& WarpOf(const Thread& thread) {
  return thread.cta->warpgroups->warps[thread.index / kLanes];
}

// False after a fault.
bool IsWhole(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  Thread& first = *lanes[0];
  if (mask != 0xffffffffu) {
    Fault(first, i, "not a whole warp");
  } else if (first.index / (4 * kLanes) >=
             static_cast<int>(first.cta->warpgroups->issued.size())) {
    Fault(first, i, "not a whole warpgroup");
  } else if (!first.callers.empty()) {
    Fault(first, i, "in a function that is called");
  } else {
    return true;
  }
  return false;
}

bool IsTransposed(const Product& product) {
  return (product.slots[0][product.instruction->from[kTransB]] & 1) != 0;
}
int NumColumns(const Product& product) {
  return static_cast<int>(product.instruction->accumulators.size()) * 2;
}

// B as it is now. False after a fault.
bool ReadB(Thread& thread, const Product& product, std::vector<uint16_t>& b) {
  const Instruction& i = *product.instruction;
  const bool is_transposed = IsTransposed(product);
  Descriptor descriptor;
  const std::string error =
      Decode(product.descriptor, is_transposed, descriptor);
  if (!error.empty()) {
    Fault(thread, i, error);
    return false;
  }
  const Cta& cta = *thread.cta;
  b.resize(NumColumns(product) * kDepth);
  for (int n = 0; n < NumColumns(product); ++n) {
    for (int k = 0; k < kDepth; ++k) {
      const int64_t offset = OffsetOf(descriptor, is_transposed, n, k);
      if (offset + 2 > static_cast<int64_t>(cta.shared.size())) {
        Fault(thread, i,
              absl::StrCat("shared memory has ", cta.shared.size(),
                           " bytes, not ", offset + 2));
        return false;
      }
      if (cta.warpgroups->proxy.IsHidden(offset)) {
        Fault(thread, i,
              absl::StrCat("a product reads shared memory at ", offset,
                           ", written without fence.proxy.async since"));
        return false;
      }
      std::memcpy(&b[n * kDepth + k], cta.shared.data() + offset, 2);
    }
  }
  return true;
}

std::array<uint32_t, 4> ReadA(const uint64_t* slots, const Instruction& i) {
  std::array<uint32_t, 4> a;
  for (int r = 0; r < 4; ++r) a[r] = static_cast<uint32_t>(slots[i.from[r]]);
  return a;
}

// Columns 8j and up of sums are accumulators 4j to 4j + 3, as of mma.m16n8k16;
// so are A's registers.
void Multiply(const Product& product, std::vector<float>& sums) {
  const bool is_bf16 = absl::StrContains(product.instruction->text, ".bf16");
  const auto decode = [&](uint32_t bits) {
    const auto half = static_cast<uint16_t>(bits);
    return is_bf16 ? Bf16ToFloat(half) : HalfToFloat(half);
  };
  float a[16][kDepth];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 4; ++r) {
      for (int e = 0; e < 2; ++e) {
        a[lane / 4 + r % 2 * 8][r / 2 * 8 + lane % 4 * 2 + e] =
            decode(product.a[lane][r] >> (16 * e));
      }
    }
  }
  std::vector<float> b(product.b.size());
  for (size_t e = 0; e < b.size(); ++e) b[e] = decode(product.b[e]);
  const int count = static_cast<int>(product.instruction->accumulators.size());
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int c = 0; c < count; ++c) {
      const int row = lane / 4 + c % 4 / 2 * 8;
      const int column = c / 4 * 8 + lane % 4 * 2 + c % 2;
      float& out = sums[lane * count + c];
      double sum = product.accumulates ? out : 0.0;
      for (int k = 0; k < kDepth; ++k) {
        sum += double{a[row][k]} * double{b[column * kDepth + k]};
      }
      out = static_cast<float>(sum);
    }
  }
}

void IssueProduct(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (!IsWhole(lanes, mask, i)) return;
  Thread& first = *lanes[0];
  Warpgroups& warpgroups = *first.cta->warpgroups;
  Warp& warp = WarpOf(first);
  if (!warp.is_fenced) {
    return Fault(first, i, "no wgmma.fence since the last wait");
  }
  Product product;
  product.instruction = &i;
  product.group = warp.num_groups;
  product.descriptor = Get<uint64_t>(first, i.from[kDescriptor]);
  const auto scale = [&](const Thread& t) {
    return ((t.slots[i.from[kScaleD]] & 1) != 0) != i.is_predicate_negated;
  };
  product.accumulates = scale(first);
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread& t = *lanes[lane];
    if (Get<uint64_t>(t, i.from[kDescriptor]) != product.descriptor ||
        scale(t) != product.accumulates) {
      return Fault(t, i, "lanes disagree on the descriptor or the scale");
    }
    product.slots[lane] = t.slots;
    product.a[lane] = ReadA(t.slots, i);
  }
  if (Get<int32_t>(first, i.from[kScaleA]) != 1 ||
      Get<int32_t>(first, i.from[kScaleB]) != 1) {
    return Fault(first, i, "a negated matrix");
  }
  auto& issued = warpgroups.issued[first.index / (4 * kLanes)];
  const std::pair call(&i, product.descriptor);
  if (warp.num_issued == static_cast<int64_t>(issued.size())) {
    issued.push_back(call);
  } else if (issued[warp.num_issued] != call) {
    return Fault(first, i, "warps disagree on a product or its descriptor");
  }
  ++warp.num_issued;
  bool is_taken = false;
  for (const Product& other : warp.products) {
    if (other.instruction->accumulators == i.accumulators) {
      is_taken = true;
    } else if (std::find_first_of(i.accumulators.begin(), i.accumulators.end(),
                                  other.instruction->accumulators.begin(),
                                  other.instruction->accumulators.end()) !=
               i.accumulators.end()) {
      return Fault(first, i, "accumulators of which another product has some");
    }
  }
  if (!ReadB(first, product, product.b)) return;
  if (!is_taken) {
    for (uint64_t* slots : product.slots) {
      for (const int slot : i.accumulators) {
        const auto bits = static_cast<uint32_t>(slots[slot]);
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        product.sums.push_back(value);
        slots[slot] = kPoison;
      }
    }
  }
  warp.products.push_back(std::move(product));
}

// The first of a warp's products. False after a fault.
bool FinishProduct(Thread& first, Warp& warp) {
  Product product = std::move(warp.products.front());
  warp.products.erase(warp.products.begin());
  const Instruction& i = *product.instruction;
  std::vector<uint16_t> b;
  if (!ReadB(first, product, b)) return false;
  if (b != product.b) {
    Fault(first, i, "shared memory changed before its product was waited for");
    return false;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t* const slots = product.slots[lane];
    if (ReadA(slots, i) != product.a[lane]) {
      Fault(first, i,
            "a register of A changed before its product was waited for");
      return false;
    }
    for (const int slot : i.accumulators) {
      if (slots[slot] == kPoison) continue;
      Fault(first, i,
            "an accumulator changed before its product was waited for");
      return false;
    }
  }
  Multiply(product, product.sums);
  for (Product& next : warp.products) {
    if (next.instruction->accumulators == i.accumulators) {
      next.sums = std::move(product.sums);
      return true;
    }
  }
  const float* sum = product.sums.data();
  for (uint64_t* slots : product.slots) {
    for (const int slot : i.accumulators) {
      uint32_t bits;
      std::memcpy(&bits, sum++, sizeof(bits));
      slots[slot] = bits;
    }
  }
  return true;
}

void FenceRegisters(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (IsWhole(lanes, mask, i)) WarpOf(*lanes[0]).is_fenced = true;
}
void CommitGroup(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (IsWhole(lanes, mask, i)) ++WarpOf(*lanes[0]).num_groups;
}
void WaitGroup(Thread* const* lanes, uint32_t mask, const Instruction& i) {
  if (!IsWhole(lanes, mask, i)) return;
  Warp& warp = WarpOf(*lanes[0]);
  const int end = warp.num_groups - Get<int32_t>(*lanes[0], i.from[0]);
  while (!warp.products.empty() && warp.products.front().group < end) {
    if (!FinishProduct(*lanes[0], warp)) return;
  }
  // PTX asks for a fence where a product's registers were accessed in between;
  // which were not is nothing to rely on. That they were accessed behind a
  // fence is not looked for: nvcc 13.0 moves constants there, and its ptxas
  // puts another WARPGROUP.ARRIVE before the product.
  warp.is_fenced = false;
}

// Columns of a product by its name; 0 if it is none that is known.
int ColumnsOf(const std::string& name) {
  for (const int columns : {64, 128}) {
    for (const char* types : {"bf16.bf16", "f16.f16"}) {
      if (name == absl::StrCat("wgmma.mma_async.sync.aligned.m64n", columns,
                               "k16.f32.", types)) {
        return columns;
      }
    }
  }
  return 0;
}

}  // namespace

Instruction::Collective FindWarpgroupCollective(const std::string& name,
                                                const Instruction& operands) {
  if (name == "wgmma.fence.sync.aligned") return &FenceRegisters;
  if (name == "wgmma.commit_group.sync.aligned") return &CommitGroup;
  if (name == "wgmma.wait_group.sync.aligned") return &WaitGroup;
  const bool is_known =
      ColumnsOf(name) > 0 && operands.num_from == kNumOperands &&
      static_cast<int>(operands.accumulators.size()) * 2 == ColumnsOf(name);
  return is_known ? &IssueProduct : nullptr;
}

}  // namespace quire::ptx
