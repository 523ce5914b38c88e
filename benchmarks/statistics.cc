#include "benchmarks/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace quire {
namespace {

double SumOfSquaredDeviations(const std::vector<double>& values) {
  const double mean = Mean(values);
  double sum = 0;
  for (double v : values) sum += (v - mean) * (v - mean);
  return sum;
}

std::string Format(double value, const char* format) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

}  // namespace

double Mean(const std::vector<double>& values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / values.size();
}

double PopulationDeviation(const std::vector<double>& values) {
  if (values.empty()) return 0;
  return std::sqrt(SumOfSquaredDeviations(values) / values.size());
}

double SampleDeviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  return std::sqrt(SumOfSquaredDeviations(values) / (values.size() - 1));
}

double Median(std::vector<double> values) {
  return Percentile(std::move(values), 50);
}

double Percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  return PercentileOfSorted(values, percent);
}

double PercentileOfSorted(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double position =
      std::clamp(percent, 0.0, 100.0) / 100 * (sorted.size() - 1);
  const size_t below = static_cast<size_t>(position);
  if (below + 1 >= sorted.size()) return sorted.back();
  return sorted[below] +
         (position - below) * (sorted[below + 1] - sorted[below]);
}

std::string Spread(const std::vector<double>& values, double unit,
                   const char* format) {
  if (values.empty()) return "-";
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return absl::StrCat(Format(Median(values) / unit, format), " [",
                      Format(*low / unit, format), ", ",
                      Format(*high / unit, format), "]");
}

std::string PercentileName(double percent) { return absl::StrCat(percent); }

}  // namespace quire
