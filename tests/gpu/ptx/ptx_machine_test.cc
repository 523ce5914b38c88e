// What instructions do, and what is a fault, on PTX written by hand. Values are
// those of the PTX ISA's descriptions, worked out apart from the machine.
#include "tests/gpu/ptx/ptx_machine.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/gpu/ptx/ptx_program.h"

namespace quire::ptx {
namespace {

// A kernel with a body, which finds out's address in %rd1, in's in %rd2 and the
// thread's index in %r1.
std::string Kernel(const std::string& body, const std::string& variables = "",
                   const std::string& functions = "") {
  return absl::StrCat(R"(
.version 9.0
.target sm_90a
.address_size 64
)",
                      functions, R"(
.extern .shared .align 128 .b8 dynamic[];
.entry kernel(.param .u64 .ptr .global .align 16 out,
              .param .u64 .ptr .align 1 in)
.maxntid 128, 1, 1
{
  .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>;
  .reg .f32 %f<9>; .reg .f64 %fd<9>;
)",
                      variables, R"(
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  mov.u32 %r1, %tid.x;
)",
                      body, "\n  ret;\n}\n");
}

struct Result {
  absl::Status status;
  std::vector<uint32_t> out;
};

constexpr int kWords = 256;

Result RunKernel(const std::string& text, int num_threads = 1,
                 const std::vector<uint32_t>& in = {},
                 const RunOptions& options = {}, int num_ctas = 1,
                 bool is_cooperative = false) {
  Result result;
  const auto program = Program::Parse(text);
  if (!program.ok()) return {program.status(), {}};
  // Not next to each other.
  struct {
    uint32_t before[4];
    alignas(16) uint32_t words[kWords];
    uint32_t between[4];
    alignas(16) uint32_t input[kWords];
  } memory_of = {};
  uint32_t* const words = memory_of.words;
  uint32_t* const input = memory_of.input;
  std::copy(in.begin(), in.end(), input);
  Memory memory;
  memory.Add(words, sizeof(memory_of.words));
  memory.Add(input, sizeof(memory_of.input));
  Launch launch;
  launch.block[0] = num_threads;
  launch.grid[0] = num_ctas;
  launch.is_cooperative = is_cooperative;
  launch.dynamic_shared_bytes = 1024;
  const void* const addresses[] = {words, input};
  launch.parameters.assign(reinterpret_cast<const char*>(addresses),
                           reinterpret_cast<const char*>(addresses + 2));
  result.status =
      Run(**program, *(*program)->Find("kernel"), launch, memory, options);
  result.out.assign(words, words + kWords);
  return result;
}

// One instruction or a few, whose result is in %r3, of %r4 to %r6, which are
// `in`, also in %f4 to %f6.
uint32_t Value(const std::string& instructions,
               const std::vector<uint32_t>& in = {}) {
  const Result result = RunKernel(
      Kernel(absl::StrCat(
          "ld.global.u32 %r4, [%rd2];", "ld.global.u32 %r5, [%rd2+4];",
          "ld.global.u32 %r6, [%rd2+8];", "mov.b32 %f4, %r4; mov.b32 %f5, %r5;",
          "mov.b32 %f6, %r6;", instructions, "st.global.u32 [%rd1], %r3;")),
      1, in);
  EXPECT_TRUE(result.status.ok()) << result.status;
  return result.out.empty() ? 0 : result.out[0];
}
uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

TEST(InstructionsTest, Integers) {
  EXPECT_EQ(Value("add.s32 %r3, %r4, %r5;", {0x7fffffff, 1}), 0x80000000u);
  EXPECT_EQ(Value("mul.lo.s32 %r3, %r4, %r5;", {0x10001, 0x10001}), 0x20001u);
  EXPECT_EQ(Value("mul.hi.u32 %r3, %r4, %r5;", {0x80000000, 6}), 3u);
  EXPECT_EQ(Value("mul.hi.s32 %r3, %r4, %r5;", {0x80000000, 2}), 0xffffffffu);
  EXPECT_EQ(Value("div.s32 %r3, %r4, 3;", {static_cast<uint32_t>(-7)}),
            static_cast<uint32_t>(-2));
  EXPECT_EQ(Value("rem.s32 %r3, %r4, 3;", {static_cast<uint32_t>(-7)}),
            static_cast<uint32_t>(-1));
  EXPECT_EQ(Value("min.s32 %r3, %r4, %r5;", {0xffffffff, 1}), 0xffffffffu);
  EXPECT_EQ(Value("min.u32 %r3, %r4, %r5;", {0xffffffff, 1}), 1u);
  EXPECT_EQ(Value("mul.wide.s32 %rd3, %r4, %r5; shr.s64 %rd3, %rd3, 4;"
                  "cvt.u32.u64 %r3, %rd3;",
                  {static_cast<uint32_t>(-32), 3}),
            static_cast<uint32_t>(-6));
  EXPECT_EQ(Value("mad.lo.s32 %r3, %r4, %r5, %r6;", {3, 4, 5}), 17u);
}

TEST(InstructionsTest, Bits) {
  EXPECT_EQ(Value("shl.b32 %r3, %r4, 32;", {1}), 0u);
  EXPECT_EQ(Value("shr.u32 %r3, %r4, 40;", {0x80000000}), 0u);
  EXPECT_EQ(Value("shr.s32 %r3, %r4, 40;", {0x80000000}), 0xffffffffu);
  // Bytes 3 2 1 0 of a, 7 6 5 4 of b; 8 and up repeat a byte's sign.
  EXPECT_EQ(Value("prmt.b32 %r3, %r4, %r5, 0x7043;", {0x33221100, 0x77665544}),
            0x77004433u);
  EXPECT_EQ(Value("prmt.b32 %r3, %r4, %r5, 0xb8;", {0x80000000, 0}),
            0x0000ff00u);
  // (a & b) | c has the table 0xea.
  EXPECT_EQ(Value("lop3.b32 %r3, %r4, %r5, %r6, 0xea;", {12, 10, 1}), 9u);
  EXPECT_EQ(Value("bfi.b32 %r3, %r4, %r5, 8, 4;", {0xab, 0xffffffff}),
            0xfffffbffu);
  EXPECT_EQ(Value("bfe.u32 %r3, %r4, 4, 8;", {0xabcd}), 0xbcu);
  EXPECT_EQ(Value("bfe.s32 %r3, %r4, 4, 8;", {0xabcd}), 0xffffffbcu);
  EXPECT_EQ(Value("brev.b32 %r3, %r4;", {0xc0000001}), 0x80000003u);
  EXPECT_EQ(Value("bfind.u32 %r3, %r4;", {0x1000}), 12u);
  EXPECT_EQ(Value("bfind.shiftamt.u32 %r3, %r4;", {0x1000}), 19u);
  EXPECT_EQ(Value("bfind.u32 %r3, %r4;", {0}), 0xffffffffu);
  EXPECT_EQ(Value("mov.b64 %rd3, {%r4, %r5}; shr.u64 %rd3, %rd3, 16;"
                  "mov.b64 {%r3, %r7}, %rd3;",
                  {0x44332211, 0x88776655}),
            0x66554433u);
}

TEST(InstructionsTest, Floats) {
  EXPECT_EQ(Value("fma.rn.f32 %f3, %f4, %f5, %f6; mov.b32 %r3, %f3;",
                  {Bits(1.0f + 0x1p-23f), Bits(1.0f - 0x1p-23f), Bits(-1.0f)}),
            Bits(-0x1p-46f));
  // 1 - 2^-30 is 1 to the nearest, and the number below downwards.
  const std::vector<uint32_t> near = {Bits(0x1p-15f), Bits(-0x1p-15f),
                                      Bits(1.0f)};
  EXPECT_EQ(Value("fma.rn.f32 %f3, %f4, %f5, %f6; mov.b32 %r3, %f3;", near),
            Bits(1.0f));
  EXPECT_EQ(Value("fma.rm.f32 %f3, %f4, %f5, %f6; mov.b32 %r3, %f3;", near),
            Bits(1.0f - 0x1p-24f));
  EXPECT_EQ(Value("max.f32 %f3, %f4, %f5; mov.b32 %r3, %f3;",
                  {Bits(NAN), Bits(-2.0f)}),
            Bits(-2.0f));
  EXPECT_EQ(Value("copysign.f32 %f3, %f4, %f5; mov.b32 %r3, %f3;",
                  {Bits(-1.0f), Bits(3.0f)}),
            Bits(-3.0f));
  EXPECT_EQ(
      Value("ex2.approx.ftz.f32 %f3, %f4; mov.b32 %r3, %f3;", {Bits(-130.0f)}),
      0u);
  EXPECT_EQ(Value("cvt.sat.f32.f32 %f3, %f4; mov.b32 %r3, %f3;", {Bits(NAN)}),
            0u);
}

TEST(InstructionsTest, Conversions) {
  EXPECT_EQ(Value("cvt.rzi.s32.f32 %r3, %f4;", {Bits(-2.75f)}),
            static_cast<uint32_t>(-2));
  EXPECT_EQ(Value("cvt.rzi.s32.f32 %r3, %f4;", {Bits(3e9f)}), 0x7fffffffu);
  EXPECT_EQ(Value("cvt.rni.s32.f32 %r3, %f4;", {Bits(2.5f)}), 2u);
  EXPECT_EQ(Value("cvt.rpi.f32.f32 %f3, %f4; mov.b32 %r3, %f3;", {Bits(2.1f)}),
            Bits(3.0f));
  EXPECT_EQ(Value("cvt.u16.u32 %rs1, %r4; cvt.u32.u16 %r3, %rs1;", {0x12345}),
            0x2345u);
  EXPECT_EQ(Value("cvt.u16.u32 %rs1, %r4; cvt.s32.s16 %r3, %rs1;", {0x1ffff}),
            0xffffffffu);
  // The first operand is the upper half.
  EXPECT_EQ(
      Value("cvt.rn.bf16x2.f32 %r3, %f4, %f5;", {Bits(1.0f), Bits(-2.0f)}),
      0x3f80c000u);
  EXPECT_EQ(Value("cvt.rn.f16x2.f32 %r3, %f4, %f5;", {Bits(1.0f), Bits(-2.0f)}),
            0x3c00c000u);
  // e4m3: 448 is 0x7e, where more saturates; 1 is 0x38.
  EXPECT_EQ(Value("cvt.rn.satfinite.e4m3x2.f32 %rs1, %f4, %f5;"
                  "cvt.u32.u16 %r3, %rs1;",
                  {Bits(1e6f), Bits(1.0f)}),
            0x7e38u);
  EXPECT_EQ(
      Value("cvt.u16.u32 %rs1, %r4; cvt.rn.f16x2.e4m3x2 %r3, %rs1;", {0xb87e}),
      0xbc005f00u);
}

TEST(InstructionsTest, Predicates) {
  const auto holds = [](const std::string& compare,
                        const std::vector<uint32_t>& in) {
    return Value(absl::StrCat("setp.", compare,
                              " %p1|%p2, %f4, %f5; selp.u32 %r3, 1, 0, %p1;"
                              "selp.u32 %r7, 2, 0, %p2; or.b32 %r3, %r3, %r7;"),
                 in);
  };
  const std::vector<uint32_t> with_nan = {Bits(NAN), Bits(1.0f)};
  EXPECT_EQ(holds("ne.f32", with_nan), 2u);
  EXPECT_EQ(holds("neu.f32", with_nan), 1u);
  EXPECT_EQ(holds("lt.f32", with_nan), 2u);
  EXPECT_EQ(holds("geu.f32", with_nan), 1u);
  EXPECT_EQ(holds("le.f32", {Bits(1.0f), Bits(1.0f)}), 1u);
  EXPECT_EQ(Value("setp.eq.s32 %p3, %r4, 7;"
                  "setp.lt.and.s32 %p1, %r4, 9, !%p3; selp.b32 %r3, 5, 6, %p1;",
                  {7}),
            6u);
  EXPECT_EQ(Value("setp.eq.s32 %p3, %r4, 7; mov.u32 %r3, 1;"
                  "@!%p3 mov.u32 %r3, 2; @%p3 mov.u32 %r3, 3;",
                  {7}),
            3u);
}

TEST(PtxMachineTest, LoopsAndCalls) {
  const std::string text = absl::StrCat(Kernel(R"(
  mov.u32 %r3, 0;
  mov.u32 %r4, 1;
$LOOP:
  { // callseq
  .param .b32 first; st.param.b32 [first+0], %r4;
  .param .b32 second; st.param.b32 [second+0], %r3;
  .param .b32 back;
  call.uni (back), twice, (first, second);
  ld.param.b32 %r3, [back+0];
  }
  add.s32 %r4, %r4, 1;
  setp.le.s32 %p1, %r4, 10;
  @%p1 bra $LOOP;
  st.global.u32 [%rd1], %r3;)",
                                               "", R"(
.func (.param .b32 result) twice(.param .b32 a, .param .b32 b);
)"),
                                        R"(
.func (.param .b32 result) twice(.param .b32 a, .param .b32 b)
{
  .reg .b32 %r<4>;
  ld.param.b32 %r1, [a];
  ld.param.b32 %r2, [b];
  shl.b32 %r1, %r1, 1;
  add.s32 %r3, %r1, %r2;
  st.param.b32 [result+0], %r3;
  ret;
}
)");
  const Result result = RunKernel(text);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.out[0], 110u);
}

// Each thread reads what its neighbour in another warp has written.
TEST(PtxMachineTest, BarriersAndSharedMemory) {
  const std::string body = R"(
  shl.b32 %r2, %r1, 2;
  mov.u32 %r3, words;
  add.s32 %r4, %r3, %r2;
  st.shared.u32 [%r4], %r1;
  bar.sync 0;
  xor.b32 %r5, %r2, 256;
  add.s32 %r5, %r3, %r5;
  ld.shared.u32 %r6, [%r5];
  cvt.u64.u32 %rd3, %r2;
  add.s64 %rd4, %rd1, %rd3;
  st.global.u32 [%rd4], %r6;)";
  for (const bool is_reversed : {false, true}) {
    RunOptions options;
    options.is_reversed = is_reversed;
    const Result result = RunKernel(
        Kernel(body, ".shared .align 4 .b8 words[512];"), 128, {}, options);
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (uint32_t i = 0; i < 128; ++i) EXPECT_EQ(result.out[i], i ^ 64);
  }
}

TEST(PtxMachineTest, LanesComeTogetherFromSeveralBranches) {
  const Result result = RunKernel(Kernel(R"(
  and.b32 %r2, %r1, 1;
  setp.eq.s32 %p1, %r2, 0;
  mov.u32 %r3, %r1;
  @%p1 bra $EVEN;
  add.s32 %r3, %r3, 100;
$EVEN:
  shfl.sync.bfly.b32 %r4|%p2, %r3, 1, 31, -1;
  vote.sync.ballot.b32 %r5, %p1, -1;
  redux.sync.max.u32 %r6, %r3, -1;
  shl.b32 %r7, %r1, 3;
  cvt.u64.u32 %rd3, %r7;
  add.s64 %rd4, %rd1, %rd3;
  xor.b32 %r5, %r5, %r6;
  st.global.v2.u32 [%rd4], {%r4, %r5};)"),
                                  32);
  ASSERT_TRUE(result.status.ok()) << result.status;
  for (uint32_t i = 0; i < 32; ++i) {
    EXPECT_EQ(result.out[2 * i], (i ^ 1) + (i % 2 == 0 ? 100 : 0));
    EXPECT_EQ(result.out[2 * i + 1], 0x55555555u ^ 131u);
  }
}

// Two warps take turns: who arrives goes on, and the barrier is there again.
TEST(PtxMachineTest, ArrivingCountsAndDoesNotWait) {
  const std::string body = R"(
  setp.lt.s32 %p1, %r1, 32;
  and.b32 %r2, %r1, 31;
  shl.b32 %r2, %r2, 2;
  mov.u32 %r3, words;
  add.s32 %r4, %r3, %r2;
  mov.u32 %r5, 0;
  cvt.u64.u32 %rd3, %r2;
  add.s64 %rd4, %rd1, %rd3;
$ROUND:
  @!%p1 bra $SECOND;
  add.s32 %r6, %r1, %r5;
  st.shared.u32 [%r4], %r6;
  bar.arrive 1, 64;
  bar.sync 2, 64;
  bra $NEXT;
$SECOND:
  bar.sync 1, 64;
  sub.s32 %r7, 124, %r2;
  add.s32 %r7, %r3, %r7;
  ld.shared.u32 %r6, [%r7];
  bar.arrive 2, 64;
  st.global.u32 [%rd4], %r6;
  add.s64 %rd4, %rd4, 128;
$NEXT:
  add.s32 %r5, %r5, 100;
  setp.lt.s32 %p2, %r5, 300;
  @%p2 bra $ROUND;)";
  for (const bool is_reversed : {false, true}) {
    RunOptions options;
    options.is_reversed = is_reversed;
    const Result result = RunKernel(
        Kernel(body, ".shared .align 4 .b8 words[128];"), 64, {}, options);
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (uint32_t i = 0; i < 96; ++i) {
      EXPECT_EQ(result.out[i], i / 32 * 100 + 31 - i % 32);
    }
  }
}

// Before the others have a turn to notice.
TEST(PtxMachineTest, ABarrierIsThereAgainAtOnce) {
  for (const bool is_reversed : {false, true}) {
    RunOptions options;
    options.is_reversed = is_reversed;
    const Result result =
        RunKernel(Kernel("bar.arrive 1, 32; bar.arrive 1, 32; bar.sync 1, 32;"),
                  64, {}, options);
    EXPECT_TRUE(result.status.ok()) << result.status;
  }
}

constexpr char kCopy[] = R"(
  mov.u32 %r2, dynamic;
  cp.async.cg.shared.global [%r2], [%rd2], 16, 16;
  cp.async.commit_group;
  cp.async.wait_group %s;
  ld.shared.u32 %r3, [%r2+4];
  st.global.u32 [%rd1], %r3;)";

TEST(PtxMachineTest, ACopyThatNobodyWaitsForComesLate) {
  std::string waits = kCopy, does_not = kCopy;
  waits.replace(waits.find("%s"), 2, "0");
  does_not.replace(does_not.find("%s"), 2, "1");
  const std::vector<uint32_t> in = {1, 2, 3, 4};
  EXPECT_EQ(RunKernel(Kernel(waits), 1, in).out[0], 2u);
  EXPECT_NE(RunKernel(Kernel(does_not), 1, in).out[0], 2u);
  RunOptions early;
  early.has_late_copies = false;
  EXPECT_EQ(RunKernel(Kernel(does_not), 1, in, early).out[0], 2u);
}

TEST(PtxMachineTest, CooperativeGridsMeet) {
  // Each CTA adds one and waits for the other's.
  const std::string body = R"(
  atom.global.add.u32 %r2, [%rd1], 1;
$WAIT:
  ld.acquire.gpu.u32 %r3, [%rd1];
  setp.ne.s32 %p1, %r3, 2;
  @%p1 bra $WAIT;
  mov.u32 %r4, %ctaid.x;
  shl.b32 %r4, %r4, 2;
  cvt.u64.u32 %rd3, %r4;
  add.s64 %rd4, %rd1, %rd3;
  st.global.u32 [%rd4+4], %r3;)";
  const Result together = RunKernel(Kernel(body), 1, {}, {}, 2, true);
  ASSERT_TRUE(together.status.ok()) << together.status;
  EXPECT_EQ(together.out[1], 2u);
  EXPECT_EQ(together.out[2], 2u);
  // One after the other the first waits forever.
  RunOptions options;
  options.max_turns = 16;
  EXPECT_FALSE(RunKernel(Kernel(body), 1, {}, options, 2, false).status.ok());
}

void ExpectFault(const std::string& body, const std::string& words,
                 int num_threads = 1) {
  const Result result = RunKernel(Kernel(body), num_threads);
  ASSERT_FALSE(result.status.ok()) << body;
  EXPECT_TRUE(absl::StrContains(result.status.message(), words))
      << result.status;
}

TEST(PtxMachineTest, FaultsNameTheInstruction) {
  ExpectFault("ld.global.u32 %r3, [%rd1+1024];", "no memory of 4 bytes");
  ExpectFault("st.global.u32 [%rd1+-4], %r1;", "\"st.global.u32 [%rd1+-4]");
  ExpectFault("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd1+8];", "misaligned");
  ExpectFault("mov.u32 %r2, dynamic; st.shared.u32 [%r2+1024], %r1;",
              "shared memory has 1024 bytes");
  ExpectFault("trap;", "a trap");
  ExpectFault("shfl.sync.idx.b32 %r3|%p1, %r1, 5, 31, 3;", "lane 5", 32);
  ExpectFault(
      "setp.lt.s32 %p1, %r1, 8; @%p1 shfl.sync.bfly.b32 %r3|%p2, %r1, "
      "1, 31, -1;",
      "waits for others in vain", 32);
  ExpectFault("setp.lt.s32 %p1, %r1, 32; @%p1 bar.sync 1, 64;",
              "waits for others in vain", 64);
  for (const char* barrier :
       {"bar.sync 16;", "bar.sync -1;", "bar.sync 1, 33;", "bar.sync 1, -32;",
        "bar.arrive 1;", "bar.arrive 16, 64;", "bar.arrive -1, 64;",
        "bar.arrive 1, 33;", "bar.arrive 1, 0;", "bar.arrive 1, -32;"}) {
    ExpectFault(barrier, "no such barrier", 64);
  }
  const std::string first = "setp.lt.s32 %p1, %r1, 32;";
  ExpectFault(first + "@%p1 bar.arrive 1, 96; @!%p1 bar.sync 1, 64;",
              "different sizes of a barrier", 64);
  ExpectFault("bar.arrive 1, 96; bar.arrive 1, 96;", "arrives twice", 64);
  ExpectFault("bar.arrive 1, 128; bar.sync 1, 128;", "arrives twice", 64);
  ExpectFault("bar.arrive 1, 96;", "nobody completes", 64);
  ExpectFault("and.b32 %r2, %r1, 1; bar.arrive %r2, 64;", "disagree", 64);
}

TEST(PtxProgramTest, ErrorsQuoteTheLine) {
  for (const auto& [body, words] :
       {std::pair("frob.u32 %r3, %r4;", "unknown instruction frob.u32"),
        std::pair("add.s32 %r3, %r99, 1;", "unknown name \"%r99\""),
        std::pair("bra $NOWHERE;", "unknown label $NOWHERE"),
        std::pair("add.rz.f32 %f3, %f4, %f5;", "unknown instruction"),
        std::pair("add.s32 %r3, %r4", "no "),
        std::pair("call.uni missing;", "no function missing")}) {
    const auto program = Program::Parse(Kernel(body));
    ASSERT_FALSE(program.ok()) << body;
    EXPECT_TRUE(absl::StrContains(program.status().message(), words))
        << program.status();
  }
}

}  // namespace
}  // namespace quire::ptx
