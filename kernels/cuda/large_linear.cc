#include "kernels/cuda/large_linear.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/random.h"
#include "engine/base/status.h"
#include "engine/base/warning.h"

namespace quire::cuda {
namespace {

// Rows of a chunk come in these units: whole tiles of the library's kernels.
constexpr int64_t kChunkUnit = 256;
// NVIDIA's advice for Hopper and newer; older GPUs need a few MiB at most
// (cuBLAS documentation, cublasSetWorkspace).
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int64_t kOldWorkspaceBytes = int64_t{8} << 20;
// Algorithms to measure for a shape and a number of tokens.
constexpr int kNumCandidates = 6;
// Weights of a shape that are read in turn where memory decides, as a step
// does: several times what a second-level cache holds (126 MiB on a B200), or
// they would come from there.
constexpr int64_t kMeasuredBytes = int64_t{256} << 20;
// What the library has to be faster by to be worth other bits: less is within
// the spread of such measurements.
constexpr double kLeastGain = 0.02;

// Counts of tokens for which algorithms are chosen: 32, 64, ...
constexpr int64_t kLeastBucket = 32;
static_assert(LargeLinear::kFewestTokens == kLeastBucket / 2 + 1);
static_assert(LargeLinear::kFewestTokens > kMaxNormTokens);
int64_t BucketOf(int64_t num_tokens, int64_t max_tokens) {
  const int64_t bucket = std::bit_ceil(
      static_cast<uint64_t>(std::max<int64_t>(num_tokens, kLeastBucket)));
  return std::min(bucket,
                  std::max<int64_t>(max_tokens, LargeLinear::kFewestTokens));
}
// All of them, from `fewest` tokens on.
std::vector<int64_t> BucketsFrom(int64_t fewest, int64_t max_tokens) {
  std::vector<int64_t> buckets;
  for (int64_t tokens = fewest; tokens <= max_tokens;
       tokens = buckets.back() + 1) {
    buckets.push_back(BucketOf(tokens, max_tokens));
  }
  return buckets;
}

// What cannot be a product with a scale and a residual.
bool HasF32Sums(const LinearEpilogue& epilogue) {
  return epilogue.bias != nullptr || epilogue.softcap > 0 ||
         epilogue.is_out_f32 || epilogue.activation != LinearActivation::kNone;
}

QuantizedWeight DenseWeight(const void* weight) {
  return {.format = QuantFormat::kDense,
          .data = static_cast<const uint8_t*>(weight)};
}

}  // namespace

bool LargeLinear::Shape::IsSame(const Shape& other) const {
  return dtype == other.dtype && is_fp8 == other.is_fp8 &&
         group_size == other.group_size && rows == other.rows &&
         cols == other.cols && is_vocab == other.is_vocab &&
         is_gated == other.is_gated && has_f32_sums == other.has_f32_sums;
}

std::string LargeLinear::LibraryName() const {
  if (library_ == nullptr) return "";
  return absl::StrCat(library_->name(),
                      library_->TakesFp8(MatrixScales::kBlocks) ? " with fp8"
                      : library_->TakesFp8(MatrixScales::kNone)
                          ? " with fp8 but in blocks"
                          : "");
}

void LargeLinear::Add(Shape shape, const QuantizedWeight& weight) {
  for (Shape& known : shapes_) {
    if (!known.IsSame(shape)) continue;
    const int64_t num_bytes = static_cast<int64_t>(known.weights.size()) *
                              shape.rows * shape.cols * shape.element_bytes();
    if (num_bytes < kMeasuredBytes) known.weights.push_back(weight);
    return;
  }
  shape.weights = {weight};
  shapes_.push_back(std::move(shape));
}

void LargeLinear::AddWeight(DType dtype, int64_t rows, int64_t cols,
                            const void* weight, bool is_vocab, bool is_gated,
                            bool has_f32_sums) {
  if (library_ == nullptr) return;
  Shape shape;
  shape.dtype = dtype;
  shape.rows = rows;
  shape.cols = cols;
  shape.is_vocab = is_vocab;
  shape.is_gated = is_gated;
  shape.has_f32_sums = has_f32_sums;
  Add(std::move(shape), DenseWeight(weight));
}

void LargeLinear::AddFp8Weight(DType dtype, int64_t rows, int64_t cols,
                               const QuantizedWeight& weight, bool is_gated,
                               bool has_f32_sums) {
  if (library_ == nullptr) return;
  Shape shape;
  shape.dtype = dtype;
  shape.is_fp8 = true;
  shape.group_size = weight.group_size;
  shape.rows = rows;
  shape.cols = cols;
  shape.is_gated = is_gated;
  const MatrixScales scales =
      weight.group_size > 0 ? MatrixScales::kBlocks : MatrixScales::kRows;
  if (library_->TakesFp8(scales)) {
    shape.scales = scales;
  } else if (weight.group_size > 0 ||
             !library_->TakesFp8(MatrixScales::kNone)) {
    return;
  }
  shape.has_f32_sums = has_f32_sums || shape.finishes_scales();
  Add(std::move(shape), weight);
}

// Rows whose sums are computed at a time.
int64_t LargeLinear::ChunkRows(int64_t rows, int64_t bucket) const {
  const int64_t most = std::max<int64_t>(
      max_sums_bytes_ / 4 / bucket / kChunkUnit * kChunkUnit, kChunkUnit);
  const int64_t num_chunks = (rows + most - 1) / most;
  const int64_t even = (rows + num_chunks - 1) / num_chunks;
  return (even + kChunkUnit - 1) / kChunkUnit * kChunkUnit;
}

MatrixProblem LargeLinear::ProblemOf(const Shape& shape, int64_t num_tokens,
                                     int64_t num_rows) const {
  MatrixProblem problem;
  problem.dtype = shape.is_fp8 ? DType::kF8E4M3 : shape.dtype;
  problem.scales = shape.scales;
  problem.out_dtype = shape.has_f32_sums ? DType::kF32 : shape.dtype;
  problem.num_tokens = num_tokens;
  problem.rows = num_rows;
  problem.cols = problem.x_stride = shape.cols;
  problem.out_stride =
      shape.has_f32_sums && !shape.is_vocab
          ? ChunkRows(shape.rows, BucketOf(num_tokens, shape.max_tokens))
          : shape.rows;
  return problem;
}

bool LargeLinear::SupportsAll(const Shape& shape, int64_t num_tokens,
                              const MatrixAlgorithm& algorithm) {
  const int64_t chunk = ProblemOf(shape, num_tokens, 0).out_stride;
  for (int64_t first = 0; first < shape.rows; first += chunk) {
    const int64_t num_rows = std::min(chunk, shape.rows - first);
    MatrixProblem problem = ProblemOf(shape, num_tokens, num_rows);
    if (!library_->Supports(problem, algorithm, workspace_bytes_)) return false;
    if (shape.has_f32_sums) continue;
    problem.residual_stride = shape.rows;
    if (!library_->Supports(problem, algorithm, workspace_bytes_)) return false;
  }
  return true;
}

// Chooses for exactly `num_tokens`.
void LargeLinear::Measure(Shape& shape, int64_t num_tokens,
                          const MatrixOperands& operands, bool can_measure) {
  const int64_t chunk = ProblemOf(shape, num_tokens, 0).out_stride;
  const MatrixProblem problem =
      ProblemOf(shape, num_tokens, std::min(chunk, shape.rows));
  int16_t& choice = shape.choices[num_tokens];
  choice = kOwn;
  double least = 0;
  for (const MatrixAlgorithm& algorithm : library_->FindAlgorithms(
           problem, workspace_bytes_, can_measure ? kNumCandidates : 1)) {
    if (!SupportsAll(shape, num_tokens, algorithm)) continue;
    if (can_measure) {
      const absl::StatusOr<double> seconds = library_->MeasureProduct(
          problem, algorithm, operands, device_.stream());
      // One that refuses to run is none.
      if (!seconds.ok() || (choice >= 0 && *seconds >= least)) continue;
      if (!shape.has_f32_sums) {
        // Another kernel than without a residual, which is loaded here and not
        // in a step.
        MatrixProblem added = problem;
        MatrixOperands with_residual = operands;
        added.residual_stride = added.out_stride;
        with_residual.residual = operands.out;
        if (!library_
                 ->Multiply(added, algorithm, with_residual, device_.stream())
                 .ok()) {
          continue;
        }
      }
      least = *seconds;
    } else if (choice >= 0) {
      continue;
    }
    if (choice < 0) {
      choice = static_cast<int16_t>(shape.algorithms.size());
      shape.algorithms.emplace_back();
    }
    shape.algorithms[choice] = algorithm;
  }
}

// Seconds of the linear layers with the shape's weights, each from its x to its
// finished output: by the library's algorithm or, if null, by our kernel. As
// they run in a step: from memory, and in a graph, as a host that enqueues
// would be measured otherwise.
absl::StatusOr<double> LargeLinear::MeasureLayers(
    const Shape& shape, QuantizedLinearArguments arguments,
    const MatrixAlgorithm* algorithm) {
  const auto launch = [&] {
    return algorithm == nullptr ? LaunchOwn(arguments)
                                : LaunchLibrary(arguments, shape, *algorithm);
  };
  // What has to be loaded for it is, now and not in a capture. Without a
  // residual the library has another kernel.
  LinearEpilogue& epilogue = arguments.linear.epilogue;
  const auto residual = std::exchange(epilogue.residual, nullptr);
  arguments.weight = shape.weights[0];
  QUIRE_RETURN_IF_ERROR(launch());
  epilogue.residual = residual;
  QUIRE_RETURN_IF_ERROR(launch());
  const auto enqueue = [&] {
    for (const QuantizedWeight& weight : shape.weights) {
      arguments.weight = weight;
      QUIRE_RETURN_IF_ERROR(launch());
    }
    return absl::OkStatus();
  };
  QUIRE_RETURN_IF_ERROR(device_.BeginCapture());
  const absl::Status enqueued = enqueue();
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Graph> graph,
                         device_.EndCapture());
  QUIRE_RETURN_IF_ERROR(enqueued);
  return library_->MeasureSeconds([&] { return device_.Launch(*graph); },
                                  device_.stream());
}

// Whether the library computes layers of exactly `num_tokens` tokens faster
// than our kernel, which is chosen: then it is.
//   operands: for any shape.
bool LargeLinear::ChooseOverOwn(Shape& shape, int64_t num_tokens,
                                const LayerOperands& operands) {
  QuantizedLinearArguments layer;
  LinearArguments& arguments = layer.linear;
  arguments.dtype = shape.dtype;
  arguments.x = operands.x;
  arguments.x_stride = shape.cols;
  arguments.out = operands.out;
  arguments.out_stride = shape.is_gated ? shape.rows / 2 : shape.rows;
  arguments.num_tokens = static_cast<int>(num_tokens);
  arguments.rows = static_cast<int>(shape.rows);
  arguments.cols = static_cast<int>(shape.cols);
  arguments.epilogue.is_out_f32 = shape.is_vocab;
  if (shape.is_gated) {
    arguments.epilogue.activation = LinearActivation::kSwiGlu;
  }
  if (!shape.has_f32_sums) {
    arguments.epilogue.residual = static_cast<const uint16_t*>(operands.out);
    arguments.epilogue.residual_stride = arguments.out_stride;
  }
  if (shape.is_fp8) {
    layer.x_fp8 = operands.x_fp8;
    layer.x_scales = operands.x_scales;
    if (!LaunchQuantizeRows({.dtype = shape.dtype,
                             .x = operands.x,
                             .x_stride = shape.cols,
                             .out = operands.x_fp8,
                             .scales = operands.x_scales,
                             .group_size = shape.group_size,
                             .num_tokens = arguments.num_tokens,
                             .cols = arguments.cols},
                            device_.stream())) {
      return false;
    }
  }
  const int64_t chunk = ProblemOf(shape, num_tokens, 0).out_stride;
  const std::vector<MatrixAlgorithm> algorithms = library_->FindAlgorithms(
      ProblemOf(shape, num_tokens, std::min(chunk, shape.rows)),
      workspace_bytes_, kNumCandidates);
  if (algorithms.empty() && shape.is_fp8) {
    WarnRefused(shape, num_tokens, "it knows no algorithm");
  }
  const absl::StatusOr<double> own = MeasureLayers(shape, layer, nullptr);
  if (!own.ok()) return false;
  double least = *own * (1 - kLeastGain);
  int16_t& choice = shape.choices[num_tokens];
  for (const MatrixAlgorithm& algorithm : algorithms) {
    if (!SupportsAll(shape, num_tokens, algorithm)) continue;
    const absl::StatusOr<double> seconds =
        MeasureLayers(shape, layer, &algorithm);
    // One that refuses to run is none.
    if (!seconds.ok() || *seconds >= least) continue;
    least = *seconds;
    if (choice < 0) {
      choice = static_cast<int16_t>(shape.algorithms.size());
      shape.algorithms.emplace_back();
    }
    shape.algorithms[choice] = algorithm;
  }
  return choice >= 0;
}

// With scales of blocks the library takes tokens by fours.
int64_t LargeLinear::MaxTokens(const Shape& shape, int max_num_tokens,
                               int max_logit_rows) {
  if (shape.is_vocab) return max_logit_rows;
  return shape.scales == MatrixScales::kBlocks ? max_num_tokens / 4 * 4
                                               : max_num_tokens;
}

LargeLinear::Sizes LargeLinear::SizesOf(int max_num_tokens,
                                        int max_logit_rows) const {
  Sizes sizes;
  for (const Shape& shape : shapes_) {
    const int64_t max_tokens = MaxTokens(shape, max_num_tokens, max_logit_rows);
    if (max_tokens < shape.fewest_tokens()) continue;
    sizes.x_bytes = std::max(sizes.x_bytes, max_tokens * shape.cols * 2);
    if (shape.is_fp8) {
      sizes.fp8_bytes = std::max(sizes.fp8_bytes, max_tokens * shape.cols);
      sizes.x_scales_bytes =
          std::max(sizes.x_scales_bytes, max_tokens * shape.num_blocks() * 4);
      sizes.out_bytes = std::max(sizes.out_bytes, max_tokens * shape.rows * 2);
    }
    if (shape.scales == MatrixScales::kBlocks) {
      sizes.weight_scales_bytes = std::max(sizes.weight_scales_bytes,
                                           shape.num_blocks() * shape.rows * 4);
    }
    if (shape.is_vocab || !shape.has_f32_sums) {
      sizes.out_bytes =
          std::max(sizes.out_bytes,
                   max_tokens * shape.rows * (shape.has_f32_sums ? 4 : 2));
      continue;
    }
    // What follows the sums is measured up to here only.
    sizes.out_bytes = std::max(
        sizes.out_bytes,
        std::min<int64_t>(max_tokens, kMaxSkinnyTokens) * shape.rows * 2);
    for (const int64_t bucket :
         BucketsFrom(shape.fewest_tokens(), max_tokens)) {
      sizes.sums_bytes = std::max(sizes.sums_bytes,
                                  bucket * ChunkRows(shape.rows, bucket) * 4);
    }
  }
  if (sizes.x_bytes > 0) {
    sizes.workspace_bytes =
        device_.properties().major >= 9 ? kWorkspaceBytes : kOldWorkspaceBytes;
  }
  return sizes;
}

int64_t LargeLinear::PlannedBytes(int max_num_tokens,
                                  int max_logit_rows) const {
  const Sizes sizes = SizesOf(max_num_tokens, max_logit_rows);
  return sizes.workspace_bytes + sizes.sums_bytes + sizes.weight_scales_bytes;
}

absl::Status LargeLinear::Prepare(int max_num_tokens, int max_logit_rows,
                                  int64_t* num_bytes) {
  const Sizes sizes = SizesOf(max_num_tokens, max_logit_rows);
  if (sizes.x_bytes == 0) return absl::OkStatus();
  for (Shape& shape : shapes_) {
    shape.max_tokens = MaxTokens(shape, max_num_tokens, max_logit_rows);
    if (shape.max_tokens < shape.fewest_tokens()) continue;
    shape.choices.assign(shape.max_tokens + 1, kUnknown);
  }
  const int64_t x_bytes = sizes.x_bytes, out_bytes = sizes.out_bytes;
  workspace_bytes_ = sizes.workspace_bytes;
  QUIRE_ASSIGN_OR_RETURN(workspace_,
                         DeviceBuffer::Create(device_, workspace_bytes_));
  *num_bytes += workspace_.num_bytes();
  if (sizes.sums_bytes > 0) {
    QUIRE_ASSIGN_OR_RETURN(sums_,
                           DeviceBuffer::Create(device_, sizes.sums_bytes));
    *num_bytes += sums_.num_bytes();
  }
  if (sizes.weight_scales_bytes > 0) {
    QUIRE_ASSIGN_OR_RETURN(
        weight_scales_,
        DeviceBuffer::Create(device_, sizes.weight_scales_bytes));
    *num_bytes += weight_scales_.num_bytes();
  }

  // To measure with, and given back before anything else is allocated. Without
  // the memory, the skinny kernel and the library's first choice must do.
  auto x = DeviceBuffer::Create(device_, x_bytes);
  auto out = DeviceBuffer::Create(device_, std::max<int64_t>(out_bytes, 16));
  auto x_fp8 =
      DeviceBuffer::Create(device_, std::max<int64_t>(sizes.fp8_bytes, 16));
  auto x_scales = DeviceBuffer::Create(
      device_, std::max<int64_t>(sizes.x_scales_bytes, 16));
  const bool can_measure =
      measures_ && x.ok() && out.ok() && x_fp8.ok() && x_scales.ok();
  LayerOperands layers;
  MatrixOperands operands;
  operands.workspace = workspace_.data();
  operands.workspace_bytes = workspace_bytes_;
  if (can_measure) {
    // Products of zeros draw less power and run faster than any others.
    std::vector<uint16_t> values(1 << 20);
    SimulationRandom random(1);
    for (uint16_t& value : values) {
      value = FloatToHalf(static_cast<float>(random.Uniform() * 2 - 1));
    }
    const int64_t piece = static_cast<int64_t>(values.size()) * 2;
    for (int64_t first = 0; first < x_bytes; first += piece) {
      QUIRE_RETURN_IF_ERROR(device_.CopyToDevice(
          x->data() + first, values.data(), std::min(piece, x_bytes - first)));
    }
    QUIRE_RETURN_IF_ERROR(device_.Synchronize());
    operands.x = x->data();
    layers = {.x = x->data<const uint16_t>(),
              .out = out->data(),
              .x_fp8 = x_fp8->data<uint8_t>(),
              .x_scales = x_scales->data<float>()};
  }
  for (Shape& shape : shapes_) {
    if (shape.choices.empty()) continue;
    if (shape.is_fp8 && can_measure) {
      for (const int64_t bucket :
           BucketsFrom(shape.fewest_tokens(), shape.max_tokens)) {
        shape.choices[bucket] = kOwn;
        ChooseOverOwn(shape, bucket, layers);
      }
      continue;
    }
    operands.weight = shape.weights[0].data;
    operands.out = shape.has_f32_sums && !shape.is_vocab ? sums_.data()
                   : can_measure                         ? out->data()
                                                         : nullptr;
    for (const int64_t bucket :
         BucketsFrom(kMaxSkinnyTokens + 1, shape.max_tokens)) {
      Measure(shape, bucket, operands, can_measure);
    }
    if (shape.is_fp8) continue;
    const std::vector<int64_t> skinny = BucketsFrom(
        kFewestTokens, std::min<int64_t>(shape.max_tokens, kMaxSkinnyTokens));
    for (const int64_t bucket : skinny) shape.choices[bucket] = kOwn;
    if (!can_measure) continue;
    // From above: fewer tokens only help the skinny kernel.
    for (auto bucket = skinny.rbegin();
         bucket != skinny.rend() && ChooseOverOwn(shape, *bucket, layers);
         ++bucket) {
    }
  }
  num_library_launches_ = num_tiled_launches_ = 0;
  return device_.Synchronize();
}

int16_t& LargeLinear::Choose(Shape& shape, int64_t num_tokens) {
  int16_t& choice = shape.choices[num_tokens];
  if (choice != kUnknown) return choice;
  choice = shape.choices[BucketOf(num_tokens, shape.max_tokens)];
  if (choice >= 0 &&
      !SupportsAll(shape, num_tokens, shape.algorithms[choice])) {
    if (num_tokens <= kMaxSkinnyTokens) {
      choice = kOwn;
    } else {
      Measure(shape, num_tokens, {}, /*can_measure=*/false);
    }
  }
  return choice;
}

LargeLinear::Shape* LargeLinear::FindShape(
    const QuantizedLinearArguments& layer) {
  const LinearArguments& arguments = layer.linear;
  Shape wanted;
  wanted.dtype = arguments.dtype;
  wanted.is_fp8 = layer.weight.format == QuantFormat::kFp8;
  wanted.group_size = layer.weight.group_size;
  wanted.rows = arguments.rows;
  wanted.cols = arguments.cols;
  wanted.is_vocab = arguments.epilogue.is_out_f32;
  wanted.is_gated = IsGated(arguments.epilogue.activation);
  for (Shape& shape : shapes_) {
    wanted.has_f32_sums =
        shape.finishes_scales() || HasF32Sums(arguments.epilogue);
    if (shape.IsSame(wanted) && arguments.num_tokens <= shape.max_tokens &&
        !shape.choices.empty() &&
        // As measured; nothing else occurs.
        (shape.is_fp8 || arguments.x_stride == shape.cols) &&
        (!shape.is_vocab || arguments.out_stride == shape.rows)) {
      return &shape;
    }
  }
  return nullptr;
}

absl::Status LargeLinear::LaunchOwn(const QuantizedLinearArguments& arguments) {
  const simt::Stream stream = device_.stream();
  LinearArguments linear = arguments.linear;
  if (arguments.weight.format != QuantFormat::kFp8) {
    linear.weight = reinterpret_cast<const uint16_t*>(arguments.weight.data);
    if (linear.num_tokens <= kMaxSkinnyTokens) {
      return LaunchSkinnyLinear(linear, stream) ? absl::OkStatus()
                                                : device_.LaunchError("Linear");
    }
  }
  ++num_tiled_launches_;
  return (arguments.weight.format == QuantFormat::kFp8
              ? LaunchTiledFp8Linear(arguments, stream)
              : LaunchTiledLinear(linear, stream))
             ? absl::OkStatus()
             : device_.LaunchError("TiledLinear");
}

// What the library multiplies rows [first_row, first_row + num_rows) by.
absl::Status LargeLinear::SetScales(const QuantizedLinearArguments& arguments,
                                    const Shape& shape, int64_t first_row,
                                    int64_t num_rows,
                                    MatrixOperands* operands) {
  if (shape.scales == MatrixScales::kNone) return absl::OkStatus();
  const auto* scales = static_cast<const float*>(arguments.weight.scales);
  operands->x_scales = arguments.x_scales;
  operands->weight_scales = scales + first_row;
  if (shape.scales == MatrixScales::kRows) return absl::OkStatus();
  operands->weight_scales = weight_scales_.data<const float>();
  return LaunchSpreadScales({.scales = scales,
                             .scale_stride = arguments.weight.scale_stride,
                             .first_row = static_cast<int>(first_row),
                             .num_rows = static_cast<int>(num_rows),
                             .num_blocks = static_cast<int>(shape.num_blocks()),
                             .out = weight_scales_.data<float>()},
                            device_.stream())
             ? absl::OkStatus()
             : device_.LaunchError("SpreadScales");
}

absl::Status LargeLinear::LaunchLibrary(const QuantizedLinearArguments& layer,
                                        const Shape& shape,
                                        const MatrixAlgorithm& algorithm) {
  const LinearArguments& arguments = layer.linear;
  MatrixProblem problem =
      ProblemOf(shape, arguments.num_tokens, arguments.rows);
  MatrixOperands operands;
  operands.weight = layer.weight.data;
  operands.x = arguments.x;
  if (shape.is_fp8) operands.x = layer.x_fp8;
  operands.workspace = workspace_.data();
  operands.workspace_bytes = workspace_bytes_;
  if (!shape.has_f32_sums) {
    problem.out_stride = arguments.out_stride;
    operands.alpha = arguments.epilogue.scale;
    operands.out = arguments.out;
    operands.residual = arguments.epilogue.residual;
    if (operands.residual != nullptr) {
      problem.residual_stride = arguments.epilogue.residual_stride;
    }
    QUIRE_RETURN_IF_ERROR(
        SetScales(layer, shape, 0, arguments.rows, &operands));
    QUIRE_RETURN_IF_ERROR(
        library_->Multiply(problem, algorithm, operands, device_.stream()));
    ++num_library_launches_;
    return absl::OkStatus();
  }
  const int64_t chunk = problem.out_stride;
  for (int64_t first = 0; first < arguments.rows; first += chunk) {
    problem.rows = std::min<int64_t>(chunk, arguments.rows - first);
    operands.weight =
        layer.weight.data + first * arguments.cols * shape.element_bytes();
    QUIRE_RETURN_IF_ERROR(
        SetScales(layer, shape, first, problem.rows, &operands));
    operands.out = shape.is_vocab ? arguments.out : sums_.data<void>();
    const LinearEpilogue& epilogue = arguments.epilogue;
    const bool is_finished = shape.is_vocab && epilogue.bias == nullptr &&
                             epilogue.softcap == 0 &&
                             epilogue.activation == LinearActivation::kNone;
    if (is_finished) operands.alpha = epilogue.scale;
    QUIRE_RETURN_IF_ERROR(
        library_->Multiply(problem, algorithm, operands, device_.stream()));
    if (first == 0) ++num_library_launches_;
    if (is_finished) continue;
    SumsToFinish sums = {.sums = static_cast<const float*>(operands.out),
                         .stride = chunk,
                         .first_row = static_cast<int>(first),
                         .num_rows = static_cast<int>(problem.rows)};
    if (shape.finishes_scales()) {
      sums.x_scales = layer.x_scales;
      sums.row_scales = static_cast<const float*>(layer.weight.scales);
    }
    if (!LaunchFinishLinear(arguments, sums, device_.stream())) {
      return device_.LaunchError("FinishLinear");
    }
  }
  return absl::OkStatus();
}

void LargeLinear::WarnRefused(Shape& shape, int64_t num_tokens,
                              absl::string_view why) {
  if (!shape.was_refused) {
    Warn(absl::StrCat(library_->name(), " refuses [", num_tokens, ", ",
                      shape.cols, "] x [", shape.rows, ", ", shape.cols, "] ",
                      shape.is_fp8 ? "in fp8 " : "", "(", why,
                      "): an own kernel that is slower computes it"));
  }
  shape.was_refused = true;
}

absl::Status LargeLinear::Launch(const LinearArguments& arguments) {
  return LaunchChosen(
      {.linear = arguments, .weight = DenseWeight(arguments.weight)});
}

absl::Status LargeLinear::LaunchFp8(const QuantizedLinearArguments& arguments) {
  return LaunchChosen(arguments);
}

absl::Status LargeLinear::LaunchChosen(
    const QuantizedLinearArguments& arguments) {
  Shape* shape = library_ == nullptr ? nullptr : FindShape(arguments);
  if (shape == nullptr) return LaunchOwn(arguments);
  int16_t& choice = Choose(*shape, arguments.linear.num_tokens);
  if (choice < 0) return LaunchOwn(arguments);
  const int64_t num_before = num_library_launches_;
  const absl::Status status =
      LaunchLibrary(arguments, *shape, shape->algorithms[choice]);
  // Once the library has taken a part, another kernel could not begin again:
  // out may be the residual.
  if (status.ok() || num_library_launches_ > num_before) return status;
  WarnRefused(*shape, arguments.linear.num_tokens, status.message());
  choice = kOwn;
  return LaunchOwn(arguments);
}

}  // namespace quire::cuda
