#include "benchmarks/serving/timeline_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "benchmarks/serving/latency_plot.h"

namespace quire {
namespace {

constexpr double kWidth = 1000, kRowHeight = 8, kTop = 40;
constexpr const char* kFirstTokenColor = "#0072b2";
constexpr const char* kFailedColor = "#999999";

const char* GapColor(double gap_ms, const TimelineThresholds& thresholds) {
  if (gap_ms < thresholds.low) return "#009e73";
  return gap_ms < thresholds.high ? "#e69f00" : "#d55e00";
}

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

class Timeline {
 public:
  Timeline(double duration, const TimelineThresholds& thresholds)
      : scale_(kWidth / std::max(duration, 1e-3)), thresholds_(thresholds) {}

  void AddRequest(int number, const RequestResult& record) {
    absl::StrAppendFormat(&svg_,
                          "<g><title>request %d, %.1f ms after start: ", number,
                          record.start_time * 1e3);
    if (record.success) {
      absl::StrAppendFormat(&svg_,
                            "%d prompt tokens, %d output tokens, TTFT %.1f ms, "
                            "E2EL %.1f ms",
                            record.prompt_len, record.output_tokens,
                            record.ttft * 1e3, record.latency * 1e3);
    } else {
      absl::StrAppend(&svg_, Escape(record.error));
    }
    svg_ += "</title>\n";
    double time = record.start_time + record.ttft;
    if (!record.success) {
      AddBar(record.start_time, record.start_time + record.latency,
             kFailedColor);
    } else {
      AddBar(record.start_time, time, kFirstTokenColor);
      // Neighbours of one colour are one bar: thousands of tokens stay small.
      for (size_t i = 0; i < record.itls.size();) {
        const char* const color = GapColor(record.itls[i] * 1e3, thresholds_);
        const double begin = time;
        while (i < record.itls.size() &&
               GapColor(record.itls[i] * 1e3, thresholds_) == color) {
          time += record.itls[i++];
        }
        AddBar(begin, time, color);
      }
    }
    svg_ += "</g>\n";
    y_ += kRowHeight;
  }

  std::string Finish(double duration) {
    constexpr int kMarks = 10;
    std::string marks;
    for (int i = 0; i <= kMarks; ++i) {
      const double x = kWidth * i / kMarks;
      absl::StrAppendFormat(&marks,
                            "<path d=\"M%.1f %.1fV%.1f\"/><text x=\"%.1f\" "
                            "y=\"%.1f\">%s s</text>\n",
                            x, kTop - 6, y_, x, kTop - 12,
                            AxisLabel(duration * i / kMarks));
    }
    return absl::StrFormat(
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-20 0 %.0f "
               "%.0f\" width=\"100%%\">\n<g class=\"marks\">\n",
               kWidth + 60, y_ + 10) +
           marks + "</g>\n" + svg_ + "</svg>\n";
  }

 private:
  void AddBar(double begin, double end, const char* color) {
    absl::StrAppendFormat(
        &svg_,
        "<rect x=\"%.2f\" y=\"%.0f\" width=\"%.2f\" height=\"%.0f\" "
        "fill=\"%s\"/>\n",
        begin * scale_, y_, std::max((end - begin) * scale_, 0.2),
        kRowHeight - 1, color);
  }

  const double scale_;
  const TimelineThresholds thresholds_;
  double y_ = kTop;
  std::string svg_;
};

}  // namespace

absl::StatusOr<TimelineThresholds> ParseTimelineThresholds(
    absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ',');
  TimelineThresholds thresholds;
  if (parts.size() != 2 || !absl::SimpleAtod(parts[0], &thresholds.low) ||
      !absl::SimpleAtod(parts[1], &thresholds.high) || !(thresholds.low > 0) ||
      !(thresholds.high >= thresholds.low) || !std::isfinite(thresholds.high)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--timeline-itl-thresholds: '", text,
        "' is not two positive numbers in ascending order, like 25,50"));
  }
  return thresholds;
}

std::string TimelinePage(const std::vector<RequestResult>& records,
                         double duration, const TimelineThresholds& thresholds,
                         absl::string_view title) {
  std::vector<int> order(records.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return records[a].start_time < records[b].start_time;
  });
  Timeline timeline(duration, thresholds);
  for (int i : order) timeline.AddRequest(i, records[i]);
  std::string page = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<title>",
      Escape(title),
      "</title>\n<style>body{font:13px sans-serif;background:#fff;color:#333}"
      ".marks path{stroke:#ddd}.marks text{font:10px sans-serif;fill:#333;"
      "text-anchor:middle}b{padding:0 .5em}</style></head>\n<body><h1>",
      Escape(title), "</h1>\n<p>");
  const auto legend = [&page](const char* color, const std::string& what) {
    absl::StrAppend(&page, "<b style=\"color:", color, "\">&#9632;</b>", what,
                    " ");
  };
  legend(kFirstTokenColor, "to the first token");
  legend(GapColor(0, thresholds),
         absl::StrCat("gaps below ", thresholds.low, " ms"));
  legend(GapColor(thresholds.low, thresholds),
         absl::StrCat("below ", thresholds.high, " ms"));
  legend(GapColor(thresholds.high, thresholds), "longer");
  legend(kFailedColor, "failed");
  absl::StrAppend(&page, "</p>\n", timeline.Finish(duration),
                  "</body></html>\n");
  return page;
}

}  // namespace quire
