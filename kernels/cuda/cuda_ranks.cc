// What the CUDA backends of several ranks exchange: over a communicator of
// device memory on the backend's stream, else by way of pinned host memory,
// where each exchange waits for the device.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_step.h"
#include "kernels/cuda/vocab_slices.h"

namespace quire {
namespace {

// Rows of logits that are gathered at a time: 39 MB for a vocabulary of
// 152,000.
constexpr int64_t kGatheredRows = 64;

// Of the slices of all ranks together: ShardVocab pads each by less than 64.
int64_t MaxGatheredCols(const EngineShape& shape) {
  const int size =
      shape.tensor_ranks == nullptr ? 1 : shape.tensor_ranks->size();
  return shape.vocab_size + int64_t{64} * size;
}

}  // namespace

void CudaBackend::AddRanks(std::vector<CudaReservation>* all) {
  if (shape_.tensor_ranks == nullptr || shape_.pooled_cols > 0) return;
  const auto add = [all](int64_t num_bytes, cuda::DeviceBuffer* buffer) {
    all->push_back({"logits of other ranks", num_bytes, buffer});
  };
  const int64_t num_ranks = shape_.tensor_ranks->size();
  const int64_t max_logits = shape_.max_logit_rows;
  add(max_logits * int64_t{sizeof(cuda::SliceRecord)}, &own_records_);
  add(num_ranks * max_logits * int64_t{sizeof(cuda::SliceRecord)},
      &all_records_);
  add(std::min(kGatheredRows, max_logits) * MaxGatheredCols(shape_) * 4,
      &slices_);
  add(max_logits * shape_.vocab_size * 4, &whole_logits_);
}

absl::Status CudaBackend::AllocateRankStaging() {
  if (!UsesHostRanks()) return absl::OkStatus();
  const int64_t num_ranks =
      shape_.tensor_ranks == nullptr ? 1 : shape_.tensor_ranks->size();
  // What is gathered, with this rank's part of it, and what is summed.
  int64_t num_bytes = int64_t{shape_.max_num_tokens} * 4 * 4;
  for (const ActivationSpec& activation : activations_) {
    const int64_t rows = activation.rows == ActivationRows::kTokens
                             ? shape_.max_num_tokens
                             : shape_.max_logit_rows;
    num_bytes = std::max(num_bytes,
                         rows * activation.cols * DTypeSize(activation.dtype));
  }
  const int64_t rows = std::min<int64_t>(kGatheredRows, shape_.max_logit_rows);
  num_bytes = std::max({num_bytes, 2 * rows * MaxGatheredCols(shape_) * 4,
                        (num_ranks + 1) * shape_.max_logit_rows *
                            int64_t{sizeof(cuda::SliceRecord)}});
  QUIRE_ASSIGN_OR_RETURN(rank_staging_,
                         cuda::DeviceBuffer::Create(*device_, num_bytes,
                                                    /*is_pinned=*/true));
  return absl::OkStatus();
}

// A library connects its ranks when a collective is first of a size that wants
// it: now, and not in a step or in its capture, where it would take memory and
// wait for the others.
absl::Status CudaBackend::ConnectRanks() {
  if (communicator_ == nullptr || communicator_->size() == 1) {
    return absl::OkStatus();
  }
  for (const ActivationSpec& activation : activations_) {
    if (activation.rows != ActivationRows::kTokens) continue;
    for (int64_t rows = 1;; rows *= 8) {
      rows = std::min<int64_t>(rows, shape_.max_num_tokens);
      QUIRE_RETURN_IF_ERROR(communicator_->AllReduceSum(
          TensorView::Matrix(activation.buffer.data(), activation.dtype, rows,
                             activation.cols),
          device_->stream()));
      if (rows == shape_.max_num_tokens) break;
    }
    // One is enough: those that are summed are alike.
    return communicator_->Barrier();
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::AllReduce(Communicator& ranks, TensorView data) {
  if (ranks.is_on_device()) {
    return ranks.AllReduceSum(data, device_->stream());
  }
  if (data.num_bytes() > rank_staging_.num_bytes()) {
    return absl::FailedPreconditionError(
        "an operation has a communicator that Prepare was not told of");
  }
  TensorView host = data;
  host.data = rank_staging_.data();
  QUIRE_RETURN_IF_ERROR(
      device_->CopyToHost(host.data, data.data, data.num_bytes()));
  QUIRE_RETURN_IF_ERROR(device_->Synchronize());
  QUIRE_RETURN_IF_ERROR(ranks.AllReduceSum(host, nullptr));
  return device_->CopyToDevice(data.data, host.data, data.num_bytes());
}

absl::Status CudaBackend::AllGather(Communicator& ranks, TensorView from,
                                    TensorView to) {
  if (ranks.is_on_device()) return ranks.AllGather(from, to, device_->stream());
  QUIRE_CHECK(from.num_bytes() + to.num_bytes() <= rank_staging_.num_bytes());
  TensorView host_from = from, host_to = to;
  host_from.data = rank_staging_.data();
  host_to.data = rank_staging_.data() + from.num_bytes();
  QUIRE_RETURN_IF_ERROR(
      device_->CopyToHost(host_from.data, from.data, from.num_bytes()));
  QUIRE_RETURN_IF_ERROR(device_->Synchronize());
  QUIRE_RETURN_IF_ERROR(ranks.AllGather(host_from, host_to, nullptr));
  return device_->CopyToDevice(to.data, host_to.data, to.num_bytes());
}

bool CudaBackend::UsesHostRanks() const {
  return (shape_.tensor_ranks != nullptr &&
          !shape_.tensor_ranks->is_on_device()) ||
         (shape_.pipeline_ranks != nullptr &&
          !shape_.pipeline_ranks->is_on_device());
}

absl::Status CudaBackend::Transfer(Step& step, TransferKind kind,
                                   Communicator& ranks, int peer,
                                   TensorView x) {
  const int64_t num_rows = AsCudaStep(step).num_tokens;
  if (num_rows == 0) return absl::OkStatus();
  QUIRE_RETURN_IF_ERROR(
      CheckCudaView("Transfer: x", x, x.dtype, num_rows, x.cols));
  x.rows = num_rows;
  const bool is_sent = kind == TransferKind::kSend;
  if (ranks.is_on_device()) {
    return is_sent ? ranks.Send(x, peer, device_->stream())
                   : ranks.Receive(x, peer, device_->stream());
  }
  if (x.num_bytes() > rank_staging_.num_bytes()) {
    return absl::FailedPreconditionError(
        "Transfer: a communicator that Prepare was not told of");
  }
  TensorView host = x;
  host.data = rank_staging_.data();
  if (is_sent) {
    QUIRE_RETURN_IF_ERROR(
        device_->CopyToHost(host.data, x.data, x.num_bytes()));
  }
  // Also for what was to be copied from the staging memory before.
  QUIRE_RETURN_IF_ERROR(device_->Synchronize());
  if (is_sent) return ranks.Send(host, peer, nullptr);
  QUIRE_RETURN_IF_ERROR(ranks.Receive(host, peer, nullptr));
  return device_->CopyToDevice(x.data, host.data, x.num_bytes());
}

absl::Status CudaBackend::Advance(Step& step) {
  CudaStep& cuda_step = AsCudaStep(step);
  if (cuda_step.is_sampled) {
    return absl::FailedPreconditionError("Advance: the step was sampled");
  }
  // The rest, EndStep does.
  cuda_step.is_sampled = cuda_step.is_advanced = true;
  return absl::OkStatus();
}

// Whether one entry of each slice tells the draws of a slot.
bool CudaBackend::NeedsWholeRows(const SlotParams& params) {
  return params.num_logprobs > 0 || params.dynatemp_range > 0.0f ||
         params.top_n_sigma > 0.0f || params.min_p > 0.0f || params.top_k > 0 ||
         params.typical_p < 1.0f || params.top_p < 1.0f ||
         params.xtc_probability > 0.0f;
}

// Slices of all ranks to whole_logits_.
absl::Status CudaBackend::GatherLogits(TensorView slices, int64_t num_logits) {
  Communicator& ranks = *shape_.tensor_ranks;
  const int64_t size = slices.cols;
  for (int64_t first = 0; first < num_logits; first += kGatheredRows) {
    const int64_t rows = std::min(kGatheredRows, num_logits - first);
    QUIRE_RETURN_IF_ERROR(AllGather(
        ranks,
        TensorView::Matrix(static_cast<float*>(slices.data) + first * size,
                           DType::kF32, rows, size),
        TensorView::Matrix(slices_.data(), DType::kF32, ranks.size() * rows,
                           size)));
    if (!cuda::LaunchJoinSlices(
            {.slices = slices_.data<const float>(),
             .whole = whole_logits_.data<float>() + first * shape_.vocab_size,
             .num_rows = static_cast<int32_t>(rows),
             .slice_size = static_cast<int32_t>(size),
             .vocab_size = shape_.vocab_size},
            device_->stream())) {
      return device_->LaunchError("JoinSlices");
    }
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::CheckSlices(int64_t slice_size) const {
  const int64_t num_ids = slice_size * shape_.tensor_ranks->size();
  if (slice_size % 4 == 0 && num_ids >= shape_.vocab_size &&
      num_ids - slice_size < shape_.vocab_size &&
      num_ids <= MaxGatheredCols(shape_)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "Sample: ", shape_.tensor_ranks->size(), " slices of ", slice_size,
      " logits are not those of vocab_size ", shape_.vocab_size));
}

// Sample of this rank's slices; `arguments` are those of whole rows.
absl::Status CudaBackend::SampleSlices(const CudaStep& step, TensorView logits,
                                       cuda::SampleArguments arguments) {
  Communicator& ranks = *shape_.tensor_ranks;
  if (step.needs_whole_rows) {
    QUIRE_RETURN_IF_ERROR(GatherLogits(logits, step.num_logits));
    arguments.logits = whole_logits_.data<const float>();
    return cuda::LaunchSample(arguments, device_->stream())
               ? absl::OkStatus()
               : device_->LaunchError("Sample");
  }
  arguments.logits_stride = logits.cols;
  arguments.first_id = static_cast<int32_t>(ranks.rank() * logits.cols);
  arguments.num_ids = static_cast<int32_t>(
      std::min(logits.cols, int64_t{shape_.vocab_size} - arguments.first_id));
  if (!cuda::LaunchSampleSlice(arguments,
                               own_records_.data<cuda::SliceRecord>(),
                               device_->stream())) {
    return device_->LaunchError("SampleSlice");
  }
  if (step.num_logits > 0) {
    constexpr int64_t kWords = sizeof(cuda::SliceRecord) / 4;
    QUIRE_RETURN_IF_ERROR(
        AllGather(ranks,
                  TensorView::Matrix(own_records_.data(), DType::kF32,
                                     step.num_logits, kWords),
                  TensorView::Matrix(all_records_.data(), DType::kF32,
                                     ranks.size() * step.num_logits, kWords)));
  }
  return cuda::LaunchSampleRecords(arguments,
                                   all_records_.data<const cuda::SliceRecord>(),
                                   ranks.size(), device_->stream())
             ? absl::OkStatus()
             : device_->LaunchError("SampleRecords");
}

}  // namespace quire
