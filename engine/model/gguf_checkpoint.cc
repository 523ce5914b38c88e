#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "engine/model/gguf_families.h"
#include "engine/model/gguf_model.h"

namespace quire {
namespace {

// What the tensors point to.
struct Owner {
  std::shared_ptr<const GgufFile> file;
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t[], Free> reordered;
};

// A name without its layer and its ".weight" or ".bias".
struct NameParts {
  int layer = -1;
  absl::string_view base;
  absl::string_view suffix;
};

NameParts SplitName(absl::string_view name) {
  NameParts parts;
  const size_t dot = name.rfind('.');
  if (dot != absl::string_view::npos) parts.suffix = name.substr(dot);
  parts.base = name.substr(0, name.size() - parts.suffix.size());
  absl::string_view rest = parts.base;
  if (!absl::ConsumePrefix(&rest, "blk.")) return parts;
  const size_t end = rest.find('.');
  int layer = 0;
  if (end != absl::string_view::npos &&
      absl::SimpleAtoi(rest.substr(0, end), &layer) && layer >= 0) {
    parts.layer = layer;
    parts.base = rest.substr(end + 1);
  }
  return parts;
}

// The decoder's name for a layer's tensor; empty if it has none such.
std::string LayerName(absl::string_view base, const LayerTensorNames& names) {
  const std::pair<absl::string_view, const std::string*> known[] = {
      {"attn_norm", &names.attention_norm},
      {"attn_q", &names.q},
      {"attn_k", &names.k},
      {"attn_v", &names.v},
      {"attn_qkv", &names.qkv},
      {"attn_q_norm", &names.q_norm},
      {"attn_k_norm", &names.k_norm},
      {"attn_output", &names.output},
      {"post_attention_norm", &names.attention_branch_norm},
      {"ffn_norm", &names.mlp_norm},
      {"ffn_gate", &names.gate},
      {"ffn_up", names.gate_up.empty() ? &names.up : &names.gate_up},
      {"ffn_down", &names.down},
      {"post_ffw_norm", &names.mlp_branch_norm},
  };
  for (const auto& [gguf_name, name] : known) {
    if (base == gguf_name) return *name;
  }
  return "";
}

class Renamer {
 public:
  Renamer(std::shared_ptr<const GgufFile> file, const ModelConfig& config,
          bool is_interleaved)
      : config_(config), is_interleaved_(is_interleaved) {
    owner_->file = std::move(file);
  }

  absl::StatusOr<std::shared_ptr<const Checkpoint>> Run(int num_threads) {
    const GgufFile& file = *owner_->file;
    if (is_interleaved_) QUIRE_RETURN_IF_ERROR(Reserve());
    for (const StoredTensor& tensor : file.tensors()) {
      // Read as part of the configuration.
      if (absl::StartsWith(tensor.name, "rope_f")) continue;
      Add(tensor);
    }
    RunTasks(num_threads);
    return Checkpoint::FromTensors(file.path(), std::move(tensors_), owner_,
                                   file.files());
  }

 private:
  // Heads whose rows must be reordered: those of q, of k, or of both where
  // they are fused with v behind them. 0: none.
  int64_t InterleavedHeads(const StoredTensor& tensor) const {
    const NameParts parts = SplitName(tensor.name);
    const auto num_layers = static_cast<int>(config_.layers.size());
    if (!is_interleaved_ || parts.layer < 0 || parts.layer >= num_layers) {
      return 0;
    }
    const LayerConfig& layer = config_.layers[parts.layer];
    const int64_t q = layer.num_heads, k = layer.num_kv_heads;
    int64_t heads = 0, all = 0;
    if (parts.base == "attn_q") heads = all = q;
    if (parts.base == "attn_k") heads = all = k;
    if (parts.base == "attn_qkv") {
      heads = q + k;
      all = q + 2 * k;
    }
    // Of another shape, it is left to the loader's complaint.
    const bool fits =
        !tensor.shape.empty() && tensor.shape[0] == all * layer.head_dim;
    return fits ? heads : 0;
  }

  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kHugePageBytes = 2 << 20;
  // Waking threads takes longer than to copy less.
  static constexpr int64_t kMinParallelBytes = 8 << 20;
  static int64_t Aligned(size_t size) {
    return (static_cast<int64_t>(size) + kAlignment - 1) / kAlignment *
           kAlignment;
  }

  absl::Status Reserve() {
    int64_t num_bytes = 0;
    for (const StoredTensor& tensor : owner_->file->tensors()) {
      if (InterleavedHeads(tensor) > 0)
        num_bytes += Aligned(tensor.data.size());
    }
    if (num_bytes == 0) return absl::OkStatus();
    // aligned_alloc wants a multiple of the alignment.
    num_bytes =
        (num_bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    owner_->reordered.reset(
        static_cast<uint8_t*>(std::aligned_alloc(kHugePageBytes, num_bytes)));
    if (owner_->reordered == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat(owner_->file->path(), ": no memory for ", num_bytes,
                       " bytes of queries and keys"));
    }
    // A page fault for every 4 KiB takes longer than the copy.
    madvise(owner_->reordered.get(), num_bytes, MADV_HUGEPAGE);
    return absl::OkStatus();
  }

  // A tensor to copy with the rows of its first heads in the model's order.
  struct Task {
    absl::Span<const uint8_t> from;
    uint8_t* to = nullptr;
    int64_t heads = 0;
    int64_t row_bytes = 0;
  };

  // Gives the tensor its place and plans the copy.
  void Reorder(int64_t heads, StoredTensor* tensor) {
    uint8_t* to = owner_->reordered.get() + num_reordered_bytes_;
    num_reordered_bytes_ += Aligned(tensor->data.size());
    tasks_.push_back(
        {tensor->data, to, heads,
         static_cast<int64_t>(tensor->data.size()) / tensor->shape[0]});
    tensor->data = absl::MakeConstSpan(to, tensor->data.size());
  }

  // The inverse of what the writer did to each head: its row 2 j + s is the
  // model's row s * half + j.
  void RunTask(const Task& task) const {
    if (task.from.empty()) return;  // Null, which memcpy does not take.
    const int64_t head_dim = config_.layers[0].head_dim;
    const int64_t half = head_dim / 2;
    const int64_t row_bytes = task.row_bytes;
    for (int64_t head = 0; head < task.heads; ++head) {
      for (int64_t row = 0; row < head_dim; ++row) {
        const int64_t stored = 2 * (row % half) + row / half;
        std::memcpy(task.to + (head * head_dim + row) * row_bytes,
                    task.from.data() + (head * head_dim + stored) * row_bytes,
                    row_bytes);
      }
    }
    const int64_t done = task.heads * head_dim * row_bytes;
    std::memcpy(task.to + done, task.from.data() + done,
                task.from.size() - done);
  }

  void RunTasks(int num_threads) const {
    if (tasks_.empty()) return;
    ThreadPool pool(num_reordered_bytes_ < kMinParallelBytes ? 1 : num_threads);
    pool.ParallelFor(static_cast<int64_t>(tasks_.size()), 1,
                     [this](int64_t begin, int64_t end, int) {
                       for (int64_t i = begin; i < end; ++i) {
                         RunTask(tasks_[i]);
                       }
                     });
  }

  void Add(StoredTensor tensor) {
    const NameParts parts = SplitName(tensor.name);
    const TensorNames& names = config_.tensors;
    const std::string& prefix = names.prefixes[0];
    std::string name;
    if (parts.layer >= 0) {
      const std::string own = LayerName(parts.base, names.layer);
      if (!own.empty()) {
        name = absl::StrCat(prefix, "layers.", parts.layer, ".", own);
      }
    } else if (parts.base == "token_embd") {
      name = absl::StrCat(prefix, names.embedding);
    } else if (parts.base == "output_norm") {
      name = absl::StrCat(prefix, names.final_norm);
    } else if (parts.base == "output") {
      name = names.heads[0];
    }
    if (name.empty()) {
      tensors_.push_back(std::move(tensor));
      return;
    }
    if (const int64_t heads = InterleavedHeads(tensor); heads > 0) {
      Reorder(heads, &tensor);
    }
    const bool is_head_norm =
        parts.base == "attn_q_norm" || parts.base == "attn_k_norm";
    if (is_head_norm && config_.layers[0].qk_norm == QkNorm::kEachHead &&
        tensor.shape.size() == 2 && tensor.shape[0] > 0) {
      AddRows(tensor, name, parts.suffix);
      return;
    }
    tensor.name = absl::StrCat(name, parts.suffix);
    tensors_.push_back(std::move(tensor));
  }

  // A row of its own for each head.
  void AddRows(const StoredTensor& tensor, const std::string& name,
               absl::string_view suffix) {
    const int64_t rows = tensor.shape[0];
    const size_t row_bytes = tensor.data.size() / rows;
    for (int64_t i = 0; i < rows; ++i) {
      StoredTensor row = tensor;
      row.name = absl::StrCat(name, ".", i, suffix);
      row.shape = {tensor.shape[1]};
      row.num_elements = tensor.shape[1];
      row.data = tensor.data.subspan(i * row_bytes, row_bytes);
      tensors_.push_back(std::move(row));
    }
  }

  const ModelConfig& config_;
  const bool is_interleaved_;
  std::shared_ptr<Owner> owner_ = std::make_shared<Owner>();
  int64_t num_reordered_bytes_ = 0;
  std::vector<Task> tasks_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufCheckpoint(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config,
    int num_threads) {
  QUIRE_ASSIGN_OR_RETURN(const auto name, file->String("general.architecture"));
  bool is_interleaved = false;
  for (const GgufFamily& family : GgufFamilies()) {
    if (name && *name == family.architecture) {
      is_interleaved = family.is_interleaved;
    }
  }
  return Renamer(std::move(file), config, is_interleaved).Run(num_threads);
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufHeaders(
    std::shared_ptr<const GgufFile> file, const ModelConfig& config) {
  return Renamer(std::move(file), config, /*is_interleaved=*/false).Run(1);
}

}  // namespace quire
