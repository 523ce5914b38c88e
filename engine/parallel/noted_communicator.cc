#include "engine/parallel/noted_communicator.h"

#include <utility>

namespace quire {
namespace {

class NotedCommunicator : public Communicator {
 public:
  NotedCommunicator(std::unique_ptr<Communicator> inner,
                    std::shared_ptr<CollectiveActivity> activity)
      : inner_(std::move(inner)), activity_(std::move(activity)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string Description() const override { return inner_->Description(); }
  bool is_on_device() const override { return inner_->is_on_device(); }

  absl::Status AllReduceSum(TensorView data, DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->AllReduceSum(data, stream);
  }
  absl::Status AllGather(TensorView from, TensorView to,
                         DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->AllGather(from, to, stream);
  }
  absl::Status ReduceScatterSum(TensorView from, TensorView to,
                                DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->ReduceScatterSum(from, to, stream);
  }
  absl::Status Broadcast(TensorView data, int root,
                         DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->Broadcast(data, root, stream);
  }
  absl::Status Send(TensorView data, int peer, DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->Send(data, peer, stream);
  }
  absl::Status Receive(TensorView data, int peer,
                       DeviceStream stream) override {
    const Note note(*activity_);
    return inner_->Receive(data, peer, stream);
  }
  absl::Status Barrier() override {
    const Note note(*activity_);
    return inner_->Barrier();
  }
  void SetTimeout(absl::Duration timeout) override {
    inner_->SetTimeout(timeout);
  }
  absl::Status AsyncError() override { return inner_->AsyncError(); }
  void Abort() override { inner_->Abort(); }
  std::function<void()> DetachedAbort() override {
    return inner_->DetachedAbort();
  }

 private:
  class Note {
   public:
    explicit Note(CollectiveActivity& activity) : activity_(activity) {
      ++activity_.num_begun;
    }
    ~Note() { ++activity_.num_ended; }

   private:
    CollectiveActivity& activity_;
  };

  const std::unique_ptr<Communicator> inner_;
  const std::shared_ptr<CollectiveActivity> activity_;
};

}  // namespace

std::unique_ptr<Communicator> NoteCollectives(
    std::unique_ptr<Communicator> inner,
    std::shared_ptr<CollectiveActivity> activity) {
  return std::make_unique<NotedCommunicator>(std::move(inner),
                                             std::move(activity));
}

}  // namespace quire
