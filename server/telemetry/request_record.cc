#include "server/telemetry/request_record.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"

namespace quire {
namespace {

class Observers : public RequestObserver {
 public:
  explicit Observers(std::vector<std::shared_ptr<RequestObserver>> observers)
      : observers_(std::move(observers)) {}

  void OnBegin(RequestRecord* record) override {
    for (const auto& observer : observers_) observer->OnBegin(record);
  }
  void OnEnd(const RequestRecord& record) override {
    for (const auto& observer : observers_) observer->OnEnd(record);
  }
  int64_t max_body_bytes() const override {
    int64_t max_bytes = 0;
    for (const auto& observer : observers_) {
      max_bytes = std::max(max_bytes, observer->max_body_bytes());
    }
    return max_bytes;
  }

 private:
  const std::vector<std::shared_ptr<RequestObserver>> observers_;
};

}  // namespace

std::shared_ptr<RequestObserver> CombineObservers(
    std::vector<std::shared_ptr<RequestObserver>> observers) {
  return std::make_shared<Observers>(std::move(observers));
}

std::shared_ptr<RequestRecord> NewRequestRecord(
    std::shared_ptr<RequestObserver> observer) {
  return std::shared_ptr<RequestRecord>(
      new RequestRecord,
      [observer = std::move(observer)](RequestRecord* record) {
        try {
          if (observer != nullptr) observer->OnEnd(*record);
        } catch (...) {
          // No memory for a line: the request itself went well.
        }
        delete record;
      });
}

bool IsHarmlessRequestId(absl::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestIdLength &&
         std::all_of(id.begin(), id.end(), [](char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

}  // namespace quire
