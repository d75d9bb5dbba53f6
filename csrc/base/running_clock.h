// Time in which this process runs. While it is stopped (SIGSTOP, a debugger, `docker pause`) the clocks of the system
// go on, but no thread can take up what has completed: none of it is late.
#pragma once
#include <algorithm>
#include <chrono>

namespace fst {

// For a thread that looks at it once a tick or more often. A longer time between two looks counts as one tick.
class RunningClock {
 public:
  using Clock = std::chrono::steady_clock;

  explicit RunningClock(Clock::duration tick) : tick_(tick) {}
  Clock::duration tick() const { return tick_; }
  // Time that has counted by `now`, which is not before the last look.
  Clock::duration At(Clock::time_point now) const { return ran_ + std::min(now - looked_, tick_); }
  void Look(Clock::time_point now) {
    ran_ = At(now);
    looked_ = now;
  }

 private:
  const Clock::duration tick_;
  Clock::duration ran_ = {};
  Clock::time_point looked_ = Clock::now();
};

}  // namespace fst
