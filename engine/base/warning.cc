#include "engine/base/warning.h"

#include <cstdio>
#include <mutex>
#include <utility>

namespace quire {
namespace {

struct State {
  std::mutex mu;
  WarningHandler handler;  // Guarded by mu.
};

// Never destroyed: threads may warn to the end of the process.
State& GetState() {
  static State& state = *new State;
  return state;
}

}  // namespace

void SetWarningHandler(WarningHandler handler) {
  State& state = GetState();
  std::lock_guard<std::mutex> lock(state.mu);
  state.handler = std::move(handler);
}

void Warn(absl::string_view text) {
  State& state = GetState();
  std::lock_guard<std::mutex> lock(state.mu);
  const std::string copy(text);
  if (state.handler != nullptr) {
    state.handler(copy);
  } else {
    std::fprintf(stderr, "quire: warning: %s\n", copy.c_str());
  }
}

}  // namespace quire
