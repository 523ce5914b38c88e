#include "benchmarks/serving/latency_plot.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "benchmarks/statistics.h"

namespace quire {
namespace {

constexpr int kMaxIntervals = 60;
constexpr double kWidth = 760, kPanelHeight = 150, kPanelGap = 60;
constexpr double kLeft = 70, kRight = 20, kTop = 50;
constexpr double kPlotWidth = kWidth - kLeft - kRight;

// Readable on white and on dark pages, and apart for the colour-blind (Okabe &
// Ito 2008).
constexpr const char* kColors[] = {"#0072b2", "#e69f00", "#d55e00"};

struct Series {
  std::string name;
  std::vector<std::optional<double>> values;  // One per interval.
};

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

// The smallest of 1, 2, 5 times a power of ten that is at least `value`.
double RoundUp(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (factor * power >= value * (1 - 1e-12)) return factor * power;
  }
  return 10 * power;
}

void AddText(double x, double y, absl::string_view anchor,
             absl::string_view text, std::string* svg) {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">",
                        x, y, anchor);
  absl::StrAppend(svg, Escape(text), "</text>\n");
}

// A panel whose upper edge is at `top`.
void AddPanel(double top, double duration, absl::string_view title,
              const std::vector<Series>& series, std::string* svg) {
  double largest = 0;
  for (const Series& line : series) {
    for (const auto& value : line.values) {
      largest = std::max(largest, value.value_or(0));
    }
  }
  const double scale = RoundUp(largest);
  AddText(kLeft, top - 8, "start", title, svg);
  constexpr int kLines = 4;
  for (int i = 0; i <= kLines; ++i) {
    const double y = top + kPanelHeight * (1 - static_cast<double>(i) / kLines);
    absl::StrAppendFormat(svg, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n",
                          kLeft, y, kLeft + kPlotWidth);
    AddText(kLeft - 6, y + 4, "end", AxisLabel(scale * i / kLines), svg);
  }
  for (int i = 0; i <= kLines; ++i) {
    AddText(kLeft + kPlotWidth * i / kLines, top + kPanelHeight + 16, "middle",
            absl::StrCat(AxisLabel(duration * i / kLines), " s"), svg);
  }
  for (size_t s = 0; s < series.size(); ++s) {
    std::string path;
    bool is_down = false;
    const size_t count = series[s].values.size();
    for (size_t i = 0; i < count; ++i) {
      const auto& value = series[s].values[i];
      if (!value.has_value()) {
        is_down = false;
        continue;
      }
      const double x = kLeft + kPlotWidth * (i + 0.5) / count;
      const double y = top + kPanelHeight * (1 - *value / scale);
      // A point alone is a short line, so that it shows.
      absl::StrAppendFormat(&path, "%c%.1f %.1f", is_down ? 'L' : 'M', x, y);
      if (!is_down) path += "h1";
      is_down = true;
    }
    absl::StrAppendFormat(svg,
                          "<path class=\"line\" stroke=\"%s\" d=\"%s\"/>\n",
                          kColors[s], path);
    const double x = kLeft + kPlotWidth - 110 * (series.size() - s) + 10;
    absl::StrAppendFormat(
        svg, "<path class=\"line\" stroke=\"%s\" d=\"M%.1f %.1fh16\"/>\n",
        kColors[s], x, top - 12);
    AddText(x + 20, top - 8, "start", series[s].name, svg);
  }
}

class Intervals {
 public:
  Intervals(int count, double duration) : duration_(duration), values_(count) {}

  void Add(double time, double value) {
    values_[IndexOf(time)].push_back(value);
  }
  size_t IndexOf(double time) const {
    const double index = time / duration_ * values_.size();
    return static_cast<size_t>(
        std::clamp(index, 0.0, static_cast<double>(values_.size() - 1)));
  }
  std::vector<Series> Percentiles() const {
    std::vector<Series> series;
    for (double percent : {50.0, 90.0, 99.0}) {
      Series line;
      line.name =
          percent == 50 ? "median" : absl::StrCat("P", PercentileName(percent));
      for (const std::vector<double>& values : values_) {
        line.values.push_back(values.empty() ? std::optional<double>()
                                             : Percentile(values, percent));
      }
      series.push_back(std::move(line));
    }
    return series;
  }

 private:
  const double duration_;
  std::vector<std::vector<double>> values_;
};

}  // namespace

std::string AxisLabel(double value) {
  // From there on "%g" would turn to exponents.
  return std::abs(value) < 9999.5 ? absl::StrFormat("%.4g", value)
                                  : absl::StrFormat("%.0f", value);
}

std::string LatencyPlot(const std::vector<RequestResult>& records,
                        double duration, absl::string_view title,
                        LoadTask task) {
  const bool is_pooling = task == LoadTask::kPooling;
  duration = std::max(duration, 1e-3);
  // At least a tenth of a second each: less says nothing about a rate.
  const int count =
      std::clamp(static_cast<int>(duration / 0.1), 1, kMaxIntervals);
  Intervals ttfts(count, duration), itls(count, duration);
  std::vector<double> tokens(count, 0), open(count, 0);
  for (const RequestResult& record : records) {
    if (record.ttft <= 0) continue;
    double time = record.start_time + record.ttft;
    ttfts.Add(time, record.ttft * 1e3);
    tokens[ttfts.IndexOf(time)] += is_pooling
                                       ? static_cast<double>(record.prompt_len)
                                       : record.TokensOfChunk(0);
    for (size_t i = 0; i < record.itls.size(); ++i) {
      time += record.itls[i];
      itls.Add(time, record.itls[i] * 1e3);
      tokens[itls.IndexOf(time)] += record.TokensOfChunk(i + 1);
    }
    const size_t last = itls.IndexOf(record.start_time + record.latency);
    for (size_t i = itls.IndexOf(record.start_time); i <= last; ++i) ++open[i];
  }
  Series rate{"tokens/s", {}}, concurrency{"open requests", {}};
  for (int i = 0; i < count; ++i) {
    rate.values.push_back(tokens[i] * count / duration);
    concurrency.values.push_back(open[i]);
  }
  struct Panel {
    const char* title;
    std::vector<Series> series;
  };
  std::vector<Panel> panels;
  panels.push_back(
      {is_pooling ? "End-to-end latency (ms)" : "Time to first token (ms)",
       ttfts.Percentiles()});
  if (!is_pooling) {
    panels.push_back({"Gap between chunks (ms)", itls.Percentiles()});
  }
  panels.push_back(
      {is_pooling ? "Input tokens per second" : "Output tokens per second",
       {rate}});
  panels.push_back({"Requests open", {concurrency}});
  const double height = kTop + panels.size() * (kPanelHeight + kPanelGap);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "width=\"%.0f\" height=\"%.0f\">\n<title>%s</title>\n"
      "<style>text{font:11px sans-serif;fill:#333}"
      ".grid{stroke:#ddd;fill:none}"
      ".line{fill:none;stroke-width:1.5}</style>\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
      kWidth, height, kWidth, height, Escape(title));
  AddText(kLeft, 18, "start", title, &svg);
  double top = kTop;
  for (const Panel& panel : panels) {
    AddPanel(top, duration, panel.title, panel.series, &svg);
    top += kPanelHeight + kPanelGap;
  }
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

}  // namespace quire
