#include "kernels/cpu/attention.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"

namespace quire {
namespace {

struct Shape {
  int num_heads = 4;
  int num_kv_heads = 2;
  int head_dim = 64;
  int block_size = 16;
  int sliding_window = 0;
  float softcap = 0.0f;
  DType kv_dtype = DType::kBF16;
};

// Sequences with their own queries for every position, and a cache whose unused
// slots hold NaN.
class Cache {
 public:
  Cache(const Shape& shape, const std::vector<int64_t>& lengths, uint64_t seed)
      : shape_(shape),
        layout_{shape.kv_dtype, shape.num_kv_heads, shape.head_dim,
                shape.block_size},
        random_(seed) {
    int64_t num_blocks = 1;
    for (int64_t length : lengths) {
      num_blocks += (length + shape.block_size - 1) / shape.block_size;
    }
    // Two layers: blocks are further apart than they are long.
    block_bytes_ = 2 * layout_.BlockBytes() + 12;
    // A NaN in every format; in kI8 the scales are.
    bytes_.resize(num_blocks * block_bytes_, '\xff');
    // Blocks in shuffled order.
    std::vector<int32_t> free;
    for (int32_t b = 0; b < num_blocks; ++b) free.push_back(b);
    for (size_t i = free.size(); i > 1; --i) {
      std::swap(free[i - 1], free[random_.Below(i)]);
    }
    for (int64_t length : lengths) {
      std::vector<int32_t> table;
      for (int64_t p = 0; p < length; p += shape.block_size) {
        table.push_back(free.back());
        free.pop_back();
      }
      for (int64_t p = 0; p < length; ++p) {
        for (int kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
          for (bool is_v : {false, true}) {
            WriteScale(table, p, kv_head, is_v,
                       (is_v ? 1.0f : 3.0f) / 127 * (1.25f + Uniform()));
            for (int d = 0; d < shape.head_dim; ++d) {
              Write(table, p, kv_head, d, is_v, (is_v ? 1 : 3) * Uniform());
            }
          }
        }
      }
      tables_.push_back(table);
      std::vector<float> q(length * shape.num_heads * shape.head_dim);
      for (float& v : q) v = Uniform();
      queries_.push_back(q);
    }
  }

  float Uniform() { return static_cast<float>(2 * random_.Uniform() - 1); }

  // Where the block of position p begins, and what is where in it.
  int64_t Block(const std::vector<int32_t>& table, int64_t p) const {
    return table[p / shape_.block_size] * block_bytes_;
  }
  int64_t Element(const std::vector<int32_t>& table, int64_t p, int kv_head,
                  int d, bool is_v) const {
    const int64_t slot = p % shape_.block_size;
    return Block(table, p) +
           (is_v ? layout_.V(kv_head, slot, d) : layout_.K(kv_head, slot, d));
  }
  int64_t Scale(const std::vector<int32_t>& table, int64_t p, int kv_head,
                bool is_v) const {
    const int64_t slot = p % shape_.block_size;
    return Block(table, p) + (is_v ? layout_.VScale(kv_head, slot)
                                   : layout_.KScale(kv_head, slot));
  }
  void WriteScale(const std::vector<int32_t>& table, int64_t p, int kv_head,
                  bool is_v, float scale) {
    if (shape_.kv_dtype != DType::kI8) return;
    std::memcpy(bytes_.data() + Scale(table, p, kv_head, is_v), &scale, 4);
  }
  // kI8: `value` relative to 3 (K) or 1 (V) becomes a code.
  void Write(const std::vector<int32_t>& table, int64_t p, int kv_head, int d,
             bool is_v, float value) {
    char* const to = bytes_.data() + Element(table, p, kv_head, d, is_v);
    switch (shape_.kv_dtype) {
      case DType::kF32:
        std::memcpy(to, &value, 4);
        break;
      case DType::kI8:
        *to = static_cast<char>(
            static_cast<int8_t>(std::lround(value / (is_v ? 1 : 3) * 127)));
        break;
      case DType::kF8E4M3:
        *to = static_cast<char>(FloatToE4M3(value));
        break;
      default: {
        const uint16_t bits = shape_.kv_dtype == DType::kF16
                                  ? FloatToHalf(value)
                                  : FloatToBf16(value);
        std::memcpy(to, &bits, 2);
      }
    }
  }
  double Read(const std::vector<int32_t>& table, int64_t p, int kv_head, int d,
              bool is_v) const {
    const char* const from =
        bytes_.data() + Element(table, p, kv_head, d, is_v);
    float value;
    uint16_t bits;
    switch (shape_.kv_dtype) {
      case DType::kF32:
        std::memcpy(&value, from, 4);
        return value;
      case DType::kI8:
        std::memcpy(&value, bytes_.data() + Scale(table, p, kv_head, is_v), 4);
        return static_cast<double>(static_cast<int8_t>(*from)) * value;
      case DType::kF8E4M3:
        return E4M3ToFloat(static_cast<uint8_t>(*from));
      default:
        std::memcpy(&bits, from, 2);
        return shape_.kv_dtype == DType::kF16 ? HalfToFloat(bits)
                                              : Bf16ToFloat(bits);
    }
  }

  // Makes one element of a key NaN (kI8: all of it).
  void Poison(int sequence, int64_t position, int kv_head) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (shape_.kv_dtype == DType::kI8) {
      WriteScale(tables_[sequence], position, kv_head, false, nan);
    } else {
      Write(tables_[sequence], position, kv_head, 3, false, nan);
    }
  }

  struct Piece {  // Tokens [begin, begin + num_tokens) of a sequence.
    int sequence;
    int64_t begin;
    int32_t num_tokens;
  };

  // [all tokens of the pieces, num_heads * head_dim].
  std::vector<float> Run(ThreadPool& pool, Isa isa,
                         const std::vector<Piece>& pieces,
                         AttentionScratch& scratch) const {
    const int64_t width = shape_.num_heads * shape_.head_dim;
    std::vector<float> q;
    std::vector<AttentionRow> rows;
    for (const Piece& piece : pieces) {
      rows.push_back({tables_[piece.sequence].data(), piece.begin,
                      piece.num_tokens,
                      static_cast<int64_t>(q.size()) / width});
      const float* const from =
          queries_[piece.sequence].data() + piece.begin * width;
      q.insert(q.end(), from, from + piece.num_tokens * width);
    }
    std::vector<float> out(q.size(), 777.0f);
    PagedAttentionParams params;
    params.rows = rows;
    params.q = q.data();
    params.q_stride = width;
    params.out = out.data();
    params.out_stride = width;
    params.kv = bytes_.data();
    params.kv_dtype = shape_.kv_dtype;
    params.block_bytes = block_bytes_;
    params.num_heads = shape_.num_heads;
    params.num_kv_heads = shape_.num_kv_heads;
    params.head_dim = shape_.head_dim;
    params.block_size = shape_.block_size;
    params.sliding_window = shape_.sliding_window;
    params.scale = Scale();
    params.softcap = shape_.softcap;
    PagedAttention(pool, isa, params, scratch);
    return out;
  }

  float Scale() const {
    return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  }

  // One head of one token in double, and a bound on the error of f32.
  //
  // Scores: a chain of head_dim multiply-adds (two roundings each without FMA),
  // scales and soft cap (a few ulp of the cap): |ds|. A relative error of
  // exp(s - max) is then |ds| twice (score and maximum), the rounding of the
  // subtraction (up to |s - max| units) and 2 ulp of exp. The weighted mean of
  // V moves by that times the mean of |V - out| <= 2 max |V|; its own summation
  // over the context adds one rounding per position and per merge.
  void Reference(int sequence, int64_t position, int head,
                 std::vector<double>* out, double* tolerance) const {
    const std::vector<int32_t>& table = tables_[sequence];
    const int kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
    const float* const q =
        queries_[sequence].data() +
        (position * shape_.num_heads + head) * shape_.head_dim;
    const int64_t begin =
        shape_.sliding_window > 0
            ? std::max<int64_t>(0, position - shape_.sliding_window + 1)
            : 0;
    constexpr double kRoundoff = 1.0 / (1 << 24);
    std::vector<double> scores;
    double max = -std::numeric_limits<double>::infinity();
    double score_error = 0;
    for (int64_t p = begin; p <= position; ++p) {
      double dot = 0;
      double sum_abs = 0;
      for (int d = 0; d < shape_.head_dim; ++d) {
        const double product = q[d] * Read(table, p, kv_head, d, false);
        dot += product;
        sum_abs += std::abs(product);
      }
      double score = dot * static_cast<double>(Scale());
      score_error = std::max(score_error, (2 * shape_.head_dim + 3) *
                                              kRoundoff * sum_abs * Scale());
      if (shape_.softcap > 0) {
        score = shape_.softcap * std::tanh(score / shape_.softcap);
        score_error += 8 * kRoundoff * std::abs(score);
      }
      scores.push_back(score);
      max = std::max(max, score);
    }
    double sum = 0;
    double spread = 0;
    for (double& s : scores) {
      spread = std::max(spread, max - s);
      s = std::exp(s - max);
      sum += s;
    }
    out->assign(shape_.head_dim, 0.0);
    double max_v = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      for (int d = 0; d < shape_.head_dim; ++d) {
        const double v = Read(table, begin + i, kv_head, d, true);
        max_v = std::max(max_v, std::abs(v));
        (*out)[d] += scores[i] / sum * v;
      }
    }
    const double relative =
        2 * score_error + (spread + 5) * kRoundoff +
        2 * (static_cast<double>(scores.size()) + 64) * kRoundoff;
    *tolerance = 2 * relative * max_v + 1e-30;
  }

  void Check(Isa isa, const std::vector<Piece>& pieces,
             const std::vector<float>& got) const {
    const int64_t width = shape_.num_heads * shape_.head_dim;
    int64_t token = 0;
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.num_tokens; ++i, ++token) {
        for (int head = 0; head < shape_.num_heads; ++head) {
          std::vector<double> expected;
          double tolerance = 0;
          Reference(piece.sequence, piece.begin + i, head, &expected,
                    &tolerance);
          for (int d = 0; d < shape_.head_dim; ++d) {
            const float value = got[token * width + head * shape_.head_dim + d];
            ASSERT_TRUE(std::abs(value - expected[d]) <= tolerance)
                << IsaName(isa) << " " << DTypeName(shape_.kv_dtype)
                << " position " << piece.begin + i << " head " << head
                << " element " << d << ": " << value << " vs " << expected[d]
                << " +- " << tolerance;
          }
        }
      }
    }
  }

 private:
  Shape shape_;
  KvBlockLayout layout_;
  SimulationRandom random_;
  int64_t block_bytes_ = 0;
  std::vector<char> bytes_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<std::vector<float>> queries_;
};

class AttentionTest : public testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  Isa isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  void CheckShape(Shape shape, const std::vector<int64_t>& lengths,
                  const std::vector<Cache::Piece>& pieces, uint64_t seed) {
    shape.kv_dtype = dtype();
    Cache cache(shape, lengths, seed);
    AttentionScratch scratch(pool_.num_threads(), shape.num_heads,
                             shape.head_dim, 2048);
    cache.Check(isa(), pieces, cache.Run(pool_, isa(), pieces, scratch));
  }

  ThreadPool pool_{3};
};

TEST_P(AttentionTest, MixedBatch) {
  CheckShape({}, {1, 63, 64, 65, 130, 17, 40},
             {{0, 0, 1},    // The first token.
              {1, 62, 1},   // Decode at the end of a tile.
              {2, 63, 1},   // The first position of a block is seen alone.
              {3, 60, 5},   // Across a tile.
              {4, 0, 130},  // A whole prompt.
              {5, 3, 0},    // Nothing.
              {6, 11, 29}},
             1);
}

TEST_P(AttentionTest, LongContextsAreSplitAndMerged) {
  CheckShape({}, {513, 1100, 1537}, {{0, 511, 2}, {1, 1099, 1}, {2, 1530, 7}},
             2);
}

TEST_P(AttentionTest, HeadDims) {
  uint64_t seed = 10;
  for (int head_dim : {1, 2, 7, 16, 31, 32, 33, 80, 128}) {
    Shape shape;
    shape.head_dim = head_dim;
    CheckShape(shape, {70, 9}, {{0, 0, 70}, {1, 8, 1}}, seed++);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, HeadGroups) {
  uint64_t seed = 20;
  for (auto [heads, kv_heads] :
       {std::pair{1, 1}, {3, 3}, {14, 2}, {13, 1}, {15, 1}, {29, 1}}) {
    Shape shape;
    shape.num_heads = heads;
    shape.num_kv_heads = kv_heads;
    shape.head_dim = 32;
    CheckShape(shape, {67, 20}, {{0, 60, 7}, {1, 19, 1}}, seed++);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, MoreHeadsThanAnItemHolds) {
  Shape shape;
  shape.num_heads = 101;
  shape.num_kv_heads = 1;
  shape.head_dim = 8;
  CheckShape(shape, {40}, {{0, 37, 3}}, 30);
}

TEST_P(AttentionTest, BlockSizes) {
  uint64_t seed = 40;
  for (int block_size : {1, 5, 16, 64, 100}) {
    Shape shape;
    shape.block_size = block_size;
    shape.head_dim = 16;
    CheckShape(shape, {131}, {{0, 100, 31}}, seed++);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionTest, SlidingWindowAndSoftcap) {
  uint64_t seed = 50;
  for (int window : {1, 2, 63, 64, 65, 600}) {
    Shape shape;
    shape.sliding_window = window;
    shape.softcap = window % 2 == 0 ? 2.5f : 0.0f;
    shape.head_dim = 16;
    CheckShape(shape, {700}, {{0, 0, 3}, {0, 120, 20}, {0, 640, 60}}, seed++);
    if (HasFatalFailure()) return;
  }
}

// The bits depend on neither the chunks of a prompt, the batch, the threads nor
// the room for splits.
TEST_P(AttentionTest, BitwiseInvariant) {
  for (int window : {0, 70}) {
    Shape shape;
    shape.num_heads = 6;
    shape.num_kv_heads = 2;
    shape.head_dim = 24;
    shape.kv_dtype = dtype();
    shape.sliding_window = window;
    const int64_t length = 1100;
    Cache cache(shape, {length, 300}, 60);
    const int64_t width = shape.num_heads * shape.head_dim;
    ThreadPool single(1);
    AttentionScratch scratch(5, shape.num_heads, shape.head_dim, 2048);
    const std::vector<float> whole =
        cache.Run(single, isa(), {{0, 0, length}}, scratch);
    const auto check = [&](ThreadPool& pool, int64_t begin, int32_t num_tokens,
                           AttentionScratch& s) {
      // Another sequence before and after.
      const std::vector<float> got = cache.Run(
          pool, isa(), {{1, 299, 1}, {0, begin, num_tokens}, {1, 0, 40}}, s);
      ASSERT_EQ(std::memcmp(got.data() + width, whole.data() + begin * width,
                            num_tokens * width * sizeof(float)),
                0)
          << begin << " " << num_tokens;
    };
    for (int num_threads : {1, 2, 5}) {
      ThreadPool pool(num_threads);
      AttentionScratch tiny(5, shape.num_heads, shape.head_dim, 1);
      for (int64_t begin : {0, 1, 63, 64, 100, 511, 512, 700, 1024, 1090}) {
        for (int32_t num_tokens : {1, 2, 5, 10, 76}) {
          if (begin + num_tokens > length) continue;
          check(pool, begin, num_tokens, scratch);
          check(pool, begin, num_tokens, tiny);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(AttentionTest, NanInTheContextIsSeen) {
  Shape shape;
  shape.kv_dtype = dtype();
  Cache cache(shape, {100}, 70);
  AttentionScratch scratch(3, shape.num_heads, shape.head_dim, 128);
  // Queries are finite; a NaN key at position 50 of KV head 1 reaches heads 2
  // and 3 of every later query and nothing else.
  cache.Poison(0, 50, 1);
  const std::vector<float> out =
      cache.Run(pool_, isa(), {{0, 0, 100}}, scratch);
  for (int64_t token = 0; token < 100; ++token) {
    for (int head = 0; head < 4; ++head) {
      const float value = out[(token * 4 + head) * 64 + 5];
      EXPECT_EQ(std::isnan(value), token >= 50 && head >= 2)
          << token << " " << head;
    }
  }
}

TEST_P(AttentionTest, EmptyBatch) {
  Shape shape;
  shape.kv_dtype = dtype();
  Cache cache(shape, {5}, 80);
  AttentionScratch scratch(3, shape.num_heads, shape.head_dim, 128);
  EXPECT_TRUE(cache.Run(pool_, isa(), {}, scratch).empty());
  EXPECT_TRUE(cache.Run(pool_, isa(), {{0, 4, 0}}, scratch).empty());
}

std::string ParamName(
    const testing::TestParamInfo<std::tuple<Isa, DType>>& info) {
  return std::string(IsaName(std::get<0>(info.param))) + "_kv_" +
         DTypeName(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(
    AllIsas, AttentionTest,
    testing::Combine(testing::ValuesIn(SupportedIsas()),
                     testing::Values(DType::kF32, DType::kF16, DType::kBF16,
                                     DType::kF8E4M3, DType::kI8)),
    ParamName);

}  // namespace
}  // namespace quire
