// Where readers and copy streams report what has completed. Many threads put; one I/O thread takes and sleeps here.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/status.h"

namespace fst {

using Clock = std::chrono::steady_clock;

struct Completion {
  enum class Kind : uint8_t { kOpen, kRead, kDigest, kConvert, kCopy, kUnpin, kClose };
  Kind kind;
  uint64_t tag;   // as given with the submission
  Status status;  // OK: all that was asked for is done
};

class CompletionQueue {
 public:
  // Put and Wake: any thread, which holds the queue until they return: they notify when they have unlocked, as the
  // thread that takes would wake only to wait for the lock.
  void Put(Completion completion) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      completions_.push_back(std::move(completion));
    }
    wake_.notify_one();
  }

  // Makes Take return although nothing has completed.
  void Wake() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  }

  // The I/O thread: moves all completions into `out` (cleared first), waiting for one, for Wake() or for the deadline.
  void Take(std::vector<Completion>* out, Clock::time_point deadline) {
    out->clear();
    std::unique_lock<std::mutex> lock(mutex_);
    auto ready = [this] { return woken_ || !completions_.empty(); };
    if (deadline == Clock::time_point::max()) {
      wake_.wait(lock, ready);
    } else {
      wake_.wait_until(lock, deadline, ready);
    }
    woken_ = false;
    out->swap(completions_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Completion> completions_;
  bool woken_ = false;
};

}  // namespace fst
