// Runs a fuzz target without libFuzzer, in the ordinary tests: after
// --mutants=N, the files named as arguments and the lines of --lines=FILE
// (tools/fuzz_corpus.py), then N random changes of them with a fixed seed. It
// keeps the targets from rotting; it does not replace fuzzing.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void RunOne(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()),
                         input.size());
}

std::string Mutate(std::string input, const std::vector<std::string>& seeds,
                   std::mt19937* random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : (*random)() % n; };
  for (size_t i = 0, count = 1 + below(4); i < count; ++i) {
    const size_t at = below(input.size() + 1);
    switch (below(5)) {
      case 0:
        input.insert(at, 1, static_cast<char>(below(256)));
        break;
      case 1:
        if (at < input.size()) input[at] = static_cast<char>(below(256));
        break;
      case 2:
        input.erase(at, 1 + below(8));
        break;
      case 3:
        input.resize(at);
        break;
      case 4: {
        const std::string& other = seeds[below(seeds.size())];
        input.insert(at, other.substr(below(other.size()), 1 + below(40)));
        break;
      }
    }
  }
  return input;
}

// False if the file cannot be read, or a line of --lines is malformed.
bool ReadInputs(absl::string_view argument, std::vector<std::string>* inputs) {
  const bool has_lines = absl::ConsumePrefix(&argument, "--lines=");
  std::ifstream file(std::string(argument), std::ios::binary);
  if (!file) return false;
  if (!has_lines) {
    inputs->emplace_back(std::istreambuf_iterator<char>(file),
                         std::istreambuf_iterator<char>());
    return true;
  }
  for (std::string line, input; std::getline(file, line);) {
    if (!absl::CUnescape(line, &input)) return false;
    inputs->push_back(input);
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> seeds;
  int num_mutants = 0;
  if (argc < 2 || std::sscanf(argv[1], "--mutants=%d", &num_mutants) != 1) {
    std::fprintf(stderr, "--mutants=N must come first\n");
    return 1;
  }
  for (int i = 2; i < argc; ++i) {
    if (!ReadInputs(argv[i], &seeds)) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return 1;
    }
  }
  if (seeds.empty()) {
    std::fprintf(stderr, "no seeds\n");
    return 1;
  }
  for (const std::string& seed : seeds) RunOne(seed);
  std::mt19937 random(1);
  for (int i = 0; i < num_mutants; ++i) {
    RunOne(Mutate(seeds[i % seeds.size()], seeds, &random));
  }
  return 0;
}
