// Random sampling parameters for tests that compare a backend with the
// reference.
#ifndef QUIRE_KERNELS_RANDOM_SLOT_PARAMS_H_
#define QUIRE_KERNELS_RANDOM_SLOT_PARAMS_H_

#include "engine/base/random.h"
#include "kernels/backend.h"

namespace quire {

// Some of the parameters are set, each within its range; most combinations come
// up within a few hundred draws.
SlotParams RandomSlotParams(SimulationRandom& random, int vocab_size);

}  // namespace quire

#endif  // QUIRE_KERNELS_RANDOM_SLOT_PARAMS_H_
