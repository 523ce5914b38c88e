// Products of a warpgroup: their sums against sums in double, and each mistake
// that is an error, on PTX written by hand. Where B lies is worked out from the
// pictures of the PTX ISA (rows of 128 bytes whose 16-byte chunks are
// exchanged), apart from the machine.
#include "tests/gpu/ptx/warpgroup_instructions.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "tests/gpu/ptx/ptx_machine.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {
namespace {

constexpr int kRows = 64, kDepth = 64, kThreads = 128;
constexpr int kSharedBytes = 16384;

struct Form {
  std::string type = "bf16";
  int columns = 64;
  bool is_transposed = false;
  bool accumulates = true;

  // Of the blocks of eight rows, and of each 64 columns.
  int stride() const { return 1024; }
  int leading() const { return is_transposed ? kDepth * 128 : 16; }
  // What 16 of depth are.
  int step() const { return is_transposed ? 2 * stride() : 32; }
};

// c + a [64, 64] b [64, columns], in four products. Threads fill shared memory
// 16 bytes at a time with what `in` points to.
std::string Kernel(const Form& form) {
  const int count = form.columns / 2;
  std::string accumulators;
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&accumulators, i > 0 ? "," : "", "%f", i);
  }
  std::string text = absl::StrCat(
      R"(
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 dynamic[];
.entry kernel(.param .u64 out, .param .u64 in, .param .u64 factors)
.maxntid 128, 1, 1
{
  .reg .pred %p<4>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .f32 %f<65>;
  .shared .align 4 .b8 before[20];
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  ld.param.u64 %rd3, [factors];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, dynamic;
  shl.b32 %r3, %r1, 4;
  mov.u32 %r4, 0;
$FILL:
  add.s32 %r5, %r3, %r4;
  cvt.u64.u32 %rd4, %r5;
  add.s64 %rd4, %rd2, %rd4;
  add.s32 %r5, %r5, %r2;
  ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%rd4];
  st.shared.v4.u32 [%r5], {%r6, %r7, %r8, %r9};
  add.s32 %r4, %r4, 2048;
  setp.lt.u32 %p1, %r4, )",
      kSharedBytes, R"(;
  @%p1 bra $FILL;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  mul.wide.u32 %rd5, %r1, 64;
  add.s64 %rd5, %rd3, %rd5;
  mul.wide.u32 %rd6, %r1, )",
      count * 4, R"(;
  add.s64 %rd6, %rd1, %rd6;
  shr.u32 %r2, %r2, 4;
  cvt.u64.u32 %rd7, %r2;
  mov.u64 %rd8, )",
      uint64_t{1} << 62 | static_cast<uint64_t>(form.stride() / 16) << 32 |
          form.leading() / 16 << 16,
      R"(;
  or.b64 %rd7, %rd7, %rd8;
)");
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "ld.global.f32 %f", i, ", [%rd6+", i * 4, "];\n");
  }
  for (int i = 0; i < 16; ++i) {
    absl::StrAppend(&text, "ld.global.u32 %r", 20 + i, ", [%rd5+", i * 4,
                    "];\n");
  }
  absl::StrAppend(&text, "wgmma.fence.sync.aligned;\n");
  for (int step = 0; step < 4; ++step) {
    const int a = 20 + step * 4;
    absl::StrAppend(&text, "{ .reg .pred p; setp.ne.b32 p, ",
                    step > 0 || form.accumulates ? 1 : 0,
                    ", 0;\nwgmma.mma_async.sync.aligned.m64n", form.columns,
                    "k16.f32.", form.type, ".", form.type, "\n{", accumulators,
                    "}, {%r", a, ",%r", a + 1, ",%r", a + 2, ",%r", a + 3,
                    "}, %rd7, p, 1, 1, ", form.is_transposed ? 1 : 0,
                    "; }\nadd.s64 %rd7, %rd7, ", form.step() / 16, "; // step ",
                    step, "\n");
  }
  absl::StrAppend(&text,
                  "wgmma.commit_group.sync.aligned;\n"
                  "wgmma.wait_group.sync.aligned 0;\n");
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "st.global.f32 [%rd6+", i * 4, "], %f", i, ";\n");
  }
  return absl::StrCat(text, "ret;\n}\n");
}

struct Problem {
  std::vector<float> a, b, c;        // [64, 64], [columns, 64], [64, columns]
  std::vector<uint32_t> words_of_a;  // By thread, 16.
  std::vector<char> shared;
  std::vector<float> in_out;  // c by thread, then what the kernel wrote.
};

// Of c: row and column of thread t's register i (PTX ISA, "Register Fragments
// for wgmma.mma_async.m64nNk16", matrix D).
int RowOf(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
int ColumnOf(int t, int i) { return t % 4 * 2 + i % 2 + i / 4 * 8; }

Problem Draw(const Form& form) {
  Problem p;
  SimulationRandom random(form.columns + form.is_transposed);
  const auto value = [&](uint16_t& bits) {
    const auto drawn = static_cast<float>(random.Uniform() * 4 - 2);
    bits = form.type == "bf16" ? FloatToBf16(drawn) : FloatToHalf(drawn);
    return form.type == "bf16" ? Bf16ToFloat(bits) : HalfToFloat(bits);
  };
  std::vector<uint16_t> a(kRows * kDepth), b(form.columns * kDepth);
  for (uint16_t& bits : a) p.a.push_back(value(bits));
  for (uint16_t& bits : b) p.b.push_back(value(bits));
  for (int e = 0; e < kRows * form.columns; ++e) {
    p.c.push_back(static_cast<float>(random.Uniform() * 8 - 4));
  }
  // Register r of a product at 16 * step: the same section, matrix A.
  for (int t = 0; t < kThreads; ++t) {
    for (int step = 0; step < 4; ++step) {
      for (int r = 0; r < 4; ++r) {
        const int row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8;
        const int depth = step * 16 + r / 2 * 8 + t % 4 * 2;
        p.words_of_a.push_back(a[row * kDepth + depth] |
                               uint32_t{a[row * kDepth + depth + 1]} << 16);
      }
    }
    for (int i = 0; i < form.columns / 2; ++i) {
      p.in_out.push_back(p.c[RowOf(t, i) * form.columns + ColumnOf(t, i)]);
    }
  }
  p.shared.assign(kSharedBytes, 0);
  for (int n = 0; n < form.columns; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      // A line of 128 bytes of a block of eight lines, and a 16-byte chunk.
      const int block = form.is_transposed
                            ? n / 64 * form.leading() + k / 8 * form.stride()
                            : n / 8 * form.stride();
      const int line = form.is_transposed ? k % 8 : n % 8;
      const int element = form.is_transposed ? n % 64 : k;
      std::memcpy(p.shared.data() + block + line * 128 +
                      (element / 8 ^ line) * 16 + element % 8 * 2,
                  &b[n * kDepth + k], 2);
    }
  }
  return p;
}

absl::Status RunProblem(const std::string& text, Problem& p,
                        const RunOptions& options = {},
                        int num_threads = kThreads) {
  auto program = Program::Parse(text);
  if (!program.ok()) return program.status();
  Memory memory;
  // Copies are aligned to 16 bytes.
  alignas(16) static char shared[kSharedBytes];
  std::memcpy(shared, p.shared.data(), kSharedBytes);
  memory.Add(p.in_out.data(), p.in_out.size() * 4);
  memory.Add(shared, kSharedBytes);
  memory.Add(p.words_of_a.data(), p.words_of_a.size() * 4);
  Launch launch;
  launch.block[0] = num_threads;
  launch.dynamic_shared_bytes = kSharedBytes;
  const void* const addresses[] = {p.in_out.data(), shared,
                                   p.words_of_a.data()};
  launch.parameters.assign(reinterpret_cast<const char*>(addresses),
                           reinterpret_cast<const char*>(addresses + 3));
  return Run(**program, *(*program)->Find("kernel"), launch, memory, options);
}

// How many elements are not c + a b.
int NumWrong(const Form& form, const Problem& p) {
  int num_wrong = 0;
  for (int t = 0; t < kThreads; ++t) {
    for (int i = 0; i < form.columns / 2; ++i) {
      const int row = RowOf(t, i), column = ColumnOf(t, i);
      double sum = form.accumulates ? p.c[row * form.columns + column] : 0.0;
      double sum_abs = std::abs(sum);
      for (int k = 0; k < kDepth; ++k) {
        const double term =
            double{p.a[row * kDepth + k]} * double{p.b[column * kDepth + k]};
        sum += term;
        sum_abs += std::abs(term);
      }
      // Each of four products rounds once to f32.
      const double error = std::abs(p.in_out[t * form.columns / 2 + i] - sum);
      num_wrong += !(error <= 4 * 0x1p-24 * sum_abs);
    }
  }
  return num_wrong;
}

std::vector<Form> Forms() {
  std::vector<Form> forms;
  for (const char* type : {"bf16", "f16"}) {
    for (const int columns : {64, 128}) {
      for (const bool is_transposed : {false, true}) {
        for (const bool accumulates : {false, true}) {
          forms.push_back({type, columns, is_transposed, accumulates});
        }
      }
    }
  }
  return forms;
}

TEST(WarpgroupTest, Products) {
  for (const Form& form : Forms()) {
    for (const bool is_early : {false, true}) {
      Problem p = Draw(form);
      RunOptions options;
      options.is_reversed = is_early;
      options.has_late_copies = !is_early;
      const absl::Status status = RunProblem(Kernel(form), p, options);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(NumWrong(form, p), 0)
          << form.type << " n" << form.columns
          << (form.is_transposed ? " transposed" : "")
          << (form.accumulates ? " accumulates" : "");
    }
  }
}

// Dynamic memory is behind static memory: a start that is not a multiple of
// 1024 would exchange chunks in another way.
TEST(WarpgroupTest, ASwizzleFollowsAddresses) {
  const Form form;
  Problem p = Draw(form);
  const absl::Status status = RunProblem(
      absl::StrReplaceAll(Kernel(form), {{".align 1024", ".align 128"}}), p);
  EXPECT_TRUE(absl::StrContains(status.message(), "within a pattern"))
      << status;
}

std::string Replaced(const std::string& text, const std::string& from,
                     const std::string& to) {
  EXPECT_TRUE(absl::StrContains(text, from)) << from;
  return absl::StrReplaceAll(text, {{from, to}});
}

void ExpectError(const std::string& from, const std::string& to,
                 const std::string& words, const Form& form = {},
                 const RunOptions& options = {}, int num_threads = kThreads) {
  Problem p = Draw(form);
  const absl::Status status =
      RunProblem(Replaced(Kernel(form), from, to), p, options, num_threads);
  EXPECT_TRUE(!status.ok() && absl::StrContains(status.message(), words))
      << to << ": " << status;
}

constexpr char kFill[] = "st.shared.v4.u32 [%r5], {%r6, %r7, %r8, %r9};";
constexpr char kProxyFence[] = "fence.proxy.async.shared::cta;";
constexpr char kFence[] = "wgmma.fence.sync.aligned;";
constexpr char kCommit[] = "wgmma.commit_group.sync.aligned;";
constexpr char kWait[] = "wgmma.wait_group.sync.aligned 0;";
constexpr char kDescriptor[] = "or.b64 %rd7, %rd7, %rd8;";

TEST(WarpgroupTest, BitsOfDescriptors) {
  const auto with = [](const std::string& change) {
    return absl::StrCat(kDescriptor, change);
  };
  ExpectError(kDescriptor, with("xor.b64 %rd7, %rd7, 0xc000000000000000;"),
              "layout type 2, not 1");
  ExpectError(kDescriptor, with("xor.b64 %rd7, %rd7, 0x4000000000000000;"),
              "layout type 0, not 1");
  ExpectError(kDescriptor, with("or.b64 %rd7, %rd7, 0x2000000000000;"),
              "base offset 1");
  for (const int bit : {14, 15, 30, 31, 46, 48, 52, 61}) {
    ExpectError(
        kDescriptor,
        with(absl::StrCat("or.b64 %rd7, %rd7, ", uint64_t{1} << bit, ";")),
        "reserved bits");
  }
  // The next row; the last depths of a row and the first of the next.
  ExpectError(kDescriptor, with("add.s64 %rd7, %rd7, 8;"), "within a pattern");
  ExpectError(kDescriptor, with("add.s64 %rd7, %rd7, 7;"), "within a pattern");
  Form transposed;
  transposed.is_transposed = true;
  ExpectError(kDescriptor, with("add.s64 %rd7, %rd7, 2;"), "within a pattern",
              transposed);
  // 17 KiB are there, with what is static.
  ExpectError(kDescriptor, with("add.s64 %rd7, %rd7, 768;"),
              "shared memory has 17408 bytes");
}

// Blocks of eight rows 2 KiB apart, as the product of a wider row finds them.
TEST(WarpgroupTest, BlocksAreAStrideApart) {
  const Form form;
  Problem p = Draw(form);
  std::vector<char> apart(kSharedBytes);
  for (int block = 0; block < 8; ++block) {
    std::memcpy(apart.data() + block * 2048, p.shared.data() + block * 1024,
                1024);
  }
  p.shared = apart;
  const std::string text =
      Replaced(Kernel(form), kDescriptor,
               absl::StrCat(kDescriptor, "add.s64 %rd7, %rd7, 0x4000000000;"));
  ASSERT_TRUE(RunProblem(text, p).ok());
  EXPECT_EQ(NumWrong(form, p), 0);
}

TEST(WarpgroupTest, LanesAndWarpsAgree) {
  ExpectError(kDescriptor,
              absl::StrCat(kDescriptor,
                           "setp.eq.s32 %p1, %r1, 40;"
                           "@%p1 add.s64 %rd7, %rd7, 64;"),
              "lanes disagree");
  ExpectError(kDescriptor,
              absl::StrCat(kDescriptor,
                           "setp.lt.u32 %p1, %r1, 32;"
                           "@%p1 add.s64 %rd7, %rd7, 64;"),
              "warps disagree");
  ExpectError("setp.ne.b32 p, 1, 0;", "setp.ne.b32 p, %r1, 0;",
              "lanes disagree");
  ExpectError("bar.sync 0;", "bar.sync 0;", "not a whole warpgroup", {}, {},
              64);
}

TEST(WarpgroupTest, RegistersAreFenced) {
  ExpectError(kFence, "", "no wgmma.fence since the last wait");
  ExpectError("// step 0",
              absl::StrCat("\n", kCommit, "wgmma.wait_group.sync.aligned 1;"),
              "no wgmma.fence since the last wait");
  const Form form;
  Problem p = Draw(form);
  ASSERT_TRUE(RunProblem(Replaced(Kernel(form), "// step 0",
                                  absl::StrCat("\n", kCommit, kWait, kFence)),
                         p)
                  .ok());
  EXPECT_EQ(NumWrong(form, p), 0);
}

TEST(WarpgroupTest, WritesAreFencedByWhoWrites) {
  constexpr char kWords[] = "written without fence.proxy.async since";
  ExpectError(kProxyFence, "", kWords);
  // One of its writes, and a write behind it.
  ExpectError(kProxyFence,
              absl::StrCat("setp.ne.s32 %p1, %r1, 77; @%p1 ", kProxyFence),
              kWords);
  ExpectError(kProxyFence,
              absl::StrCat(kProxyFence, "st.shared.u8 [%r2+100], %r1;"),
              kWords);
  ExpectError(kProxyFence,
              absl::StrCat(kProxyFence,
                           "cvt.u64.u32 %rd9, %r2; cvta.shared.u64 %rd9, %rd9;"
                           "st.u32 [%rd9+64], %r1;"),
              kWords);
  ExpectError(kProxyFence,
              absl::StrCat(kProxyFence, "red.shared.add.u32 [%r2], 0;"),
              kWords);
  // Who writes beside what is read needs none.
  const Form form;
  Problem p = Draw(form);
  ASSERT_TRUE(
      RunProblem(Replaced(Kernel(form), kProxyFence,
                          absl::StrCat(kProxyFence,
                                       "st.shared.u32 [before], %r1;"
                                       "st.shared.u32 [%r2+8192], %r1;")),
                 p)
          .ok());
  EXPECT_EQ(NumWrong(form, p), 0);
}

TEST(WarpgroupTest, CopiesHaveLandedBeforeTheirFence) {
  constexpr char kCopy[] = "cp.async.cg.shared.global [%r5], [%rd4], 16;";
  constexpr char kLand[] = "cp.async.wait_all;";
  for (const bool is_late : {false, true}) {
    RunOptions options;
    options.has_late_copies = is_late;
    const Form form;
    const std::string text = Replaced(Kernel(form), kFill, kCopy);
    const auto run = [&](const std::string& instead) {
      Problem p = Draw(form);
      const absl::Status status =
          RunProblem(Replaced(text, kProxyFence, instead), p, options);
      return status.ok() ? absl::StrCat(NumWrong(form, p), " wrong")
                         : std::string(status.message());
    };
    EXPECT_EQ(run(absl::StrCat(kLand, kProxyFence)), "0 wrong");
    for (const std::string& instead :
         {absl::StrCat(kProxyFence, kLand), std::string(kLand),
          std::string(kProxyFence)}) {
      EXPECT_TRUE(absl::StrContains(run(instead), "without fence.proxy.async"))
          << instead << ": " << run(instead);
    }
  }
}

TEST(WarpgroupTest, NothingChangesUnderAProduct) {
  ExpectError(kCommit,
              absl::StrCat("mov.u32 %r10, dynamic; st.shared.u32 [%r10], 0;",
                           kProxyFence, kCommit),
              "shared memory changed before its product was waited for");
  ExpectError(kCommit, absl::StrCat(kCommit, "add.s32 %r20, %r20, 1;"),
              "a register of A changed");
  ExpectError(kCommit, absl::StrCat(kCommit, "add.f32 %f5, %f5, %f5;"),
              "an accumulator changed");
  ExpectError("// step 0", "\nmov.f32 %f7, 0f00000000;",
              "an accumulator changed");
}

// Whoever reads sums too early reads no number.
TEST(WarpgroupTest, SumsComeLate) {
  const Form form;
  Problem p = Draw(form);
  ASSERT_TRUE(
      RunProblem(Replaced(Replaced(Kernel(form), kCommit,
                                   absl::StrCat("mov.f32 %f64, %f1;", kCommit)),
                          "], %f1;", "], %f64;"),
                 p)
          .ok());
  EXPECT_TRUE(std::isnan(p.in_out[1]));
  EXPECT_EQ(NumWrong(form, p), kThreads);
}

TEST(WarpgroupTest, EachGroupIsWaitedFor) {
  ExpectError(kWait, "", "a product is not waited for");
  ExpectError(kCommit, "", "a product is not waited for");
  ExpectError(kWait, "wgmma.wait_group.sync.aligned 1;",
              "a product is not waited for");
  // The sums of the first group stay with the second.
  const Form form;
  Problem p = Draw(form);
  const std::string text =
      Replaced(Kernel(form), "// step 1", absl::StrCat("\n", kCommit));
  ASSERT_TRUE(
      RunProblem(
          Replaced(text, kWait,
                   absl::StrCat("wgmma.wait_group.sync.aligned 1;", kWait)),
          p)
          .ok());
  EXPECT_EQ(NumWrong(form, p), 0);
}

TEST(WarpgroupTest, AccumulatorsAreTheSameOrOthers) {
  const std::string text = Kernel({});
  const size_t second = text.find("{%f0,%f1,", text.find("// step 0"));
  std::string mixed = text;
  mixed.replace(second, 9, "{%f1,%f0,");
  Problem p = Draw({});
  const absl::Status status = RunProblem(mixed, p);
  EXPECT_TRUE(absl::StrContains(status.message(), "another product has some"))
      << status;
}

TEST(WarpgroupTest, UnknownForms) {
  for (const auto& [from, to] :
       {std::pair("m64n64k16", "m64n72k16"),
        std::pair("m64n64k16", "m64n128k16"),
        std::pair(".bf16.bf16", ".bf16.f16"), std::pair("}, {%r20,", "}, {"),
        std::pair("{%r20,%r21,%r22,%r23}, %rd7", "%rd7, %rd7")}) {
    ExpectError(from, to, "unknown instruction wgmma.mma_async");
  }
  ExpectError("fence.proxy.async.shared::cta", "fence.proxy.alias",
              "unknown instruction fence.proxy.alias");
  ExpectError("p, 1, 1,", "p, -1, 1,", "a negated matrix");
}

}  // namespace
}  // namespace quire::ptx
