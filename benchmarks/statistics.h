// Summaries of repeated measurements, as NumPy defines them.
#ifndef QUIRE_BENCHMARKS_STATISTICS_H_
#define QUIRE_BENCHMARKS_STATISTICS_H_

#include <string>
#include <vector>

namespace quire {

// All of these are 0 for no values.
double Mean(const std::vector<double>& values);
// Of the whole population (divided by n), as numpy.std.
double PopulationDeviation(const std::vector<double>& values);
// Of a sample (divided by n - 1); 0 for fewer than two values.
double SampleDeviation(const std::vector<double>& values);
double Median(std::vector<double> values);
// Between neighbours it is interpolated linearly (numpy.percentile).
//   percent: in [0, 100].
double Percentile(std::vector<double> values, double percent);
// The same of values that are sorted already.
double PercentileOfSorted(const std::vector<double>& sorted, double percent);

// "median [min, max]" of values / unit, each in `format` (of one double).
std::string Spread(const std::vector<double>& values, double unit,
                   const char* format);

// "99" of 99.0, "99.9" of 99.9: as results name percentiles.
std::string PercentileName(double percent);

}  // namespace quire

#endif  // QUIRE_BENCHMARKS_STATISTICS_H_
