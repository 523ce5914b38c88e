#include "cli/ranks.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "cli/dtype_options.h"
#include "cli/exit_codes.h"
#include "cli/model_path.h"
#include "cli/speculative_options.h"
#include "cli/version.h"
#include "engine/base/cpu_topology.h"
#include "engine/base/status.h"
#include "engine/model/loaded_model.h"
#include "kernels/nvidia_probe.h"
#include "xxhash.h"

namespace quire {
namespace {

std::optional<std::string> ReadSysFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Neighbours in the order given, so that a rank's CPUs lie together. The first
// parts get what is left over.
std::vector<int> Slice(const std::vector<int>& cpus, int part, int num_parts) {
  const int each = static_cast<int>(cpus.size()) / num_parts;
  const int left_over = static_cast<int>(cpus.size()) % num_parts;
  const auto begin_of = [&](int i) {
    return cpus.begin() + i * each + std::min(i, left_over);
  };
  return std::vector<int>(begin_of(part), begin_of(part + 1));
}

absl::StatusOr<int> TensorSize(const SessionOptions& options,
                               const NodeDevices& devices, int num_nodes,
                               const std::function<absl::Status(int)>& fits,
                               std::string* notice) {
  const std::string& text = options.tensor_parallel_size;
  int size = 0;
  if (text != "auto") {
    if (!absl::SimpleAtoi(text, &size) || size < 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--tensor-parallel-size '", text, "' is neither a number nor auto"));
    }
    if (const absl::Status status = fits(size); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--tensor-parallel-size ", size, ": ", status.message()));
    }
    return size;
  }
  const int per_node =
      devices.is_gpu ? std::max<int>(1, devices.gpus.size()) : 1;
  const int num_ranks = per_node * num_nodes;
  for (size = num_ranks / options.pipeline_parallel_size; size > 1; --size) {
    const bool is_even = size * options.pipeline_parallel_size % num_nodes == 0;
    if (!is_even || !fits(size).ok()) continue;
    // Several nodes cannot do without; they say so when they join.
    if (num_nodes == 1 && !devices.no_collectives.empty()) {
      *notice = absl::StrCat("computing on one of ", per_node,
                             " GPUs: ", devices.no_collectives);
      return 1;
    }
    return size;
  }
  if (num_nodes > options.pipeline_parallel_size) {
    const absl::Status largest =
        fits(num_ranks / options.pipeline_parallel_size);
    return absl::InvalidArgumentError(absl::StrCat(
        "--tensor-parallel-size auto: on ", num_nodes,
        " nodes (--nnodes) no number of ranks up to ", num_ranks,
        " that is a multiple of them divides the model",
        largest.ok() ? "" : absl::StrCat(": ", largest.message()),
        "; --pipeline-parallel-size ", num_nodes, " cuts its layers instead"));
  }
  return 1;
}

// The CPUs of each of `size` ranks; empty: wherever the system puts them. A
// process of its own pins its threads where it would on several NUMA nodes:
// ranks would all choose the same CPUs.
std::vector<std::vector<int>> ShareCpus(const SessionOptions& options,
                                        const NodeDevices& devices, int size) {
  std::vector<std::vector<int>> shares(size);
  if (!options.cpu_cores.empty()) {
    const auto cpus = ParseCpuList(options.cpu_cores);
    if (!cpus.ok()) return shares;  // Each rank will say so.
    const int num_cpus = static_cast<int>(cpus->size());
    for (int i = 0; i < size; ++i) {
      shares[i] = num_cpus >= size ? Slice(*cpus, i, size)
                                   : std::vector<int>{(*cpus)[i % num_cpus]};
    }
    return shares;
  }
  if (options.numa == "off") return shares;
  const int num_nodes = static_cast<int>(devices.cpus_of_nodes.size());
  if (num_nodes > 1 && num_nodes % size == 0) {
    // A process for each NUMA node, or for some neighbouring ones.
    const int each = num_nodes / size;
    for (int i = 0; i < size; ++i) {
      for (int node = i * each; node < (i + 1) * each; ++node) {
        const std::vector<int>& of_node = devices.cpus_of_nodes[node];
        shares[i].insert(shares[i].end(), of_node.begin(), of_node.end());
      }
    }
    return shares;
  }
  std::vector<int> all;
  for (const std::vector<int>& of_node : devices.cpus_of_nodes) {
    all.insert(all.end(), of_node.begin(), of_node.end());
  }
  // Of one node, only where the ranks take it all: each step waits for the
  // slowest, and two that the system puts on one CPU are slow. Who takes a part
  // cannot know which part others have left.
  const int num_threads = options.num_threads > 0
                              ? options.num_threads
                              : std::max(1, devices.num_threads / size);
  const int num_cpus = static_cast<int>(all.size());
  const bool takes_all = num_threads * size == num_cpus;
  if (takes_all || (num_nodes > 1 && num_cpus >= size)) {
    for (int i = 0; i < size; ++i) shares[i] = Slice(all, i, size);
  }
  return shares;
}

std::vector<RankShare> ShareDevices(const SessionOptions& options,
                                    const NodeDevices& devices, int size) {
  std::vector<RankShare> shares(size);
  if (size == 1) return shares;
  if (devices.is_gpu) {
    for (int i = 0; i < size; ++i) {
      if (i < static_cast<int>(devices.gpus.size())) {
        shares[i].gpu = devices.gpus[i];
      }
      // They load at the same time.
      if (options.num_threads == 0) {
        shares[i].num_threads = std::max(1, devices.num_threads / size);
      }
    }
    return shares;
  }
  const std::vector<std::vector<int>> cpus = ShareCpus(options, devices, size);
  for (int i = 0; i < size; ++i) {
    shares[i].cpu_cores = absl::StrJoin(cpus[i], ",");
    // Of a list each rank has a thread for each CPU of its part.
    if (options.num_threads == 0 && options.cpu_cores.empty()) {
      shares[i].num_threads = std::max(1, devices.num_threads / size);
    }
  }
  return shares;
}

std::string OwnProgram() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
  return length > 0 ? std::string(path, length) : "quire";
}

// The node's ranks but this one, which is the node's first.
std::vector<WorkerCommand> LocalWorkers(const SessionOptions& options,
                                        const RankPlan& plan,
                                        const RankFacts& facts) {
  std::vector<WorkerCommand> commands;
  for (int i = 1; i < plan.layout.local_size(); ++i) {
    WorkerCommand command;
    command.rank = plan.rank + i;
    command.args = {OwnProgram(), "worker"};
    command.args.insert(command.args.end(), options.args.begin(),
                        options.args.end());
    // Also what a command has set without being told.
    const auto give = [&](absl::string_view name, absl::string_view value) {
      if (!value.empty()) {
        command.args.push_back(absl::StrCat(name, "=", value));
      }
    };
    for (const auto& [name, value] : facts) {
      if (absl::StartsWith(name, "--")) give(name, value);
    }
    // As it was given: auto may turn to the CPU, and then on every rank.
    give("--device", options.device);
    give("--speculative-model", options.speculative_model);
    give("--speculative-config", options.speculative_config);
    if (options.num_speculative_tokens > 0) {
      give("--num-speculative-tokens",
           absl::StrCat(options.num_speculative_tokens));
    }
    const RankShare& share = plan.shares[i];
    command.args.insert(
        command.args.end(),
        {absl::StrCat("--nnodes=", plan.layout.num_nodes),
         absl::StrCat("--node-rank=", plan.layout.NodeOf(plan.rank)),
         absl::StrCat("--rank=", command.rank),
         absl::StrCat("--parent-pid=", getpid())});
    // None: the demo model.
    if (!options.model.empty()) {
      command.args.push_back(absl::StrCat("--model=", options.model));
    }
    if (plan.layout.num_nodes > 1) {
      command.args.push_back(
          absl::StrCat("--master-addr=", options.master_addr));
      command.args.push_back(
          absl::StrCat("--master-port=", options.master_port));
    }
    if (share.num_threads > 0) {
      command.args.push_back(absl::StrCat("--threads=", share.num_threads));
    }
    if (!share.cpu_cores.empty()) {
      command.args.push_back(absl::StrCat("--cpu-cores=", share.cpu_cores));
    }
    if (!share.gpu.empty()) {
      command.environment.emplace_back("CUDA_VISIBLE_DEVICES", share.gpu);
    }
    commands.push_back(std::move(command));
  }
  return commands;
}

void TakeShare(const RankShare& share, SessionOptions* options) {
  if (share.num_threads > 0) options->num_threads = share.num_threads;
  if (!share.cpu_cores.empty()) options->cpu_cores = share.cpu_cores;
  if (!share.gpu.empty()) {
    setenv("CUDA_VISIBLE_DEVICES", share.gpu.c_str(), 1);
  }
}

// None: no key.
absl::StatusOr<GroupKey> ReadGroupKey(const SessionOptions& options) {
  if (!options.group_key_file.empty()) {
    auto key = GroupKey::ReadFile(options.group_key_file);
    if (key.ok()) return key;
    return absl::InvalidArgumentError(
        absl::StrCat("--group-key-file ", key.status().message()));
  }
  const char* const text = getenv("QUIRE_GROUP_KEY");
  if (text == nullptr || *text == '\0') return GroupKey();
  auto key = GroupKey::Create(text);
  if (key.ok()) return key;
  return absl::InvalidArgumentError(
      absl::StrCat("QUIRE_GROUP_KEY: ", key.status().message()));
}

// Who owns the ranks does not get on: the process must end all the same.
[[noreturn]] void EndProcess(const RankCallbacks& callbacks,
                             const absl::Status& status) {
  Tell(callbacks, LogLevel::kError, std::string(status.message()));
  fflush(stdout);
  fflush(stderr);
  _exit(kExitEngine);
}

}  // namespace

void Tell(const RankCallbacks& callbacks, LogLevel level,
          const std::string& text) {
  if (callbacks.on_message) return callbacks.on_message(level, text);
  absl::FPrintF(stderr, "quire: %s%s\n",
                level == LogLevel::kWarning ? "warning: " : "", text);
}

NodeDevices FindNodeDevices(const SessionOptions& options) {
  NodeDevices devices;
  const NvidiaProbe probe = ProbeNvidia();
  if (const auto placement = PlaceThreads({}); placement.ok()) {
    devices.num_threads = placement->num_threads;
  }
  if (options.device != "cpu" &&
      absl::StrContains(SupportedBackends(), "cuda") &&
      (options.device == "cuda" || (probe.has_device && !probe.is_hidden))) {
    devices.is_gpu = true;
    devices.gpus = VisibleGpus(getenv("CUDA_VISIBLE_DEVICES"));
    if (options.tensor_parallel_size == "auto" && devices.gpus.size() > 1) {
      const auto id = MakeDeviceGroupId();
      if (!id.ok()) {
        devices.no_collectives = std::string(id.status().message());
      }
    }
    return devices;
  }
  std::map<int, std::vector<int>> cpus_of_nodes;
  for (const CpuInfo& cpu : ReadCpuTopology(AllowedCpus(), ReadSysFile)) {
    // A thread for each core.
    if (cpu.cpu == cpu.core) cpus_of_nodes[cpu.node].push_back(cpu.cpu);
  }
  for (auto& [node, cpus] : cpus_of_nodes) {
    devices.cpus_of_nodes.push_back(std::move(cpus));
  }
  return devices;
}

absl::StatusOr<RankPlan> PlanRanks(
    const SessionOptions& options, const NodeDevices& devices,
    const std::function<absl::Status(int)>& fits) {
  RankPlan plan;
  plan.layout.num_nodes = std::max(1, options.num_nodes);
  plan.layout.pipeline_size = options.pipeline_parallel_size;
  QUIRE_ASSIGN_OR_RETURN(
      plan.layout.tensor_size,
      TensorSize(options, devices, plan.layout.num_nodes, fits, &plan.notice));
  QUIRE_RETURN_IF_ERROR(plan.layout.Validate());
  const int local_size = plan.layout.local_size();
  const int num_gpus = static_cast<int>(devices.gpus.size());
  // A child sees its own GPU alone.
  if (devices.is_gpu && num_gpus > 0 && local_size > num_gpus &&
      options.parent_pid == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel-size ", options.tensor_parallel_size,
                     plan.layout.pipeline_size == 1
                         ? ""
                         : absl::StrCat(" and --pipeline-parallel-size ",
                                        plan.layout.pipeline_size),
                     " on ", plan.layout.num_nodes, " nodes needs ", local_size,
                     " GPUs on each; this one has ", num_gpus));
  }
  plan.rank = options.parent_pid != 0
                  ? options.rank
                  : std::max(0, options.node_rank) * local_size;
  plan.shares = ShareDevices(options, devices, local_size);
  return plan;
}

RankFacts ModelFacts(const std::vector<ModelFile>& files,
                     absl::string_view model, size_t max_bytes) {
  RankFacts facts;
  size_t num_bytes = 0;
  std::string others;
  int num_others = 0;
  for (const ModelFile& file : files) {
    std::string name = absl::StrCat(model, "'s file ", file.name);
    std::string value =
        absl::StrCat(file.num_bytes, " bytes with hash ", file.hash);
    num_bytes += name.size() + value.size();
    if (num_bytes <= max_bytes) {
      facts.emplace_back(std::move(name), std::move(value));
    } else {
      ++num_others;
      absl::StrAppend(&others, name, "\n", value, "\n");
    }
  }
  if (num_others > 0) {
    facts.emplace_back(
        absl::StrCat("the rest of ", model, "'s files"),
        absl::StrFormat("%d with hash %016x", num_others,
                        XXH3_64bits(others.data(), others.size())));
  }
  return facts;
}

namespace {

// Options that mean the same are the same: by the first of their names. What
// is no value of its option stays as it is; the load refuses it.
std::string SameName(const std::string& text,
                     const absl::StatusOr<std::optional<DType>>& dtype) {
  if (!dtype.ok()) return text;
  return dtype->has_value() ? DTypeName(**dtype) : "auto";
}

std::string SameLength(const std::string& text) {
  if (text == "auto" || text == "-1") return "auto";
  const absl::StatusOr<int64_t> length = ParseSize(text);
  return length.ok() ? absl::StrCat(*length) : text;
}

// vLLM's names of its kernels (gptq_marlin) are names of the format.
std::string SameQuantization(const std::string& text) {
  const std::string name = absl::AsciiStrToLower(text);
  return std::string(absl::StripSuffix(name, "_marlin"));
}

std::string SameRunner(const std::string& text) {
  return absl::StartsWith(text, "embed") ? "pooling" : text;
}

// Whichever of the options say it. A draft model may lie elsewhere on another
// node: its files count.
RankFacts SpeculationFacts(const SessionOptions& options) {
  constexpr char kName[] = "speculative decoding";
  const absl::StatusOr<SpeculativeConfig> config =
      MakeSpeculativeConfig(options);
  if (!config.ok()) {
    return {{kName, absl::StrCat(options.speculative_model, " ",
                                 options.speculative_config, " ",
                                 options.num_speculative_tokens)}};
  }
  const bool has_drafts =
      config->method != DraftMethod::kNone || options.enable_verify_link;
  std::string text = DraftMethodName(config->method);
  if (has_drafts) {
    absl::StrAppend(&text, " of ", config->num_speculative_tokens, " tokens");
  }
  if (config->method == DraftMethod::kNgram) {
    absl::StrAppend(&text, ", looking up ", config->prompt_lookup_min, " to ",
                    config->prompt_lookup_max);
  }
  RankFacts facts = {{kName, std::move(text)}};
  if (config->model.empty()) return facts;
  const absl::StatusOr<std::string> path = ResolveModelPath(config->model);
  if (!path.ok()) {
    facts.emplace_back("the draft model", config->model);
    return facts;
  }
  constexpr size_t kMaxBytes = 2 << 10;
  for (auto& fact :
       ModelFacts(FingerprintModel(*path), "the draft model", kMaxBytes)) {
    facts.push_back(std::move(fact));
  }
  return facts;
}

}  // namespace

RankFacts SessionFacts(const SessionOptions& options,
                       const std::string& model_path, bool is_gpu) {
  const auto text = [](const auto& value) { return absl::StrCat(value); };
  // What a GPU makes of no value is compared when all have loaded.
  const StepSize size = ChooseStepSize(options, StepSize());
  RankFacts facts = {
      {"the version", kVersion},
      {"--tensor-parallel-size", options.tensor_parallel_size},
      {"--pipeline-parallel-size", text(options.pipeline_parallel_size)},
      {"--nnodes", text(std::max(1, options.num_nodes))},
      {"the device", is_gpu ? "the GPU" : "the CPU"},
      {"--dtype", SameName(options.dtype, ParseDTypeOption(options.dtype))},
      {"--quantization", SameQuantization(options.quantization)},
      {"--kv-cache-dtype",
       SameName(options.kv_cache_dtype,
                ParseKvDTypeOption(options.kv_cache_dtype))},
      {"--max-model-len", SameLength(options.max_model_len)},
      {"--block-size", text(options.block_size)},
      {"--max-num-seqs", is_gpu && options.max_num_seqs == 0
                             ? std::string("the GPU's")
                             : text(size.num_seqs)},
      {"--max-num-batched-tokens", is_gpu && options.max_num_batched_tokens == 0
                                       ? std::string("the GPU's")
                                       : text(size.num_tokens)},
      {"--runner", SameRunner(options.runner)},
      {"--convert", options.convert},
      {"--is-embedding", options.is_embedding ? "true" : "false"},
      {"--pooling", options.pooling},
      {"--enable-verify-link", options.enable_verify_link ? "true" : "false"},
      {"--enforce-eager", options.enforce_eager ? "true" : "false"},
      {"--worker-timeout", text(options.worker_timeout_seconds)},
      {"--heartbeat-timeout", text(options.heartbeat_timeout_seconds)},
      {"--load-timeout", text(options.load_timeout_seconds)},
  };
  for (RankFacts more :
       {SpeculationFacts(options), ModelFacts(FingerprintModel(model_path))}) {
    facts.insert(facts.end(), std::make_move_iterator(more.begin()),
                 std::make_move_iterator(more.end()));
  }
  return facts;
}

absl::StatusOr<std::unique_ptr<SessionRanks>> SessionRanks::Create(
    const std::string& model_path,
    const std::optional<QuantizationScheme>& quantization,
    const RankCallbacks& callbacks, SessionOptions* options) {
  auto ranks = std::make_unique<SessionRanks>();
  if (options->pipeline_parallel_size > 1) {
    const absl::Status status =
        CheckModelConfig(model_path, 1, options->pipeline_parallel_size);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--pipeline-parallel-size ", options->pipeline_parallel_size, ": ",
          status.message()));
    }
  }
  std::optional<TensorSplit> split;
  const auto fits = [&](int size) -> absl::Status {
    if (size == 1) return absl::OkStatus();
    if (!split.has_value()) {
      auto opened = TensorSplit::Open(model_path, quantization);
      // What is wrong with its weights, the load says.
      if (!opened.ok()) return CheckModelConfig(model_path, size);
      split.emplace(*std::move(opened));
    }
    return split->Check(size);
  };
  const NodeDevices devices = FindNodeDevices(*options);
  QUIRE_ASSIGN_OR_RETURN(ranks->plan_, PlanRanks(*options, devices, fits));
  split.reset();
  RankPlan& plan = ranks->plan_;
  if (!plan.notice.empty()) Tell(callbacks, LogLevel::kInfo, plan.notice);
  if (plan.layout.size() == 1) return std::unique_ptr<SessionRanks>();
  options->rank = plan.rank;
  RankOptions rank_options;
  rank_options.layout = plan.layout;
  // All nodes must come to the same.
  options->tensor_parallel_size = absl::StrCat(plan.layout.tensor_size);
  if (plan.layout.num_nodes > 1) {
    QUIRE_ASSIGN_OR_RETURN(
        rank_options.master,
        ParseHostPort(options->master_addr, options->master_port));
    QUIRE_ASSIGN_OR_RETURN(rank_options.key, ReadGroupKey(*options));
  }
  rank_options.facts = SessionFacts(*options, model_path, devices.is_gpu);
  rank_options.bootstrap_timeout =
      absl::Seconds(options->bootstrap_timeout_seconds);
  rank_options.load_timeout = absl::Seconds(options->load_timeout_seconds);
  rank_options.watchdog = absl::Seconds(options->worker_timeout_seconds);
  rank_options.heartbeat_timeout =
      absl::Seconds(options->heartbeat_timeout_seconds);
  rank_options.computes_on_cpu = !devices.is_gpu;
  ranks->device_options_ = {rank_options.bootstrap_timeout,
                            rank_options.watchdog};
  std::vector<WorkerCommand> local_workers;
  if (options->parent_pid == 0) {
    local_workers = LocalWorkers(*options, plan, rank_options.facts);
    TakeShare(plan.shares[0], options);
  }
  if (plan.rank == 0) {
    RankGroupOptions group;
    group.ranks = std::move(rank_options);
    group.local_workers = std::move(local_workers);
    group.on_waiting = callbacks.on_waiting;
    group.on_log = [callbacks](const std::string& line) {
      Tell(callbacks, LogLevel::kWarning, line);
    };
    group.on_stuck = [callbacks](const absl::Status& status) {
      EndProcess(callbacks, status);
    };
    QUIRE_ASSIGN_OR_RETURN(ranks->group_, RankGroup::Start(std::move(group)));
    ranks->config_ = ranks->group_->config();
    return ranks;
  }
  RankWorkerOptions worker;
  worker.ranks = std::move(rank_options);
  worker.rank = plan.rank;
  worker.local_workers = std::move(local_workers);
  if (options->parent_pid != 0) {
    worker.memory_fd = kWorkerMemoryFd;
    if (plan.layout.NodeOf(plan.rank) == 0) worker.link_fd = kWorkerLinkFd;
  }
  worker.on_log = [callbacks](const std::string& line) {
    Tell(callbacks, LogLevel::kInfo, line);
  };
  worker.on_stuck = [callbacks](const absl::Status& status) {
    EndProcess(callbacks, status);
  };
  QUIRE_ASSIGN_OR_RETURN(ranks->worker_, RankWorker::Join(std::move(worker)));
  ranks->config_ = ranks->worker_->config();
  return ranks;
}

absl::StatusOr<ParallelConfig> SessionRanks::JoinDevices(Backend* backend) {
  const RankLayout& layout = plan_.layout;
  const bool is_gpu = backend->OwnsMemory();
  const bool needs_ids = is_gpu && layout.tensor_size > 1;
  // An id for each tensor group, made by rank 0.
  std::string ids;
  if (group_ != nullptr) {
    for (int i = 0; needs_ids && i < layout.pipeline_size; ++i) {
      QUIRE_ASSIGN_OR_RETURN(const std::string id, MakeDeviceGroupId());
      ids += id;
    }
    QUIRE_RETURN_IF_ERROR(group_->Share(ids));
  } else {
    QUIRE_ASSIGN_OR_RETURN(ids, worker_->AwaitShared());
  }
  const size_t expected =
      needs_ids ? layout.pipeline_size * kDeviceGroupIdBytes : 0;
  if (ids.size() != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", plan_.rank, " computes on ",
                     is_gpu ? "a GPU" : "the CPU", ", rank 0 does not"));
  }
  if (needs_ids) {
    QUIRE_ASSIGN_OR_RETURN(
        config_.tensor,
        JoinDeviceGroup(
            backend,
            ids.substr(config_.pipeline_rank() * kDeviceGroupIdBytes,
                       kDeviceGroupIdBytes),
            config_.tensor_rank(), layout.tensor_size, device_options_));
    std::function<void()> abort = config_.tensor->DetachedAbort();
    if (group_ != nullptr) {
      group_->AbortOnFailure(std::move(abort));
    } else {
      worker_->AbortOnFailure(std::move(abort));
    }
  }
  return config_;
}

absl::StatusOr<LoadedFacts> SessionRanks::FinishLoading(
    const LoadedFacts& facts) {
  if (group_ != nullptr) return group_->FinishLoading(facts);
  QUIRE_RETURN_IF_ERROR(worker_->FinishLoading(facts));
  return facts;
}

ModelRunner* SessionRanks::WrapRunner(ModelRunner* own) {
  return group_ != nullptr ? group_->WrapRunner(own) : own;
}

absl::Status SessionRanks::Health() const {
  return group_ != nullptr ? group_->Health() : worker_->Health();
}

std::string SessionRanks::Description() const {
  const RankLayout& layout = plan_.layout;
  std::string text = absl::StrCat(layout.size(), " processes, tensor parallel ",
                                  layout.tensor_size);
  if (layout.pipeline_size > 1) {
    absl::StrAppend(&text, ", pipeline parallel ", layout.pipeline_size);
  }
  if (layout.num_nodes > 1) {
    absl::StrAppend(&text, ", ", layout.num_nodes, " nodes");
  }
  if (config_.tensor != nullptr) {
    absl::StrAppend(&text, " (", config_.tensor->Description(), ")");
  }
  return text;
}

}  // namespace quire
