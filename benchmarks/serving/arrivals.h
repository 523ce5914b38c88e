// When the requests of a load start.
#ifndef QUIRE_BENCHMARKS_SERVING_ARRIVALS_H_
#define QUIRE_BENCHMARKS_SERVING_ARRIVALS_H_

#include <cstdint>
#include <limits>
#include <vector>

#include "engine/base/random.h"

namespace quire {

struct ArrivalOptions {
  // Requests per second; infinite: all at once.
  double request_rate = std::numeric_limits<double>::infinity();
  // Shape of the gamma distribution of the gaps. 1: a Poisson process; less:
  // bursts; more: evener; infinite: equal gaps.
  double burstiness = 1.0;
  // kNone: request_rate throughout. Else the rate goes from ramp_up_start_rps
  // at the first request to ramp_up_end_rps at the last.
  enum class RampUp : uint8_t { kNone, kLinear, kExponential };
  RampUp ramp_up = RampUp::kNone;
  double ramp_up_start_rps = 0;
  double ramp_up_end_rps = 0;
};

// Seconds from the start of the load for each request, not descending. As
// vLLM's benchmark (vllm/benchmarks/serve.py, get_request): without a ramp the
// gaps are scaled so that the last request starts at num_requests /
// request_rate, whatever was drawn.
std::vector<double> ArrivalTimes(const ArrivalOptions& options,
                                 int num_requests, SimulationRandom* random);

// Gamma distribution of the given shape (> 0) and scale 1. Marsaglia & Tsang
// 2000, "A simple method for generating gamma variables", ACM TOMS 26(3).
double DrawGamma(double shape, SimulationRandom* random);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_SERVING_ARRIVALS_H_
