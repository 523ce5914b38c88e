// A million draws under each sampling parameter, and under all together,
// against the probabilities that this file computes from the definitions, in
// double and apart from kernels/reference. Pearson's chi-square test; seeds are
// fixed, so a failure is a change of the draws and never bad luck.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/random.h"
#include "gtest/gtest.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/sampling.h"

namespace quire {
namespace {

constexpr int kVocabSize = 40;
constexpr int kNumDraws = 1'000'000;
// With about 20 cases, a wrong alarm in 50,000 choices of the seeds.
constexpr double kSignificance = 1e-6;

using Row = std::vector<double>;

// ---- The chi-square distribution.

// P(X > x) of chi-square with `degrees` degrees of freedom: the regularized
// incomplete gamma function Q(degrees / 2, x / 2), from its recurrence
// Q(a + 1, y) = Q(a, y) + y^a e^-y / gamma(a + 1) (Abramowitz and Stegun
// 6.5.21), Q(1, y) = e^-y, Q(1/2, y) = erfc(sqrt(y)).
double ChiSquareTail(int degrees, double x) {
  const double y = x / 2;
  double a = degrees % 2 == 0 ? 1.0 : 0.5;
  double tail = degrees % 2 == 0 ? std::exp(-y) : std::erfc(std::sqrt(y));
  for (; a < degrees / 2.0; a += 1.0) {
    tail += std::exp(a * std::log(y) - y - std::lgamma(a + 1));
  }
  return tail;
}

TEST(ChiSquareTailTest, TabulatedValues) {
  EXPECT_NEAR(ChiSquareTail(1, 3.841459), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(2, 5.991465), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(10, 18.307038), 0.05, 1e-6);
  EXPECT_NEAR(ChiSquareTail(39, 72.054662), 0.001, 1e-6);
  EXPECT_NEAR(ChiSquareTail(1, 23.928127) / 1e-6, 1.0, 1e-4);
}

// True if `counts` of independent draws from `expected` are as likely as they
// must be. Entries that expect fewer than 10 draws are pooled; one of
// probability 0 may not be drawn.
bool Fits(const std::vector<int>& counts, const Row& expected) {
  const double num_draws = std::accumulate(counts.begin(), counts.end(), 0.0);
  double statistic = 0.0;
  double pooled_expected = 0.0;
  double pooled_count = 0.0;
  int num_cells = 0;
  const auto add_cell = [&](double count, double mean) {
    statistic += (count - mean) * (count - mean) / mean;
    ++num_cells;
  };
  for (size_t id = 0; id < counts.size(); ++id) {
    const double mean = expected[id] * num_draws;
    if (mean == 0.0 && counts[id] > 0) return false;
    if (mean >= 10.0) {
      add_cell(counts[id], mean);
    } else {
      pooled_expected += mean;
      pooled_count += counts[id];
    }
  }
  if (pooled_expected > 0.0) add_cell(pooled_count, pooled_expected);
  // All in one cell: nothing to compare.
  if (num_cells < 2) return pooled_count == 0.0 || pooled_expected >= 10.0;
  return ChiSquareTail(num_cells - 1, statistic) >= kSignificance;
}

// ---- The definitions, on rows of logits with -infinity for what is dropped.

Row Softmax(const Row& z) {
  const double max = *std::max_element(z.begin(), z.end());
  Row p(z.size());
  double sum = 0.0;
  for (size_t i = 0; i < z.size(); ++i) sum += p[i] = std::exp(z[i] - max);
  for (double& value : p) value /= sum;
  return p;
}

void DropIf(Row& z, const std::function<bool(size_t)>& drops) {
  std::vector<bool> dropped(z.size());
  for (size_t i = 0; i < z.size(); ++i) dropped[i] = drops(i);
  for (size_t i = 0; i < z.size(); ++i) {
    if (dropped[i]) z[i] = -INFINITY;
  }
}

// The first ids, by ascending key, whose probabilities reach `share`.
void KeepShare(Row& z, const Row& keys, double share) {
  const Row p = Softmax(z);
  std::vector<int> ids(z.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(),
            [&keys](int a, int b) { return keys[a] < keys[b]; });
  double sum = 0.0;
  for (int id : ids) {
    if (sum >= share) z[id] = -INFINITY;
    sum += p[id];
  }
}

void TopNSigma(Row& z, double n) {
  double sum = 0.0, squares = 0.0, count = 0.0;
  for (double value : z) {
    if (value == -INFINITY) continue;
    sum += value;
    squares += value * value;
    count += 1;
  }
  const double mean = sum / count;
  const double deviation = std::sqrt(squares / count - mean * mean);
  const double max = *std::max_element(z.begin(), z.end());
  DropIf(z, [&](size_t i) { return z[i] < max - n * deviation; });
}

void MinP(Row& z, double min_p) {
  const Row p = Softmax(z);
  const double max = *std::max_element(p.begin(), p.end());
  DropIf(z, [&](size_t i) { return p[i] < min_p * max; });
}

void TopK(Row& z, int k) {
  Row sorted = z;
  std::sort(sorted.rbegin(), sorted.rend());
  DropIf(z, [&](size_t i) { return z[i] < sorted[k - 1]; });
}

double Entropy(const Row& p) {
  double entropy = 0.0;
  for (double value : p) entropy -= value > 0.0 ? value * std::log(value) : 0.0;
  return entropy;
}

void Typical(Row& z, double typical_p) {
  const Row p = Softmax(z);
  const double entropy = Entropy(p);
  Row keys;
  for (double value : p) keys.push_back(std::abs(-std::log(value) - entropy));
  KeepShare(z, keys, typical_p);
}

void TopP(Row& z, double top_p) {
  Row keys;
  for (double value : z) keys.push_back(-value);
  KeepShare(z, keys, top_p);
}

void ExcludeTopChoices(Row& z, double threshold) {
  const Row p = Softmax(z);
  double least = INFINITY;
  for (double value : p) {
    if (value >= threshold) least = std::min(least, value);
  }
  DropIf(z, [&](size_t i) { return p[i] > least; });
}

double DynamicTemperatureOf(const Row& z, double temperature, double range,
                            double exponent) {
  const double share = Entropy(Softmax(z)) / std::log(z.size());
  return temperature - range + 2 * range * std::pow(share, exponent);
}

void Divide(Row& z, double temperature) {
  for (double& value : z) value /= temperature;
}

// With probability `weight` the second, else the first.
Row Mixture(const Row& first, const Row& second, double weight) {
  Row result;
  for (size_t i = 0; i < first.size(); ++i) {
    result.push_back((1 - weight) * first[i] + weight * second[i]);
  }
  return result;
}

// ---- The cases.

// The prompt is 0 1 2 3 4; then 5 5 6 0 1 2 was generated: 0 1 2 repeats.
const std::vector<int32_t>& History() {
  static const auto* history =
      new std::vector<int32_t>{0, 1, 2, 3, 4, 5, 5, 6, 0, 1, 2};
  return *history;
}
constexpr int kNumPromptTokens = 5;

std::vector<float> Logits() {
  SimulationRandom random(11);
  std::vector<float> logits(kVocabSize);
  for (float& logit : logits) {
    logit = static_cast<float>(6 * random.Uniform() - 3);
  }
  // What the history's cases change is likely.
  for (int id : {0, 1, 2, 3, 5, 6}) logits[id] = 2.0f + 0.1f * id;
  return logits;
}

Row LogitsInDouble() {
  const std::vector<float> logits = Logits();
  return Row(logits.begin(), logits.end());
}

std::vector<int> Draws(Isa isa, const SlotParams& params, int num_draws) {
  const std::vector<float> logits = Logits();
  SamplingScratch scratch(kVocabSize, History().size());
  std::vector<TokenCounts::Entry> entries(kVocabSize);
  std::vector<int32_t> cells(128);
  TokenCounts counts(entries.data(), entries.size(), cells.data(),
                     cells.size());
  for (size_t i = 0; i < History().size(); ++i) {
    if (i < kNumPromptTokens) {
      counts.AddPromptToken(History()[i]);
    } else {
      counts.AddGeneratedToken(History()[i]);
    }
  }
  SampleInput input;
  input.logits = logits.data();
  input.vocab_size = kVocabSize;
  input.params = &params;
  input.history = History();
  input.num_prompt_tokens = kNumPromptTokens;
  input.num_generated = static_cast<int>(History().size()) - kNumPromptTokens;
  const bool has_penalties = params.repetition_penalty != 1.0f ||
                             params.frequency_penalty != 0.0f ||
                             params.presence_penalty != 0.0f;
  if (has_penalties) input.counts = &counts;
  std::vector<int> result(kVocabSize);
  for (int i = 0; i < num_draws; ++i) {
    input.position = i;
    SampleOutput output;
    SampleRow(isa, input, scratch, &output);
    ++result[output.token];
  }
  return result;
}

Isa BestIsa() { return SupportedIsas().back(); }

struct Case {
  const char* name;
  std::function<void(SlotParams&)> set;
  std::function<Row(Row)> distribution;  // Of the logits.
};

// From a function that changes the row in place.
std::function<Row(Row)> Then(const std::function<void(Row&)>& change) {
  return [change](Row z) {
    change(z);
    return Softmax(z);
  };
}

// What cuts or reshapes the distribution by its probabilities.
std::vector<Case> FilterCases() {
  return {
      {"temperature", [](SlotParams& p) { p.temperature = 0.7f; },
       Then([](Row& z) { Divide(z, 0.7f); })},
      {"top_k", [](SlotParams& p) { p.top_k = 7; },
       Then([](Row& z) { TopK(z, 7); })},
      {"top_p", [](SlotParams& p) { p.top_p = 0.8f; },
       Then([](Row& z) { TopP(z, 0.8f); })},
      {"min_p", [](SlotParams& p) { p.min_p = 0.2f; },
       Then([](Row& z) { MinP(z, 0.2f); })},
      {"top_n_sigma", [](SlotParams& p) { p.top_n_sigma = 1.0f; },
       Then([](Row& z) { TopNSigma(z, 1.0); })},
      {"typical_p", [](SlotParams& p) { p.typical_p = 0.5f; },
       Then([](Row& z) { Typical(z, 0.5); })},
      {"dynatemp",
       [](SlotParams& p) {
         p.dynatemp_range = 0.6f;
         p.dynatemp_exponent = 3.0f;
       },
       Then([](Row& z) { Divide(z, DynamicTemperatureOf(z, 1, 0.6f, 3)); })},
      {"xtc",
       [](SlotParams& p) {
         p.xtc_probability = 0.3f;
         p.xtc_threshold = 0.05f;
       },
       [](const Row& z) {
         Row cut = z;
         ExcludeTopChoices(cut, 0.05f);
         return Mixture(Softmax(z), Softmax(cut), 0.3f);
       }},
  };
}

// What changes the logits of tokens by what came before.
std::vector<Case> PenaltyCases() {
  return {
      {"repetition_penalty", [](SlotParams& p) { p.repetition_penalty = 1.5f; },
       Then([](Row& z) {
         for (int id : {0, 1, 2, 3, 4, 5, 6}) {
           z[id] = z[id] > 0 ? z[id] / 1.5 : z[id] * 1.5;
         }
       })},
      {"frequency_penalty", [](SlotParams& p) { p.frequency_penalty = 0.7f; },
       Then([](Row& z) {
         for (int id : {0, 1, 2, 6}) z[id] -= 0.7f;
         z[5] -= 2 * 0.7f;
       })},
      {"presence_penalty", [](SlotParams& p) { p.presence_penalty = -0.4f; },
       Then([](Row& z) {
         for (int id : {0, 1, 2, 5, 6}) z[id] += 0.4f;
       })},
      {"dry",
       [](SlotParams& p) {
         p.dry_multiplier = 0.5f;
         p.dry_base = 1.5f;
         p.dry_allowed_length = 1;
       },
       // 0 1 2 is followed by 3.
       Then([](Row& z) { z[3] -= 0.5 * 1.5 * 1.5; })},
  };
}

// What names tokens.
std::vector<Case> ListCases() {
  return {
      {"logit_bias",
       [](SlotParams& p) {
         p.bias_ids = {3, 20, 2};
         p.bias = {-1.0f, 4.0f, -INFINITY};
       },
       Then([](Row& z) {
         z[3] -= 1;
         z[20] += 4;
         z[2] = -INFINITY;
       })},
      {"allowed_token_ids",
       [](SlotParams& p) {
         p.allowed_ids = {1, 5, 6, 30, 31};
       },
       Then([](Row& z) {
         DropIf(z, [](size_t i) {
           return i != 1 && i != 5 && i != 6 && i != 30 && i != 31;
         });
       })},
      {"min_tokens",
       [](SlotParams& p) {
         p.min_tokens = 7;  // 6 are generated.
         p.banned_before_min = {5};
       },
       Then([](Row& z) { z[5] = -INFINITY; })},
      {"bad_words",
       [](SlotParams& p) {
         p.bad_word_ids = {6, 1, 2, 5, 9, 0, 3, 4, 5, 5, 6, 0, 1, 2, 1};
         p.bad_word_lengths = {1, 3, 3, 8};
       },
       // 6 always, 5 after 1 2; not 3 after 9 0, nor 1 after part of the
       // prompt.
       Then([](Row& z) { z[6] = z[5] = -INFINITY; })},
  };
}

Case AllAtOnce() {
  return {"all",
          [](SlotParams& p) {
            p.bias_ids = {3, 20};
            p.bias = {1.0f, 3.0f};
            p.bad_word_ids = {1, 2, 6};
            p.bad_word_lengths = {3};
            p.repetition_penalty = 1.2f;
            p.frequency_penalty = 0.3f;
            p.presence_penalty = 0.2f;
            p.dry_multiplier = 0.4f;
            p.temperature = 1.4f;
            p.dynatemp_range = 0.3f;
            p.top_n_sigma = 2.5f;
            p.min_p = 0.03f;
            p.top_k = 20;
            p.typical_p = 0.95f;
            p.top_p = 0.97f;
            p.xtc_probability = 0.5f;
            p.xtc_threshold = 0.06f;
          },
          [](Row z) {
            z[3] += 1;
            z[20] += 3;
            z[6] = -INFINITY;
            for (int id : {0, 1, 2, 3, 4, 5, 6}) {
              z[id] = z[id] > 0 ? z[id] / 1.2f : z[id] * 1.2f;
            }
            for (int id : {0, 1, 2, 5, 6}) z[id] -= 0.3f + 0.2f;
            z[5] -= 0.3f;
            z[3] -= 0.4f * 1.75f;
            // Of 40 entries one is masked.
            Row others = z;
            others.erase(others.begin() + 6);
            Divide(z, DynamicTemperatureOf(others, 1.4f, 0.3f, 1));
            TopNSigma(z, 2.5);
            MinP(z, 0.03f);
            TopK(z, 20);
            Typical(z, 0.95f);
            TopP(z, 0.97f);
            Row cut = z;
            ExcludeTopChoices(cut, 0.06f);
            return Mixture(Softmax(z), Softmax(cut), 0.5);
          }};
}

std::vector<Case> Cases() {
  std::vector<Case> cases = FilterCases();
  for (const auto& more : {PenaltyCases(), ListCases()}) {
    cases.insert(cases.end(), more.begin(), more.end());
  }
  cases.push_back(AllAtOnce());
  return cases;
}

// Where each case has a test of its own.
class DistributionTest : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Cases, DistributionTest, testing::ValuesIn(Cases()),
                         [](const testing::TestParamInfo<Case>& info) {
                           return std::string(info.param.name);
                         });

TEST_P(DistributionTest, AMillionDraws) {
  SlotParams params;
  params.draw_key = 4711;
  GetParam().set(params);
  const std::vector<int> counts = Draws(BestIsa(), params, kNumDraws);
  const Row expected = GetParam().distribution(LogitsInDouble());
  if (Fits(counts, expected)) return;
  ADD_FAILURE() << "the draws do not follow the distribution";
  for (int id = 0; id < kVocabSize; ++id) {
    EXPECT_NEAR(counts[id] / double{kNumDraws}, expected[id], 0.0)
        << "id " << id;
  }
}

// The test above fails for draws that ignore the parameter.
TEST_P(DistributionTest, NoticesThatItIsIgnored) {
  static const auto* plain = [] {
    SlotParams params;
    params.draw_key = 4711;
    return new std::vector<int>(Draws(BestIsa(), params, kNumDraws));
  }();
  EXPECT_TRUE(Fits(*plain, Softmax(LogitsInDouble())));
  EXPECT_FALSE(Fits(*plain, GetParam().distribution(LogitsInDouble())));
}

// A million draws on one instruction set speak for all.
TEST_P(DistributionTest, IsTheSameOnEveryInstructionSet) {
  SlotParams params;
  params.draw_key = 4711;
  GetParam().set(params);
  const std::vector<int> expected = Draws(Isa::kScalar, params, 5000);
  for (Isa isa : SupportedIsas()) {
    EXPECT_EQ(Draws(isa, params, 5000), expected) << IsaName(isa);
  }
}

}  // namespace
}  // namespace quire
