#include "tokenizer/split_pattern.h"

#include <gtest/gtest.h>

#include <chrono>

#include "absl/strings/match.h"
#include "tokenizer/golden_strings.h"

namespace quire {
namespace {

std::vector<std::string> PublishedPatterns() {
  const std::string contractions = "'s|'t|'re|'ve|'m|'ll|'d";
  const std::string tail = "|\\s+(?!\\S)|\\s+";
  const std::string gpt2 = "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+" + tail;
  const std::string other = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+";
  const std::string lead = "[^\\r\\n\\p{L}\\p{N}]?";
  const std::string suffix = "(?i:" + contractions + ")?|";
  const std::string upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
  const std::string lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
  return {
      contractions + gpt2,
      "'(?:[sdmt]|ll|ve|re)" + gpt2,
      "(?i:" + contractions + ")|" + lead + "\\p{L}+|\\p{N}{1,3}" + other +
          tail,
      "(?i:" + contractions + ")|" + lead + "\\p{L}+|\\p{N}" + other + tail,
      "(?i:" + contractions + ")|" + lead +
          "[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+" +
          tail,
      lead + upper + "*" + lower + "+" + suffix + lead + upper + "+" + lower +
          "*" + suffix +
          "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+" + tail,
      "\\p{N}{1,3}",
      "\\p{N}",
      "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
      "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+" +
          tail,
  };
}

std::vector<std::string> Matches(const SplitPattern& pattern,
                                 const std::string& text) {
  std::vector<MatchSpan> spans;
  EXPECT_TRUE(pattern.Match(text, &spans).ok());
  std::vector<std::string> out;
  uint32_t pos = 0;
  for (const MatchSpan& span : spans) {
    EXPECT_EQ(span.begin, pos) << "spans cover the text in order";
    pos = span.end;
    out.push_back((span.is_match ? "+" : "-") +
                  text.substr(span.begin, span.end - span.begin));
  }
  EXPECT_EQ(pos, text.size());
  return out;
}

TEST(PublishedPatterns, MatchAsARegularExpressionEngineDoes) {
  const GoldenSpec spec = GoldenSpec::Load();
  for (const std::string& text : PublishedPatterns()) {
    ASSERT_TRUE(IsPublishedPattern(text)) << text;
    const auto by_hand = CompileRegexPattern(text);
    const auto by_engine = CompileWithPcre2(text);
    ASSERT_TRUE(by_hand.ok() && by_engine.ok()) << text;
    for (int seed = 0; seed < 300; ++seed) {
      // Old ranges: the two libraries' Unicode versions differ on new ones.
      const std::string input = GoldenString(spec, spec.old_ranges, seed);
      if (input.empty()) continue;
      ASSERT_EQ(Matches(**by_hand, input), Matches(**by_engine, input))
          << text << "\non " << input;
    }
  }
}

TEST(PublishedPatterns, AreComparedByExactText) {
  for (const std::string& text : PublishedPatterns()) {
    EXPECT_FALSE(IsPublishedPattern(text + "|x")) << text;
    EXPECT_FALSE(IsPublishedPattern(text.substr(1))) << text;
  }
  EXPECT_FALSE(IsPublishedPattern(""));
}

TEST(PublishedPatterns, TakeLinearTime) {
  for (const std::string& text : PublishedPatterns()) {
    const auto pattern = CompileRegexPattern(text);
    ASSERT_TRUE(pattern.ok());
    for (const char* unit : {" ", "a", "A", "\n", " \n", "'", "\u0301", "1",
                             "A\u0301", "/", "\u01C5"}) {
      std::string input;
      while (input.size() < (256 << 10)) input += unit;
      std::vector<MatchSpan> spans;
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE((*pattern)->Match(input, &spans).ok());
      const auto seconds = std::chrono::duration<double>(
                               std::chrono::steady_clock::now() - begin)
                               .count();
      // 256 KiB take some 3 ms; quadratic time would be minutes.
      EXPECT_LT(seconds, 5) << text << " on " << unit;
    }
  }
}

TEST(RegexPattern, ReadsOnigurumasSyntax) {
  const auto match = [](const std::string& pattern, const std::string& text) {
    const auto compiled = CompileRegexPattern(pattern);
    EXPECT_TRUE(compiled.ok()) << compiled.status();
    return compiled.ok() ? Matches(**compiled, text)
                         : std::vector<std::string>();
  };
  using Strings = std::vector<std::string>;
  EXPECT_EQ(match("\\w+", "a\u0301b -_1"),
            Strings({"+a\u0301b", "- -", "+_1"}));
  EXPECT_EQ(match("[\\w-]+", "a-b c"), Strings({"+a-b", "- ", "+c"}));
  EXPECT_EQ(match("\\h+", "xAf0 "), Strings({"-x", "+Af0", "- "}));
  EXPECT_EQ(match("^b$", "a\nb\nc"), Strings({"-a\n", "+b", "-\nc"}));
  EXPECT_EQ(match("a*", "ba"), Strings({"+", "-b", "+a"}));
  EXPECT_EQ(match("(?<=a)b", "abb"), Strings({"-a", "+b", "-b"}));
}

TEST(RegexPattern, RefusesWhatItCannotCompileOrTranslate) {
  for (const char* pattern :
       {"(", "[a", "a{2,1}", "\\b", "[a[b]]", "[a&&b]", "[\\W]", "(?m)a",
        "(?R)", "(?P<n>a)", "(*UTF)a", "\\Qa\\E", "\\p{Nothing}", "\\"}) {
    const auto compiled = CompileRegexPattern(pattern);
    EXPECT_EQ(compiled.status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
  }
}

TEST(RegexPattern, BacktrackingHasALimit) {
  const auto pattern = CompileRegexPattern("(?:a+)+$");
  ASSERT_TRUE(pattern.ok());
  std::vector<MatchSpan> spans;
  const absl::Status status =
      (*pattern)->Match(std::string(100, 'a') + "!", &spans);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(LiteralPattern, FindsTheTextLeftToRight) {
  EXPECT_EQ(Matches(*LiteralPattern("aa"), "aaab"),
            std::vector<std::string>({"+aa", "-ab"}));
  EXPECT_EQ(Matches(*LiteralPattern(""), "ab"),
            std::vector<std::string>({"-ab"}));
}

}  // namespace
}  // namespace quire
