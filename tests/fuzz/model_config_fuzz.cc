// libFuzzer target: any text as config.json and generation_config.json. Build
// as safetensors_fuzz.cc, with engine/model/{model_config,json_fields}.cc and
// engine/weights/mapped_file.cc.
#include <cstdint>
#include <cstdlib>

#include "engine/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = quire::ParseModelConfig(text, "fuzz");
  if (config.ok()) {
    // What the decoder relies on.
    for (const quire::LayerConfig& layer : config->layers) {
      if (layer.num_kv_heads < 1 || layer.num_heads % layer.num_kv_heads != 0 ||
          layer.head_dim < 2 || layer.head_dim % 2 != 0 ||
          layer.sliding_window < 0 || !(layer.rope.theta >= 1)) {
        std::abort();
      }
    }
  }
  (void)quire::ParseGenerationConfig(text, "fuzz", 1000);
  return 0;
}
