// How many bytes the transfers of some engines may hold together: the budget that a loader was given.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/completion_queue.h"
#include "device/device.h"

namespace fst {

// Any thread. Made by make_shared.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  // Bytes of the budget, which count until it is destroyed.
  class Grant {
   public:
    Grant(std::shared_ptr<MemoryBudget> budget, uint64_t bytes) : budget_(std::move(budget)), bytes_(bytes) {}
    ~Grant() { budget_->Give(bytes_); }
    Grant(const Grant&) = delete;
    Grant& operator=(const Grant&) = delete;

   private:
    const std::shared_ptr<MemoryBudget> budget_;
    const uint64_t bytes_;
  };

  explicit MemoryBudget(uint64_t limit) : limit_(limit) {}

  uint64_t limit() const { return limit_; }
  uint64_t left() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return limit_ - std::min(held_, limit_);
  }
  uint64_t held() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  // Null where there is no room for so many bytes. `queue`, unless it is null, is then woken when some are given back.
  std::shared_ptr<Grant> TryTake(uint64_t bytes, const std::shared_ptr<CompletionQueue>& queue) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ || held_ > limit_ - bytes) {
      const bool known =
          std::any_of(waiting_.begin(), waiting_.end(), [&](const auto& other) { return other.lock() == queue; });
      if (!known && queue != nullptr) waiting_.push_back(queue);
      return nullptr;
    }
    held_ += bytes;
    return std::make_shared<Grant>(shared_from_this(), bytes);
  }

  // Takes bytes for as long as the budget lives. False where there is no room.
  bool Reserve(uint64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ || held_ > limit_ - bytes) return false;
    held_ += bytes;
    return true;
  }

  // The same buffer, for which the grant counts until its memory has been freed, which takes another thread.
  static std::shared_ptr<DeviceBuffer> Hold(std::shared_ptr<DeviceBuffer> buffer, std::shared_ptr<Grant> grant) {
    struct Held {
      std::shared_ptr<DeviceBuffer> buffer;
      std::shared_ptr<Grant> grant;
      ~Held() {
        buffer.reset();
        AfterFrees([grant = std::move(grant)]() mutable { grant.reset(); });
      }
    };
    auto held = std::make_shared<Held>();
    held->buffer = std::move(buffer);
    held->grant = std::move(grant);
    DeviceBuffer* address = held->buffer.get();
    return {held, address};
  }

 private:
  void Give(uint64_t bytes) {
    std::vector<std::weak_ptr<CompletionQueue>> waiting;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      held_ -= bytes;
      waiting.swap(waiting_);
    }
    for (const auto& each : waiting) {
      if (auto queue = each.lock()) queue->Wake();
    }
  }

  const uint64_t limit_;
  mutable std::mutex mutex_;  // guards what follows
  uint64_t held_ = 0;
  std::vector<std::weak_ptr<CompletionQueue>> waiting_;
};

}  // namespace fst
