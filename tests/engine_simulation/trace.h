// What happens in a simulation, in words.
#ifndef QUIRE_TESTS_ENGINE_SIMULATION_TRACE_H_
#define QUIRE_TESTS_ENGINE_SIMULATION_TRACE_H_

#include <functional>
#include <string>

#include "engine/request.h"
#include "engine/scheduler/scheduler_output.h"

namespace quire {

std::string TraceOf(const OutputEvent& event);

// `name_of` says who is in a slot.
std::string TraceOf(const SchedulerOutput& output,
                    const std::function<std::string(int slot)>& name_of);

}  // namespace quire

#endif  // QUIRE_TESTS_ENGINE_SIMULATION_TRACE_H_
