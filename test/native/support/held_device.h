// A device whose copies stand still until they are released.
#pragma once
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "device/fake_device.h"

namespace fst {

class HeldDevice : public FakeDevice {
 public:
  struct Copies {
    struct Copy {
      std::vector<CopyPiece> pieces;
      uint64_t tag;
    };
    void Do(const Copy& copy) {
      for (const CopyPiece& piece : copy.pieces)
        memcpy(reinterpret_cast<void*>(piece.destination), reinterpret_cast<void*>(piece.source), piece.length);
      queue->Put({Completion::Kind::kCopy, copy.tag, Status::Ok()});
    }
    std::mutex mutex;
    bool released = false;
    std::deque<Copy> held;
    std::shared_ptr<CompletionQueue> queue;
  };
  using FakeDevice::FakeDevice;

  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override {
    struct Stream : CopyStream {
      explicit Stream(std::shared_ptr<Copies> copies) : copies(std::move(copies)) {}
      Status Submit(const CopyPiece* pieces, size_t count, bool, uint64_t tag) override {
        std::lock_guard<std::mutex> lock(copies->mutex);
        Copies::Copy copy{{pieces, pieces + count}, tag};
        if (copies->released)
          copies->Do(copy);
        else
          copies->held.push_back(std::move(copy));
        return Status::Ok();
      }
      std::shared_ptr<Copies> copies;
    };
    copies_->queue = std::move(queue);
    *out = std::make_unique<Stream>(copies_);
    return Status::Ok();
  }
  size_t Held() {
    std::lock_guard<std::mutex> lock(copies_->mutex);
    return copies_->held.size();
  }
  void Release() {
    std::lock_guard<std::mutex> lock(copies_->mutex);
    copies_->released = true;
    for (const auto& copy : copies_->held) copies_->Do(copy);
    copies_->held.clear();
  }

 private:
  const std::shared_ptr<Copies> copies_ = std::make_shared<Copies>();
};

}  // namespace fst
