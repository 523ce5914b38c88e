// Every operation of the CPU backend, on every instruction set this machine
// has, and of the CUDA backend on an emulated GPU, against kernels/reference
// over generated shapes. Embedding, attention and sampling are in
// backend_embed_test.cc, backend_attention_test.cc and
// backend_sampling_test.cc.
//
// Tolerances are worst-case bounds from the number of f32 roundings between the
// input and the output, and of those to 16 bits where activations have as many
// (kernels/backend.h says where); a comparison with NaN fails by construction.
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"
#include "tests/backend_harness.h"

namespace quire {
namespace {

constexpr double kRoundoff = 0x1p-24;  // Of f32, relative.

class BackendConformanceTest : public testing::TestWithParam<TestBackend> {};

INSTANTIATE_TEST_SUITE_P(Backends, BackendConformanceTest,
                         testing::ValuesIn(AllTestBackends()), TestBackendName);

// First-order relative error of norm(y) in f32: a sum of cols squares in some
// order (its error halves under the root), then about ten single roundings. A
// LayerNorm cancels the mean: its absolute error is relative to the largest
// |y|.
double NormTolerance(int64_t cols) {
  return (0.5 * static_cast<double>(cols) + 10) * kRoundoff;
}

struct NormData {
  NormSpec::Kind kind = NormSpec::Kind::kNone;
  HostMatrix weight;
  HostMatrix bias;
  float weight_offset = 0.0f;

  static NormData Random(SimulationRandom& random, NormSpec::Kind kind,
                         int64_t cols) {
    NormData norm;
    norm.kind = kind;
    if (kind == NormSpec::Kind::kNone) return norm;
    norm.weight = HostMatrix::Random(random, 1, cols, DType::kF32);
    if (kind == NormSpec::Kind::kLayer && random.Below(2) == 0) {
      norm.bias = HostMatrix::Random(random, 1, cols, DType::kF32);
    }
    if (kind == NormSpec::Kind::kRms && random.Below(2) == 0) {
      norm.weight_offset = 1.0f;
    }
    return norm;
  }

  NormSpec Upload(Backend& backend) const {
    NormSpec spec = HostSpec();
    if (!weight.empty()) spec.weight = CheckOk(backend.Upload(weight.view()));
    if (!bias.empty()) spec.bias = CheckOk(backend.Upload(bias.view()));
    return spec;
  }

  NormSpec HostSpec() const {
    NormSpec spec;
    spec.kind = kind;
    spec.weight = weight.view();
    spec.bias = bias.view();
    spec.eps = 1e-5f;
    spec.weight_offset = weight_offset;
    return spec;
  }

  // norm(x + residual) of row `t` and a bound on its f32 error.
  void Expect(const HostMatrix& x, const HostMatrix& residual, int64_t t,
              std::vector<double>* value, std::vector<double>* error) const {
    std::vector<double> y(x.cols());
    for (int64_t col = 0; col < x.cols(); ++col) {
      y[col] = x.at(t, col);
      if (!residual.empty()) y[col] += residual.at(t, col);
    }
    Expect(y, value, error);
    for (int64_t col = 0; col < x.cols(); ++col) {
      if (kind == NormSpec::Kind::kNone) {
        (*error)[col] =
            residual.empty() ? 0.0 : kRoundoff * std::abs((*value)[col]);
      }
    }
  }

  // Turns bounds on the errors of y into bounds on those of norm(y) in f32.
  // With s = sqrt(var(y) + eps), which moves by at most r, the root mean square
  // of the errors, and never falls below sqrt(eps):
  //   |c' / s' - c / s| <= (|c' - c| + |c| r / s) / s', c the centred element.
  void Propagate(const std::vector<double>& y,
                 std::vector<double>* errors) const {
    if (kind == NormSpec::Kind::kNone) return;
    const int64_t cols = y.size();
    const bool is_layer = kind == NormSpec::Kind::kLayer;
    double mean = 0.0, mean_error = 0.0, squares = 0.0, squared_errors = 0.0;
    for (int64_t col = 0; col < cols; ++col) {
      if (is_layer) mean += y[col] / cols;
      if (is_layer) mean_error += (*errors)[col] / cols;
      squared_errors += (*errors)[col] * (*errors)[col] / cols;
    }
    for (double v : y) squares += (v - mean) * (v - mean) / cols;
    const double eps = HostSpec().eps;
    const double s = std::sqrt(squares + eps);
    const double r = std::sqrt(squared_errors);
    const double least = std::max(s - r, std::sqrt(eps));
    std::vector<double> value, own;
    Expect(y, &value, &own);
    for (int64_t col = 0; col < cols; ++col) {
      const double w = std::abs(weight_offset + weight.at(0, col));
      const double moved =
          w * ((*errors)[col] + mean_error + std::abs(y[col] - mean) * r / s) /
          least;
      // The roundings of the norm itself grow with what it is given.
      (*errors)[col] = moved * (1 + NormTolerance(cols)) +
                       own[col] * (s + r) / least * (s + r) / least;
    }
  }

  // norm(y) and a bound on its f32 error for an exact y.
  void Expect(const std::vector<double>& y, std::vector<double>* value,
              std::vector<double>* error) const {
    const int64_t cols = y.size();
    double largest = 0.0;
    for (double v : y) largest = std::max(largest, std::abs(v));
    *value = ReferenceNorm(HostSpec(), y);
    error->assign(cols, 0.0);
    double mean = 0.0;
    double variance = 0.0;
    for (double v : y) mean += v / y.size();
    for (double v : y) variance += (v - mean) * (v - mean) / y.size();
    for (int64_t col = 0; col < cols; ++col) {
      const double magnitude = std::abs((*value)[col]);
      if (kind == NormSpec::Kind::kNone) continue;
      if (kind == NormSpec::Kind::kRms) {
        (*error)[col] = NormTolerance(cols) * magnitude;
      } else {
        // The error of the mean moves every element and the variance alike.
        const double gain =
            std::abs(weight.at(0, col)) / std::sqrt(variance + 1e-5);
        const double centred = std::abs(y[col] - mean);
        (*error)[col] =
            2 * NormTolerance(cols) *
            (gain * largest * (1 + centred / std::sqrt(variance + 1e-5)) +
             magnitude);
      }
    }
  }
};

// ---------------------------------------------------------------- Linear

struct LinearCase {
  int num_tokens = 1;
  int64_t cols = 1;
  LinearKind kind = LinearKind::kPlain;
  std::vector<int64_t> part_rows = {1};
  DType dtype = DType::kF32;
  DType activations = DType::kF32;
  Epilogue::Activation activation = Epilogue::Activation::kNone;
  NormSpec::Kind norm = NormSpec::Kind::kNone;
  bool has_bias = false;
  bool has_residual = false;  // Of the prologue.
  bool writes_residual_out = false;
  bool residual_out_aliases_x = false;
  bool has_epilogue_residual = false;
  bool epilogue_residual_aliases_out = false;
  NormSpec::Kind epilogue_norm = NormSpec::Kind::kNone;
  float scale = 1.0f;

  std::string ToString() const {
    std::string parts;
    for (int64_t rows : part_rows) absl::StrAppend(&parts, rows, " ");
    return absl::StrCat("tokens ", num_tokens, " cols ", cols, " rows ", parts,
                        DTypeName(dtype), " kind ", static_cast<int>(kind),
                        " activation ", static_cast<int>(activation), " norm ",
                        static_cast<int>(norm), " bias ", has_bias,
                        " residual ", has_residual, writes_residual_out,
                        residual_out_aliases_x, has_epilogue_residual,
                        epilogue_residual_aliases_out, " epilogue norm ",
                        static_cast<int>(epilogue_norm), " scale ", scale);
  }
};

struct LinearData {
  LinearCase c;
  int64_t rows = 0;
  int64_t out_cols = 0;
  std::vector<HostMatrix> parts;
  HostMatrix bias, x, residual, epilogue_residual;
  NormData norm, epilogue_norm;

  LinearData(const LinearCase& linear_case, SimulationRandom& random)
      : c(linear_case) {
    for (int64_t part_rows : c.part_rows) {
      parts.push_back(HostMatrix::Random(random, part_rows, c.cols, c.dtype));
      rows += part_rows;
    }
    const bool is_gated = IsGated(c.activation);
    out_cols = is_gated ? rows / 2 : rows;
    if (c.has_bias) bias = HostMatrix::Random(random, 1, rows, DType::kF32);
    x = HostMatrix::Random(random, c.num_tokens, c.cols, c.activations);
    if (c.has_residual) {
      residual =
          HostMatrix::Random(random, c.num_tokens, c.cols, c.activations);
    }
    if (c.has_epilogue_residual) {
      epilogue_residual =
          HostMatrix::Random(random, c.num_tokens, out_cols, c.activations);
    }
    norm = NormData::Random(random, c.norm, c.cols);
    epilogue_norm = NormData::Random(random, c.epilogue_norm, out_cols);
  }

  float weight(int64_t row, int64_t col) const {
    size_t part = 0;
    while (row >= parts[part].rows()) row -= parts[part++].rows();
    return parts[part].at(row, col);
  }
};

struct LinearResult {
  std::vector<float> out;
  std::vector<float> residual_out;
};

LinearResult RunLinear(Backend& backend, const LinearData& data) {
  const LinearCase& c = data.c;
  LinearSpec spec;
  spec.kind = c.kind;
  for (const HostMatrix& part : data.parts) {
    spec.parts.push_back({part.view(), QuantFormat::kDense});
  }
  spec.bias = data.bias.view();
  const auto weight = CheckOk(backend.PackLinear(spec));
  EXPECT_EQ(weight->rows, data.rows);
  EXPECT_EQ(weight->cols, c.cols);
  EXPECT_EQ(weight->kind, c.kind);
  const auto add = [&](int64_t cols) {
    return backend.AddActivation(cols, c.activations, ActivationRows::kTokens);
  };
  const int x = add(c.cols);
  const int residual = add(c.cols);
  const int residual_out = add(c.cols);
  const int epilogue_residual = add(data.out_cols);
  const int norm_input = add(data.out_cols);
  const int out = add(data.out_cols);

  Prologue prologue;
  prologue.norm = data.norm.Upload(backend);
  Epilogue epilogue;
  epilogue.activation = c.activation;
  epilogue.norm = data.epilogue_norm.Upload(backend);
  epilogue.scale = c.scale;
  LinearResult result;
  TokenStepOptions options;
  options.num_tokens = c.num_tokens;
  const auto view = [&backend](int id) { return backend.Activation(id); };
  RunTokenStep(
      backend, options,
      [&] {
        CopyIn(backend, data.x.values(), view(x));
        CopyIn(backend, data.residual.values(), view(residual));
        CopyIn(backend, data.epilogue_residual.values(),
               view(c.epilogue_residual_aliases_out ? out : epilogue_residual));
      },
      [&](Step& step) {
        if (c.has_residual) prologue.residual = view(residual);
        if (c.writes_residual_out) {
          prologue.residual_out =
              view(c.residual_out_aliases_x ? x : residual_out);
        }
        if (c.epilogue_norm != NormSpec::Kind::kNone) {
          epilogue.norm_input = view(norm_input);
        }
        if (c.has_epilogue_residual) {
          epilogue.residual =
              view(c.epilogue_residual_aliases_out ? out : epilogue_residual);
        }
        CheckOk(backend.Linear(step, view(x), prologue, *weight, epilogue,
                               view(out)));
        result.out = CopyOut(backend, view(out), c.num_tokens);
        if (c.writes_residual_out) {
          result.residual_out =
              CopyOut(backend, prologue.residual_out, c.num_tokens);
        }
      });
  return result;
}

// |activation(a) - activation(b)| <= slope * |a - b|: the slopes of silu and
// GELU, in both forms, stay below 1.13. Their own evaluation costs some 16
// roundings of numbers of magnitude |x| and 1 + |x|.
constexpr double kActivationSlope = 1.13;

double GeluTanh(double x) {
  return 0.5 * x *
         (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

double GeluErf(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2)); }

double Gate(Epilogue::Activation activation, double x) {
  switch (activation) {
    case Epilogue::Activation::kGeGlu:
      return GeluTanh(x);
    case Epilogue::Activation::kGeGluErf:
      return GeluErf(x);
    default:
      return x / (1 + std::exp(-x));
  }
}

// Bounds the error of every output. x' carries the error of the prologue;
// rounding it to bf16 moves an element by a whole step if the error straddles a
// rounding boundary; where the reference does not round it (f16), what a
// prologue made moves by one rounding. The dot product: cols + 2 f32 additions
// in any order (Higham 2002, section 3.1), with cols more for products that are
// rounded.
std::vector<double> LinearTolerance(const TestBackend& backend,
                                    const LinearData& data,
                                    const std::vector<float>& expected) {
  const LinearCase& c = data.c;
  std::vector<double> tolerance;
  for (int t = 0; t < c.num_tokens; ++t) {
    std::vector<double> x, x_error;
    data.norm.Expect(data.x, data.residual, t, &x, &x_error);
    for (int64_t col = 0; c.dtype == DType::kBF16 && col < c.cols; ++col) {
      const auto rounded = [](double value) {
        return static_cast<double>(
            Bf16ToFloat(FloatToBf16(static_cast<float>(value))));
      };
      x_error[col] =
          rounded(x[col] + x_error[col]) - rounded(x[col] - x_error[col]);
      x[col] = rounded(x[col]);
    }
    const bool has_prologue = c.norm != NormSpec::Kind::kNone ||
                              c.has_residual || c.writes_residual_out;
    for (int64_t col = 0;
         has_prologue && c.dtype == DType::kF16 && col < c.cols; ++col) {
      x_error[col] += backend.RoundingError(std::abs(x[col]) + x_error[col]);
    }
    std::vector<double> product(data.rows), error(data.rows);
    for (int64_t row = 0; row < data.rows; ++row) {
      double sum = data.bias.empty() ? 0.0 : data.bias.at(0, row);
      double magnitude = std::abs(sum);
      for (int64_t col = 0; col < c.cols; ++col) {
        const double w = data.weight(row, col);
        sum += x[col] * w;
        magnitude += std::abs(x[col] * w);
        error[row] += x_error[col] * std::abs(w);
      }
      product[row] = sum;
      error[row] += (2.0 * c.cols + 4) * kRoundoff * magnitude;
    }
    std::vector<double> activated(data.out_cols), bounds(data.out_cols);
    for (int64_t col = 0; col < data.out_cols; ++col) {
      const double a = std::abs(product[col]);
      const double gate = product[col];
      double bound = error[col];
      activated[col] = gate;
      switch (c.activation) {
        case Epilogue::Activation::kNone:
          break;
        case Epilogue::Activation::kRelu:
          activated[col] = std::max(gate, 0.0);
          break;
        case Epilogue::Activation::kGelu:
        case Epilogue::Activation::kGeluErf:
          activated[col] = c.activation == Epilogue::Activation::kGelu
                               ? GeluTanh(gate)
                               : GeluErf(gate);
          bound = kActivationSlope * bound + 16 * kRoundoff * (1 + a);
          break;
        case Epilogue::Activation::kSwiGlu:
        case Epilogue::Activation::kGeGlu:
        case Epilogue::Activation::kGeGluErf: {
          const double up = std::abs(product[data.out_cols + col]);
          const double up_error = error[data.out_cols + col];
          const double gate_error =
              kActivationSlope * bound + 16 * kRoundoff * (1 + a);
          bound = gate_error * (up + up_error) + a * up_error +
                  2 * kRoundoff * a * up;
          activated[col] =
              product[data.out_cols + col] * Gate(c.activation, gate);
          break;
        }
      }
      bounds[col] = bound;
    }
    for (int64_t col = 0; col < data.out_cols; ++col) {
      // norm_input is stored.
      if (c.epilogue_norm == NormSpec::Kind::kNone) break;
      bounds[col] +=
          backend.RoundingError(std::abs(activated[col]) + bounds[col]);
    }
    data.epilogue_norm.Propagate(activated, &bounds);
    for (int64_t col = 0; col < data.out_cols; ++col) {
      const double residual = data.epilogue_residual.empty()
                                  ? 0.0
                                  : data.epilogue_residual.at(t, col);
      const double value = expected[t * data.out_cols + col];
      tolerance.push_back(backend.Stored(
          value,
          bounds[col] * std::abs(c.scale) +
              3 * kRoundoff * (std::abs(value) + 2 * std::abs(residual))));
    }
  }
  return tolerance;
}

void CheckLinear(const TestBackend& test_backend, LinearCase c, uint64_t seed) {
  SimulationRandom random(seed);
  c.activations = test_backend.activations;
  c.dtype = test_backend.Weights(c.dtype);
  c.cols = test_backend.Cols(c.cols);
  if (c.kind == LinearKind::kGateUp ||
      c.epilogue_norm != NormSpec::Kind::kNone) {
    for (int64_t& rows : c.part_rows) rows = test_backend.Cols(rows);
  }
  const LinearData data(c, random);
  ReferenceBackend reference;
  const LinearResult expected = RunLinear(reference, data);
  const auto backend = test_backend.Make();
  const LinearResult got = RunLinear(*backend, data);
  ExpectNear(got.out, expected.out,
             LinearTolerance(test_backend, data, expected.out), c.ToString());
  // One addition, correctly rounded to f32 and to the activations' dtype on
  // both sides.
  EXPECT_EQ(got.residual_out, expected.residual_out) << c.ToString();
}

// On an emulated GPU every case takes milliseconds: few, around the edges of
// the tiles of the kernels for few and for many tokens.
void CheckCudaLinearShapes(const TestBackend& backend) {
  uint64_t seed = 50;
  for (int num_tokens : {0, 1, 9, 17, 64, 65, 130}) {
    for (const auto& [rows, cols] :
         {std::pair(1, 8), std::pair(37, 264), std::pair(129, 40)}) {
      LinearCase c;
      c.num_tokens = num_tokens;
      c.cols = cols;
      c.part_rows = {rows};
      c.has_bias = seed % 2 == 0;
      CheckLinear(backend, c, ++seed);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  LinearCase c;
  c.cols = 2816;
  c.part_rows = {19};
  CheckLinear(backend, c, ++seed);
}

TEST_P(BackendConformanceTest, LinearShapes) {
  if (GetParam().is_cuda()) return CheckCudaLinearShapes(GetParam());
  uint64_t seed = 100;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int num_tokens : {0, 1, 2, 3, 5, 8, 17, 33}) {
      for (int64_t cols : {1, 2, 31, 64, 127, 256}) {
        for (int64_t rows : {1, 16, 37, 65}) {
          LinearCase c;
          c.dtype = dtype;
          c.num_tokens = num_tokens;
          c.cols = cols;
          c.part_rows = {rows};
          c.has_bias = seed % 3 == 0;
          CheckLinear(GetParam(), c, ++seed);
          if (HasFatalFailure()) return;
        }
      }
    }
    LinearCase c;
    c.dtype = dtype;
    c.num_tokens = 7;
    c.cols = 1024;
    c.part_rows = {131};
    CheckLinear(GetParam(), c, ++seed);
    c.num_tokens = 1;
    c.cols = 2816;
    CheckLinear(GetParam(), c, ++seed);
  }
}

// Prompts: from what a few tokens' kernel computes to several tiles of the one
// for many, or to a library.
TEST_P(BackendConformanceTest, LinearOfManyTokens) {
  using Activation = Epilogue::Activation;
  uint64_t seed = 3000;
  for (const int num_tokens : {17, 63, 66, 129, 300}) {
    for (const LinearCase& features : std::vector<LinearCase>{
             {.cols = 72, .part_rows = {40}},
             {.cols = 16, .part_rows = {37}, .has_bias = true},
             {.cols = 64,
             .kind = LinearKind::kQkv,
             .part_rows = {32, 16, 16},
             .has_bias = true},
             {.cols = 40,
             .kind = LinearKind::kGateUp,
             .part_rows = {48, 48},
             .activation = Activation::kSwiGlu},
             {.cols = 24,
             .part_rows = {33},
             .activation = Activation::kGelu,
             .has_bias = true,
             .has_epilogue_residual = true},
             {.cols = 136,
             .part_rows = {24},
             .norm = NormSpec::Kind::kRms,
             .has_residual = true,
             .writes_residual_out = true,
             .has_epilogue_residual = true,
             .epilogue_residual_aliases_out = true,
             .scale = -0.37f}}) {
      LinearCase c = features;
      c.num_tokens = num_tokens;
      CheckLinear(GetParam(), c, ++seed);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(BackendConformanceTest, LinearFeatures) {
  SimulationRandom random(200);
  using Activation = Epilogue::Activation;
  for (int trial = 0; trial < 400; ++trial) {
    LinearCase c;
    c.num_tokens = random.Between(1, 9);
    c.cols = random.Below(2) == 0 ? 32 * random.Between(1, 4)
                                  : random.Between(1, 80);
    const int64_t rows = random.Between(1, 40);
    switch (random.Below(3)) {
      case 0:
        c.kind = LinearKind::kPlain;
        c.part_rows = {rows};
        c.activation = std::vector<Activation>{
            Activation::kNone, Activation::kGelu, Activation::kRelu,
            Activation::kGeluErf}[random.Below(4)];
        break;
      case 1:
        c.kind = LinearKind::kQkv;
        c.part_rows = {rows, random.Between(1, 20), random.Between(1, 20)};
        break;
      default:
        c.kind = LinearKind::kGateUp;
        c.part_rows = {rows, rows};
        c.activation =
            std::vector<Activation>{Activation::kSwiGlu, Activation::kGeGlu,
                                    Activation::kGeGluErf}[random.Below(3)];
    }
    c.dtype = std::vector<DType>{DType::kF32, DType::kF16,
                                 DType::kBF16}[random.Below(3)];
    c.norm = static_cast<NormSpec::Kind>(random.Below(3));
    c.has_bias = random.Below(2) == 0;
    c.has_residual = random.Below(2) == 0;
    c.writes_residual_out = random.Below(2) == 0;
    c.residual_out_aliases_x = random.Below(2) == 0;
    c.has_epilogue_residual = random.Below(2) == 0;
    c.epilogue_residual_aliases_out = random.Below(2) == 0;
    c.epilogue_norm = static_cast<NormSpec::Kind>(random.Below(3));
    if (random.Below(2) == 0) c.scale = -0.37f;
    CheckLinear(GetParam(), c, 1000 + trial);
    if (HasFatalFailure()) return;
  }
}

// ---------------------------------------------------------------- Norm

TEST_P(BackendConformanceTest, Norm) {
  SimulationRandom random(300);
  for (NormSpec::Kind kind :
       {NormSpec::Kind::kNone, NormSpec::Kind::kRms, NormSpec::Kind::kLayer}) {
    for (int num_tokens : {0, 1, 3, 13}) {
      for (int64_t case_cols : {1, 2, 15, 16, 17, 64, 131, 1024}) {
        const int64_t cols = GetParam().Cols(case_cols);
        const DType activations = GetParam().activations;
        const bool has_residual = random.Below(2) == 0;
        const bool in_place = random.Below(2) == 0;
        const HostMatrix x =
            HostMatrix::Random(random, num_tokens, cols, activations, 3.0);
        const HostMatrix residual =
            has_residual
                ? HostMatrix::Random(random, num_tokens, cols, activations)
                : HostMatrix();
        const NormData norm = NormData::Random(random, kind, cols);
        const auto run = [&](Backend& backend) {
          const auto add = [&] {
            return backend.AddActivation(cols, activations,
                                         ActivationRows::kTokens);
          };
          const int x_id = add(), residual_id = add(), out_id = add();
          Prologue prologue;
          prologue.norm = norm.Upload(backend);
          std::vector<float> result;
          TokenStepOptions options;
          options.num_tokens = num_tokens;
          RunTokenStep(
              backend, options,
              [&] {
                CopyIn(backend, x.values(), backend.Activation(x_id));
                CopyIn(backend, residual.values(),
                       backend.Activation(residual_id));
              },
              [&](Step& step) {
                if (has_residual) {
                  prologue.residual = backend.Activation(residual_id);
                }
                const TensorView out =
                    backend.Activation(in_place ? x_id : out_id);
                CheckOk(backend.Norm(step, backend.Activation(x_id), prologue,
                                     out));
                result = CopyOut(backend, out, num_tokens);
              });
          return result;
        };
        ReferenceBackend reference;
        const auto backend = GetParam().Make();
        std::vector<double> tolerance;
        for (int t = 0; t < num_tokens; ++t) {
          std::vector<double> value, error;
          norm.Expect(x, residual, t, &value, &error);
          tolerance.insert(tolerance.end(), error.begin(), error.end());
        }
        const std::vector<float> expected = run(reference);
        for (size_t i = 0; i < tolerance.size(); ++i) {
          tolerance[i] = GetParam().Stored(
              expected[i], tolerance[i] + kRoundoff * std::abs(expected[i]));
        }
        ExpectNear(run(*backend), expected, tolerance,
                   absl::StrCat("kind ", static_cast<int>(kind), " [",
                                num_tokens, ", ", cols, "]"));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// ---------------------------------------------------------------- Logits

TEST_P(BackendConformanceTest, Logits) {
  SimulationRandom random(500);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t cols = GetParam().Cols(random.Between(1, 100));
    const int vocab_size = random.Between(1, trial % 10 == 0 ? 9000 : 300);
    const int num_tokens = random.Between(1, 12);
    const int num_logits = random.Between(1, num_tokens);
    const DType dtype = GetParam().Weights(std::vector<DType>{
        DType::kF32, DType::kF16, DType::kBF16}[random.Below(3)]);
    const DType activations = GetParam().activations;
    const float scale = random.Below(2) == 0 ? 1.0f : 0.37f;
    const float softcap = random.Below(2) == 0 ? 0.0f : 5.0f;
    const NormData norm = NormData::Random(
        random, static_cast<NormSpec::Kind>(random.Below(2)), cols);
    const HostMatrix x =
        HostMatrix::Random(random, num_tokens, cols, activations);
    const HostMatrix table =
        HostMatrix::Random(random, vocab_size, cols, dtype);
    TokenStepOptions options;
    options.num_tokens = num_tokens;
    options.num_logits = num_logits;
    options.vocab_size = vocab_size;
    const auto run = [&](Backend& backend) {
      LinearSpec spec;
      spec.kind = LinearKind::kVocab;
      spec.parts = {{table.view(), QuantFormat::kDense}};
      const auto weight = CheckOk(backend.PackLinear(spec));
      const int hidden =
          backend.AddActivation(cols, activations, ActivationRows::kTokens);
      const int out = backend.AddActivation(vocab_size, DType::kF32,
                                            ActivationRows::kLogitRows);
      const int gathered =
          backend.AddActivation(cols, activations, ActivationRows::kLogitRows);
      Prologue prologue;
      prologue.norm = norm.Upload(backend);
      std::vector<float> result;
      RunTokenStep(
          backend, options,
          [&] { CopyIn(backend, x.values(), backend.Activation(hidden)); },
          [&](Step& step) {
            CheckOk(backend.Logits(step, backend.Activation(hidden), prologue,
                                   *weight, scale, softcap,
                                   backend.Activation(out)));
            CheckOk(backend.GatherLogitRows(step, backend.Activation(hidden),
                                            backend.Activation(gathered)));
            result = CopyOut(backend, backend.Activation(out), num_logits);
            const std::vector<float> rows =
                CopyOut(backend, backend.Activation(gathered), num_logits);
            for (size_t i = 0; i < rows.size(); ++i) {
              ASSERT_EQ(rows[i],
                        static_cast<float>(x.at(
                            num_tokens - num_logits + i / cols, i % cols)));
            }
          });
      return result;
    };
    ReferenceBackend reference;
    const auto backend = GetParam().Make();
    const std::vector<float> expected = run(reference);
    std::vector<double> tolerance;
    for (int i = 0; i < num_logits; ++i) {
      const int64_t t = num_tokens - num_logits + i;
      std::vector<double> value, error;
      norm.Expect(x, HostMatrix(), t, &value, &error);
      for (int64_t id = 0; id < vocab_size; ++id) {
        double bound = 0.0;
        for (int64_t col = 0; col < cols; ++col) {
          const double w = std::abs(table.at(id, col));
          double x_error = error[col];
          if (dtype == DType::kF16) {
            x_error += GetParam().RoundingError(std::abs(value[col]) + x_error);
          }
          if (dtype == DType::kBF16) {
            const auto rounded = [](double v) {
              return static_cast<double>(
                  Bf16ToFloat(FloatToBf16(static_cast<float>(v))));
            };
            x_error =
                rounded(value[col] + x_error) - rounded(value[col] - x_error);
          }
          // 1.01: x' after rounding to bf16.
          bound += w * (x_error + (2.0 * cols + 4) * kRoundoff * 1.01 *
                                      std::abs(value[col]));
        }
        // tanh has slope 1 at most and an absolute error of a few roundings.
        tolerance.push_back(bound * scale + 8 * kRoundoff * softcap +
                            2 * kRoundoff *
                                std::abs(expected[i * vocab_size + id]));
      }
    }
    ExpectNear(run(*backend), expected, tolerance,
               absl::StrCat("trial ", trial));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace quire
