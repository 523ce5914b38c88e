// What another host says while ranks find each other and run: what is accepted
// has the same bytes when written again. The first byte chooses the message.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/base/status.h"
#include "engine/parallel/rank_messages.h"

namespace {

template <typename T>
void Check(absl::string_view bytes) {
  const auto message = quire::FromBytes<T>(bytes);
  if (message.ok()) QUIRE_CHECK(quire::ToBytes(*message) == bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data + 1),
                                size - 1);
  switch (data[0] % 5) {
    case 0:
      Check<quire::Hello>(bytes);
      break;
    case 1:
      Check<quire::Welcome>(bytes);
      break;
    case 2:
      Check<quire::MeshHello>(bytes);
      break;
    case 3:
      Check<quire::Heartbeat>(bytes);
      break;
    default:
      Check<quire::LoadedFacts>(bytes);
  }
  return 0;
}
