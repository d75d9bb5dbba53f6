// The limit of bytes a second that all engines of a loader keep to together.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>

#include "base/completion_queue.h"

namespace fst {

// Any thread.
class Pace {
 public:
  // At least 1.
  explicit Pace(uint64_t bytes_per_second) : rate_(bytes_per_second) {}

  // Bytes of a read at most, a power of two: the last read of a load is over before its time is.
  uint64_t LongestRead() const {
    uint64_t bytes = kShortest;
    while (bytes * 2 <= rate_ / 100) bytes *= 2;
    return bytes;
  }

  // An engine that read nothing begins to: what it has not read until now is not made up for.
  void Begin() {
    std::lock_guard<std::mutex> lock(mutex_);
    free_at_ = std::max(free_at_, Clock::now());
  }

  // When the next read may begin.
  Clock::time_point free_at() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return free_at_;
  }

  // A read of so many bytes has begun.
  void Spend(uint64_t bytes) {
    const std::chrono::nanoseconds cost(bytes * 1000000000 / rate_);
    std::lock_guard<std::mutex> lock(mutex_);
    free_at_ = std::max(free_at_, Clock::now() - kMadeUp) + cost;
  }

 private:
  static constexpr uint64_t kShortest = 64 << 10;
  // Reads that begin later than they may are followed sooner, by this much at most. Timers are late: at 10 GB/s, where
  // 16 MiB take 1.7 ms, by a fifth of the rate.
  static constexpr auto kMadeUp = std::chrono::milliseconds(10);

  const uint64_t rate_;
  mutable std::mutex mutex_;  // guards free_at_
  Clock::time_point free_at_ = Clock::time_point::min();
};

}  // namespace fst
