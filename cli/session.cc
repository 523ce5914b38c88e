#include "cli/session.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <fstream>
#include <optional>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "cli/draft_model.h"
#include "cli/dtype_options.h"
#include "cli/exit_codes.h"
#include "cli/model_path.h"
#include "cli/model_tokenizer.h"
#include "cli/speculative_options.h"
#include "engine/base/clock.h"
#include "engine/base/status.h"
#include "engine/model/draft_head_config.h"
#include "engine/model/gguf_model.h"
#include "engine/speculative/create_drafter.h"
#include "kernels/backend_factory.h"

namespace quire {
namespace {

// Long enough for the matrix units to be busy, short enough (some 10 ms on a
// small model) that decodes in the same step do not stutter.

// Beside the demo model, by this name wherever that is.
constexpr char kDemoDraftModel[] = "demo-draft";
constexpr char kNothingToDraft[] =
    "the model makes embeddings: there is nothing to draft";

bool IsDirectory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// A format sets `load`'s quantization; a method what the model must be.
absl::Status ParseQuantizationOption(const std::string& option,
                                     LoadOptions* load) {
  if (option.empty()) return absl::OkStatus();
  const std::string name = absl::AsciiStrToLower(option);
  std::string formats;
  for (int i = 0; i <= static_cast<int>(QuantFormat::kInt4); ++i) {
    const auto format = static_cast<QuantFormat>(i);
    if (format == QuantFormat::kDense) continue;
    if (name == QuantFormatName(format)) {
      load->quantization = QuantizationScheme{.format = format};
      return absl::OkStatus();
    }
    absl::StrAppend(&formats, QuantFormatName(format), ", ");
  }
  for (const auto method : {QuantizationMethod::kGptq, QuantizationMethod::kAwq,
                            QuantizationMethod::kCompressedTensors}) {
    const char* spelled = QuantizationMethodName(method);
    // vLLM's name for its kernels of the same format.
    if (name == spelled || name == absl::StrCat(spelled, "_marlin")) {
      load->stored_quantization = spelled;
      return absl::OkStatus();
    }
    absl::StrAppend(&formats, spelled, ", ");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--quantization: '", option, "' is none of ",
                   absl::StripSuffix(formats, ", ")));
}

absl::StatusOr<int64_t> ParseSizeOf(const char* option,
                                    const std::string& text) {
  const absl::StatusOr<int64_t> size = ParseSize(text);
  if (size.ok()) return size;
  return absl::InvalidArgumentError(
      absl::StrCat(option, ": ", size.status().message()));
}

absl::StatusOr<ModelTask> ParseTask(const SessionOptions& options) {
  const bool embeds = options.is_embedding || options.convert == "embed" ||
                      options.runner == "pooling" ||
                      absl::StartsWith(options.runner, "embed");
  if (embeds && options.runner == "generate") {
    return absl::InvalidArgumentError(
        "--runner generate contradicts the option that asks for embeddings");
  }
  if (embeds) return ModelTask::kEmbed;
  return options.runner == "generate" ? ModelTask::kGenerate : ModelTask::kAuto;
}

// A line on stderr once a load has taken a second, then four a second on a
// terminal, each in the place of the one before (and of an error that comes
// next); elsewhere, and as messages, one in ten seconds.
LoadProgress ShowProgress(LoadProgress on_progress,
                          const RankCallbacks& callbacks) {
  struct State {
    absl::Time start = Clock::Monotonic()->Now();
    absl::Time last = start;
  };
  return [state = State(), on_progress = std::move(on_progress), callbacks](
             int64_t done, int64_t total) mutable {
    if (on_progress) on_progress(done, total);
    const bool is_terminal =
        callbacks.on_message == nullptr && isatty(STDERR_FILENO) == 1;
    const absl::Time now = Clock::Monotonic()->Now();
    const bool is_late = now - state.start > absl::Seconds(1);
    const bool is_due =
        now - state.last >
        (is_terminal ? absl::Milliseconds(250) : absl::Seconds(10));
    if (!is_late || (!is_due && done < total)) return;
    state.last = now;
    const std::string text =
        absl::StrFormat("loading weights: %d of %d MiB (%d%%)", done >> 20,
                        total >> 20, total > 0 ? done * 100 / total : 100);
    if (callbacks.on_message != nullptr) {
      callbacks.on_message(LogLevel::kInfo, text);
    } else if (is_terminal && done < total) {
      absl::FPrintF(stderr, "\033[K%s\r", text);
    } else {
      absl::FPrintF(stderr, "%s%s\n", is_terminal ? "\033[K" : "", text);
    }
  };
}

absl::StatusOr<std::string> ReadTemplate(const std::string& file_or_text) {
  struct stat info;
  if (stat(file_or_text.c_str(), &info) != 0) {
    if (absl::StrContains(file_or_text, "{")) return file_or_text;
    return absl::NotFoundError(absl::StrCat("--chat-template ", file_or_text,
                                            ": no such file, and no template"));
  }
  std::ifstream file(file_or_text);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("--chat-template ", file_or_text, ": cannot be read"));
  }
  return text.str();
}

absl::Status LoadTemplate(const SessionOptions& options,
                          const std::string& tokenizer_path, Session* session) {
  std::string source = session->tokenizer->chat_template();
  // The file of its own counts before the field.
  std::string origin = absl::StrCat(tokenizer_path, "/chat_template.jinja");
  if (IsGgufPath(tokenizer_path)) {
    origin = absl::StrCat(tokenizer_path, ": key \"tokenizer.chat_template\"");
  } else if (access(origin.c_str(), F_OK) != 0) {
    origin = absl::StrCat(tokenizer_path,
                          "/tokenizer_config.json: field \"chat_template\"");
  }
  if (!options.chat_template.empty()) {
    QUIRE_ASSIGN_OR_RETURN(source, ReadTemplate(options.chat_template));
    origin = absl::StrContains(options.chat_template, '{')
                 ? "--chat-template"
                 : absl::StrCat("--chat-template ", options.chat_template);
  }
  if (source.empty()) return absl::OkStatus();
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ": ", parsed.status().message()));
  }
  session->chat_template = std::move(*parsed);
  return absl::OkStatus();
}

void SetDefaults(const GenerationConfig& config, SamplingDefaults* defaults) {
  // do_sample false advises greedy decoding, and the rest has no effect then.
  if (!config.do_sample) defaults->temperature = 0;
  if (config.do_sample && config.temperature.has_value()) {
    defaults->temperature = *config.temperature;
  }
  defaults->top_p = config.top_p.value_or(defaults->top_p);
  defaults->top_k = config.top_k.value_or(defaults->top_k);
  defaults->min_p = config.min_p.value_or(defaults->min_p);
  defaults->repetition_penalty =
      config.repetition_penalty.value_or(defaults->repetition_penalty);
}

EngineOptions MakeEngineOptions(const SessionOptions& options,
                                int64_t max_num_queued_bytes,
                                const Session& session) {
  const LoadedModel& loaded = session.loaded;
  std::random_device random;
  EngineOptions engine;
  engine.block_size = loaded.shape.block_size;
  engine.num_blocks = loaded.memory.num_blocks;
  engine.max_model_len = loaded.shape.max_model_len;
  engine.vocab_size = loaded.config.vocab_size;
  engine.rope_switch_length = loaded.config.RopeSwitchLength();
  engine.max_num_seqs = loaded.shape.max_num_seqs;
  engine.max_num_batched_tokens = loaded.shape.max_num_tokens;
  engine.long_prefill_token_threshold = options.long_prefill_token_threshold;
  engine.max_num_scored_tokens = loaded.max_num_scored_tokens;
  engine.max_list_entries = loaded.memory.max_list_entries;
  engine.scheduling_policy = options.scheduling_policy == "priority"
                                 ? SchedulingPolicy::kPriority
                                 : SchedulingPolicy::kFcfs;
  engine.enable_prefix_caching = options.enable_prefix_caching;
  engine.max_num_queued_reqs = options.max_num_queued_reqs;
  engine.max_num_queued_tokens = options.max_num_queued_tokens;
  engine.max_num_queued_bytes = max_num_queued_bytes;
  engine.target_queue_delay_seconds = options.target_queue_delay_seconds;
  engine.watchdog_seconds = options.watchdog_timeout_seconds;
  engine.steps_in_flight = loaded.runner->steps_in_flight();
  engine.num_micro_batches = options.pipeline_parallel_size;
  if (loaded.embedding.has_value()) {
    engine.enable_generate = false;
    engine.enable_embed = true;
    engine.embeds_every_token = loaded.embedding->pooling == Pooling::kMean;
  }
  engine.eos_token_ids = loaded.generation_config.eos_token_ids;
  if (engine.eos_token_ids.empty()) {
    engine.eos_token_ids = loaded.config.eos_token_ids;
  }
  if (engine.eos_token_ids.empty() && session.tokenizer != nullptr) {
    if (const auto eos = session.tokenizer->eos_token_id()) {
      engine.eos_token_ids.push_back(*eos);
    }
  }
  engine.cache_seed = (uint64_t{random()} << 32) | random();
  engine.random_seed =
      options.seed != 0 ? options.seed : (uint64_t{random()} << 32) | random();
  return engine;
}

std::string FormatBytes(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) {
    return absl::StrFormat("%.1f GiB", bytes / double(int64_t{1} << 30));
  }
  return absl::StrFormat("%.1f MiB", bytes / double(1 << 20));
}

std::string FormatCount(int64_t count) {
  if (count >= 1000000000) return absl::StrFormat("%.2fB", count / 1e9);
  return absl::StrFormat("%.2fM", count / 1e6);
}

// Of the ranks: they do not fit together, or do not come together.
int RanksExitCode(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status)
             ? kExitDevice
             : kExitUsage;
}

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInternal:  // What a GPU's driver reports.
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
      return kExitDevice;
    default:
      return kExitModel;
  }
}

void SetStepSize(const SessionOptions& options, const StepSize& useful,
                 LoadOptions* load) {
  const StepSize size = ChooseStepSize(options, useful);
  load->max_num_seqs = size.num_seqs;
  load->max_num_batched_tokens = size.num_tokens;
}

}  // namespace

absl::StatusOr<LoadOptions> MakeLoadOptions(const SessionOptions& options) {
  LoadOptions load;
  QUIRE_ASSIGN_OR_RETURN(load.task, ParseTask(options));
  if (options.pooling == "last") load.pooling = Pooling::kLast;
  if (options.pooling == "mean") load.pooling = Pooling::kMean;
  QUIRE_ASSIGN_OR_RETURN(load.dtype, ParseDTypeOption(options.dtype));
  QUIRE_ASSIGN_OR_RETURN(load.kv_cache_dtype,
                         ParseKvDTypeOption(options.kv_cache_dtype));
  if (options.max_model_len != "auto" && options.max_model_len != "-1") {
    QUIRE_ASSIGN_OR_RETURN(
        const int64_t length,
        ParseSizeOf("--max-model-len", options.max_model_len));
    if (length < 2 || length > INT_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat("--max-model-len ", options.max_model_len,
                       " is not a length of at least 2 tokens"));
    }
    load.max_model_len = static_cast<int>(length);
  }
  QUIRE_ASSIGN_OR_RETURN(
      load.kv_cache_memory_bytes,
      ParseSizeOf("--kv-cache-memory-bytes", options.kv_cache_memory));
  load.device_memory_utilization = options.device_memory_utilization;
  SetStepSize(options, StepSize(), &load);
  load.block_size = options.block_size;
  load.num_threads = options.num_threads;
  QUIRE_RETURN_IF_ERROR(ParseQuantizationOption(options.quantization, &load));
  return load;
}

std::string FindDemoModel() {
  if (const char* path = getenv("QUIRE_DEMO_MODEL")) return path;
  char buffer[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", buffer, sizeof(buffer) - 1);
  if (length <= 0) return "";
  const std::string binary(buffer, length);
  const std::string folder = binary.substr(0, binary.rfind('/'));
  // As bazel builds it, as a package lays it out, and installed.
  for (const std::string& candidate :
       {binary + ".runfiles/quire/models/demo", folder + "/../models/demo",
        folder + "/../share/quire/models/demo", std::string("models/demo")}) {
    if (IsDirectory(candidate)) return candidate;
  }
  return "";
}

absl::StatusOr<PlacementRequest> MakePlacementRequest(
    int num_threads, const std::string& cpu_cores, const std::string& numa) {
  PlacementRequest request;
  request.num_threads = num_threads;
  if (!cpu_cores.empty()) {
    auto cpus = ParseCpuList(cpu_cores);
    if (!cpus.ok()) {
      return absl::Status(
          cpus.status().code(),
          absl::StrCat("--cpu-cores: ", cpus.status().message()));
    }
    request.cpus = *std::move(cpus);
  }
  request.numa = ParseNumaPolicy(numa).value_or(NumaPolicy::kAuto);
  return request;
}

namespace {

// And the template.
absl::Status LoadTokenizer(const SessionOptions& options,
                           const RankCallbacks& callbacks, Session* session) {
  const std::string& path =
      options.tokenizer.empty() ? session->model_path : options.tokenizer;
  std::vector<std::string> warnings;
  QUIRE_ASSIGN_OR_RETURN(session->tokenizer,
                         OpenModelTokenizer(path, &warnings));
  for (const std::string& warning : warnings) {
    Tell(callbacks, LogLevel::kWarning, warning);
  }
  return LoadTemplate(options, path, session);
}

// What is to be drafted with, as far as that can be told before the model is
// loaded; none with *error set.
std::optional<SpeculativeConfig> CheckSpeculation(const SessionOptions& options,
                                                  const Session& session,
                                                  CommandError* error) {
  absl::StatusOr<SpeculativeConfig> config = MakeSpeculativeConfig(options);
  if (!config.ok()) {
    *error = {config.status(), kExitUsage};
    return std::nullopt;
  }
  if (config->method == DraftMethod::kEagle3) {
    auto path = ResolveModelPath(config->model);
    if (!path.ok()) {
      *error = {absl::Status(path.status().code(),
                             absl::StrCat("--speculative-config: model ",
                                          path.status().message())),
                kExitModel};
      return std::nullopt;
    }
    config->model = *std::move(path);
  }
  if (config->method == DraftMethod::kDraftModel) {
    if (config->model == kDemoDraftModel && !IsDirectory(config->model)) {
      config->model = absl::StrCat(FindDemoModel(), "-draft");
    }
    auto path = ResolveModelPath(config->model);
    absl::Status status = path.status();
    if (status.ok()) {
      config->model = *std::move(path);
      // As vLLM takes heads: by what they are.
      if (IsEagle3Head(config->model)) {
        config->method = DraftMethod::kEagle3;
      } else if (session.tokenizer != nullptr) {
        // Without, nothing drafts either.
        status = CheckDraftModel(config->model, *session.tokenizer);
      }
    }
    if (!status.ok()) {
      *error = {absl::Status(status.code(),
                             absl::StrCat(options.speculative_config.empty()
                                              ? "--speculative-model "
                                              : "--speculative-config: model ",
                                          status.message())),
                kExitModel};
      return std::nullopt;
    }
  }
  return *std::move(config);
}

// The error of a drafter under the option that asked for it.
absl::Status WithDraftOption(const SessionOptions& options,
                             const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(options.speculative_config.empty()
                                       ? "--speculative-model: "
                                       : "--speculative-config: ",
                                   status.message()));
}

// Loads what drafts, as far as it comes before the model. Null with *error set
// on failure.
std::optional<BegunDrafter> LoadDrafter(const SpeculativeConfig& config,
                                        const SessionOptions& options,
                                        const std::string& model_path,
                                        Backend& backend, LoadOptions* load,
                                        CommandError* error) {
  // Drafts reach the other ranks with the plans of rank 0.
  if (config.method == DraftMethod::kNone || options.rank != 0) {
    return BegunDrafter();
  }
  if (load->task == ModelTask::kEmbed) {
    *error = {absl::InvalidArgumentError(kNothingToDraft), kExitUsage};
    return std::nullopt;
  }
  const ParallelConfig& parallel = load->parallel;
  if (IsHeadMethod(config.method) && parallel.size > 1) {
    *error = {absl::InvalidArgumentError(absl::StrCat(
                  "--speculative-config: ", DraftMethodName(config.method),
                  " drafts in one process only, and --tensor-parallel-size ",
                  parallel.tensor_size, " and --pipeline-parallel-size ",
                  parallel.pipeline_size, " make ", parallel.size,
                  "; ngram, suffix and draft_model draft there")),
              kExitUsage};
    return std::nullopt;
  }
  auto begun = BeginDrafter(config, model_path, *load, backend);
  if (!begun.ok()) {
    const absl::Status& status = begun.status();
    *error = {WithDraftOption(options, status),
              absl::IsUnimplemented(status) ? kExitUsage : ExitCodeOf(status)};
    return std::nullopt;
  }
  load->companion = begun->memory;
  if (begun->head.has_value()) load->taps = begun->head->taps;
  return *std::move(begun);
}

// Requires: the model is loaded and the engine's options are made. False with
// *error set.
bool AddDrafter(const SessionOptions& options, BegunDrafter begun,
                Session* session, CommandError* error) {
  const SpeculativeConfig config = begun.config;
  if (config.method == DraftMethod::kNone) return true;
  if (!session->engine_options.enable_generate) {
    *error = {absl::InvalidArgumentError(kNothingToDraft), kExitUsage};
    return false;
  }
  auto drafter = FinishDrafter(std::move(begun), &session->loaded);
  if (!drafter.ok()) {
    const absl::Status& status = drafter.status();
    *error = {WithDraftOption(options, status), ExitCodeOf(status)};
    return false;
  }
  session->drafter = *std::move(drafter);
  session->drafter_description =
      absl::StrCat(DraftMethodName(config.method),
                   config.model.empty() ? "" : " ", config.model, ", up to ",
                   config.num_speculative_tokens, " tokens a step");
  session->engine_options.num_speculative_tokens =
      config.num_speculative_tokens;
  return true;
}

}  // namespace

std::unique_ptr<Session> LoadSession(const SessionOptions& given_options,
                                     CommandError* error,
                                     LoadProgress on_progress,
                                     const RankCallbacks& callbacks) {
  SessionOptions options = given_options;
  const auto fail = [error](absl::Status status, int exit_code) {
    error->status = std::move(status);
    error->exit_code = exit_code;
    return nullptr;
  };
  auto load_options = MakeLoadOptions(options);
  if (!load_options.ok()) return fail(load_options.status(), kExitUsage);
  const auto max_num_queued_bytes =
      ParseSizeOf("--max-num-queued-bytes", options.max_num_queued_bytes);
  if (!max_num_queued_bytes.ok()) {
    return fail(max_num_queued_bytes.status(), kExitUsage);
  }
  if (*max_num_queued_bytes < 1) {
    return fail(absl::InvalidArgumentError(
                    "--max-num-queued-bytes must be at least 1 byte: nothing "
                    "could wait"),
                kExitUsage);
  }
  load_options->progress = ShowProgress(std::move(on_progress), callbacks);
  auto session = std::make_unique<Session>();
  session->model_path = options.model.empty() ? FindDemoModel() : options.model;
  if (session->model_path.empty()) {
    return fail(absl::NotFoundError("the demo model is not installed; name a "
                                    "model directory"),
                kExitModel);
  }
  session->model_name = DefaultModelName(session->model_path);
  auto directory = ResolveModelPath(session->model_path, options.gguf_file);
  if (!directory.ok()) return fail(directory.status(), kExitModel);
  session->model_path = std::move(*directory);
  // First what is read at once and most often not supported: whoever named a
  // model of another family wants to hear of that, not of its tokenizer.
  if (const absl::Status status = CheckModelConfig(session->model_path);
      !status.ok()) {
    return fail(status, kExitModel);
  }

  if (options.needs_tokenizer) {
    const absl::Status status =
        LoadTokenizer(options, callbacks, session.get());
    if (!status.ok()) return fail(status, kExitModel);
  }

  const auto speculative = CheckSpeculation(options, *session, error);
  if (!speculative.has_value()) return nullptr;
  if (speculative->method != DraftMethod::kNone || options.enable_verify_link) {
    load_options->num_drafts = speculative->num_speculative_tokens;
  }

  auto ranks = SessionRanks::Create(
      session->model_path, load_options->quantization, callbacks, &options);
  if (!ranks.ok()) return fail(ranks.status(), RanksExitCode(ranks.status()));
  session->ranks = *std::move(ranks);
  const auto report_failure = [&](const absl::Status& status) {
    if (session->ranks != nullptr && session->ranks->worker() != nullptr) {
      session->ranks->worker()->ReportFailure(status);
    }
  };
  // What breaks while ranks are lost is a consequence of that.
  const auto fail_on_rank = [&](const absl::Status& status, int exit_code) {
    const absl::Status health =
        session->ranks == nullptr ? absl::OkStatus() : session->ranks->Health();
    if (!health.ok()) return fail(health, kExitEngine);
    report_failure(status);
    return fail(status, exit_code);
  };

  std::string notice;
  const auto placement = MakePlacementRequest(options.num_threads,
                                              options.cpu_cores, options.numa);
  if (!placement.ok()) return fail(placement.status(), kExitUsage);
  auto backend =
      CreateBackend({options.device, placement->num_threads,
                     options.enforce_eager, placement->cpus, placement->numa},
                    &notice);
  if (!backend.ok()) {
    // Of this process alone: another rank that lacks its device as well must
    // not decide, by being faster, how this one ends.
    report_failure(backend.status());
    return fail(backend.status(), kExitDevice);
  }
  SetStepSize(options, (*backend)->UsefulStepSize(), &*load_options);
  if (session->ranks != nullptr) {
    auto parallel = session->ranks->JoinDevices(backend->get());
    if (!parallel.ok()) return fail_on_rank(parallel.status(), kExitDevice);
    load_options->parallel = *parallel;
    load_options->num_threads = options.num_threads;
  }
  auto begun_drafter = LoadDrafter(*speculative, options, session->model_path,
                                   **backend, &*load_options, error);
  if (!begun_drafter.has_value()) {
    return fail_on_rank(error->status, error->exit_code);
  }
  auto loaded =
      LoadModel(session->model_path, *load_options, std::move(*backend));
  if (!loaded.ok()) {
    return fail_on_rank(loaded.status(), ExitCodeOf(loaded.status()));
  }
  // Now, so that a model that cannot be served is one line of log.
  if (!notice.empty() && (options.tells_cpu_fallback ||
                          DefaultBackendSources().probe().has_device)) {
    Tell(callbacks, LogLevel::kInfo, notice);
  }
  session->loaded = std::move(*loaded);
  for (const std::string& warning : session->loaded.warnings) {
    Tell(callbacks, LogLevel::kWarning, warning);
  }
  if (session->tokenizer != nullptr &&
      session->tokenizer->vocab_size() > session->loaded.config.vocab_size) {
    return fail(absl::InvalidArgumentError(
                    absl::StrCat(session->model_path, ": the tokenizer has ",
                                 session->tokenizer->vocab_size(),
                                 " ids, the model's vocab_size is ",
                                 session->loaded.config.vocab_size)),
                kExitModel);
  }
  if (options.generation_config == "auto") {
    SetDefaults(session->loaded.generation_config, &session->defaults);
  }
  session->engine_options =
      MakeEngineOptions(options, *max_num_queued_bytes, *session);
  if (!AddDrafter(options, *std::move(begun_drafter), session.get(), error)) {
    return nullptr;
  }
  if (options.enable_verify_link) {
    if (!session->engine_options.enable_generate) {
      return fail(absl::InvalidArgumentError(
                      "--enable-verify-link: the model makes embeddings: there "
                      "is nothing to verify"),
                  kExitUsage);
    }
    session->engine_options.num_speculative_tokens =
        speculative->num_speculative_tokens;
  }
  if (const absl::Status status =
          ValidateEngineOptions(session->engine_options);
      !status.ok()) {
    return fail(status, kExitUsage);
  }
  session->runner = session->loaded.runner.get();
  if (session->ranks != nullptr) {
    EngineOptions& engine = session->engine_options;
    const auto agreed = session->ranks->FinishLoading(
        {{engine.max_num_seqs, engine.max_num_batched_tokens,
          engine.max_model_len, engine.num_blocks, engine.vocab_size},
         engine.steps_in_flight});
    if (!agreed.ok()) return fail(agreed.status(), kExitEngine);
    session->loaded.shape.max_model_len = engine.max_model_len =
        agreed->limits.max_model_len;
    session->loaded.memory.num_blocks = engine.num_blocks =
        agreed->limits.num_blocks;
    session->runner = session->ranks->WrapRunner(session->runner);
  }
  return session;
}

LogFields DescribeSession(const Session& session, const std::string& address,
                          absl::Duration load_time) {
  const LoadedModel& loaded = session.loaded;
  LogFields table;
  const auto row = [&table](const char* name, std::string value) {
    table.emplace_back(name, std::move(value));
  };
  row("model", session.model_path);
  row("parameters", absl::StrCat(FormatCount(loaded.num_parameters), " (",
                                 loaded.config.architecture, ")"));
  if (loaded.embedding.has_value()) {
    row("embeddings",
        absl::StrCat(
            loaded.config.hidden_size, " dimensions, ",
            loaded.embedding->pooling == Pooling::kMean ? "mean" : "last token",
            loaded.embedding->normalize ? ", normalized" : ""));
  }
  row("dtype", absl::StrCat(loaded.quantization,
                            loaded.quantization.empty() ? "" : " and ",
                            DTypeName(loaded.dtype), ", KV cache ",
                            DTypeName(loaded.kv_cache_dtype)));
  row("backend", loaded.backend->Description());
  if (session.ranks != nullptr) row("ranks", session.ranks->Description());
  row("weights", FormatBytes(loaded.memory.weights_bytes));
  row("workspace", FormatBytes(loaded.memory.workspace_bytes));
  if (loaded.shape.device_bytes > 0) {
    row("graphs", FormatBytes(loaded.memory.graphs_bytes));
    row("GPU memory",
        absl::StrCat(
            FormatBytes(loaded.shape.device_bytes),
            " may be used, all included",
            loaded.memory.unused_bytes == 0
                ? std::string()
                : absl::StrCat("; ", FormatBytes(loaded.memory.unused_bytes),
                               " of it are left free: more blocks "
                               "would be of no use")));
  }
  row("KV cache",
      absl::StrFormat("%s (%d blocks of %d tokens)",
                      FormatBytes(loaded.memory.kv_bytes),
                      loaded.memory.num_blocks, loaded.shape.block_size));
  if (session.drafter != nullptr) row("drafter", session.drafter_description);
  row("max context", absl::StrCat(loaded.shape.max_model_len, " tokens"));
  row("max running",
      absl::StrCat(loaded.shape.max_num_seqs, " sequences, ",
                   loaded.shape.max_num_tokens, " tokens a step"));
  if (!address.empty()) row("address", address);
  const double weights_seconds = absl::ToDoubleSeconds(loaded.weights_time);
  row("ready in",
      absl::StrFormat("%.3f s, of which weights %.3f s (%.2f GB/s)",
                      absl::ToDoubleSeconds(load_time), weights_seconds,
                      static_cast<double>(loaded.memory.weights_bytes) / 1e9 /
                          std::max(weights_seconds, 1e-6)));
  return table;
}

}  // namespace quire
