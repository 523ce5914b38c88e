#include "benchmarks/serving/arrivals.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

// Box & Muller 1958.
double DrawNormal(SimulationRandom* random) {
  const double radius = std::sqrt(-2 * std::log(1 - random->Uniform()));
  return radius * std::cos(2 * M_PI * random->Uniform());
}

double RateOf(const ArrivalOptions& options, int index, int num_requests) {
  const double progress =
      static_cast<double>(index) / std::max(num_requests - 1, 1);
  const double start = options.ramp_up_start_rps;
  const double end = options.ramp_up_end_rps;
  switch (options.ramp_up) {
    case ArrivalOptions::RampUp::kNone:
      return options.request_rate;
    case ArrivalOptions::RampUp::kLinear:
      return start + (end - start) * progress;
    case ArrivalOptions::RampUp::kExponential:
      return start * std::pow(end / start, progress);
  }
  return options.request_rate;
}

}  // namespace

double DrawGamma(double shape, SimulationRandom* random) {
  if (shape < 1) {
    // The paper's note: gamma(a) = gamma(a + 1) * uniform^(1 / a).
    const double uniform = 1 - random->Uniform();
    return DrawGamma(shape + 1, random) * std::pow(uniform, 1 / shape);
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = DrawNormal(random);
    const double v = std::pow(1 + c * x, 3);
    if (v <= 0) continue;
    const double u = 1 - random->Uniform();
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

std::vector<double> ArrivalTimes(const ArrivalOptions& options,
                                 int num_requests, SimulationRandom* random) {
  std::vector<double> times(num_requests, 0.0);
  double now = 0;
  for (int i = 0; i < num_requests; ++i) {
    const double rate = RateOf(options, i, num_requests);
    if (std::isfinite(rate)) {
      now += std::isinf(options.burstiness)
                 ? 1 / rate
                 : DrawGamma(options.burstiness, random) /
                       (rate * options.burstiness);
    }
    times[i] = now;
  }
  if (options.ramp_up == ArrivalOptions::RampUp::kNone && now > 0) {
    const double factor = num_requests / options.request_rate / now;
    for (double& time : times) time *= factor;
  }
  return times;
}

}  // namespace quire
