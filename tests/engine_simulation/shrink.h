// Makes a failing history small enough to be read.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_SHRINK_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_SHRINK_H_

#include <functional>

#include "tests/engine_simulation/history.h"

namespace quire {

// Drops requests, aborts and faults, then shortens what is left, as long as
// `still_fails`, until nothing more can go or it was asked max_runs times.
// Requires: still_fails(history). It should insist on the same failure
// (SignatureOf), or a history that fails of one thing turns into one that fails
// of another.
// (Dropping parts by halves: Zeller and Hildebrandt 2002, "Simplifying and
// isolating failure-inducing input", IEEE TSE 28(2).)
History Shrink(History history,
               const std::function<bool(const History&)>& still_fails,
               int max_runs);

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_SHRINK_H_
