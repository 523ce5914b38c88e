// Results of steps as a stage on another host sends them: what is accepted has
// the same bytes when encoded again.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/parallel/step_result_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto result = quire::DecodeStepResult(bytes);
  if (!result.ok()) return 0;
  std::string again;
  quire::EncodeStepResult(*result, &again);
  QUIRE_CHECK(again == bytes);
  return 0;
}
