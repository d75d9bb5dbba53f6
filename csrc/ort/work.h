// Work inside ONNX Runtime: on threads of its own, told to end from outside, and over before what it stands on goes.
//
// Two things go while work may run: the memory of a JavaScript environment (feeds, model bytes) with the environment,
// and the library's own statics with the process, since exit() destroys them under whatever still runs.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "base/status.h"
#include "ort/slice.h"

namespace fst::ort {

// Ends a run or the making of a session from another thread, before or while it runs.
class Control {
 public:
  // ONNX Runtime looks between two nodes; while it makes a session, from 1.22 on.
  void Stop();
  bool stopped() const;

  // What Stop reaches while this lives: one of the two. The options must outlive it.
  class Attached {
   public:
    Attached(Control* control, RunOptions* run, SessionOptions* making);
    ~Attached();
    Attached(const Attached&) = delete;
    Attached& operator=(const Attached&) = delete;

   private:
    Control* const control_;
  };

 private:
  mutable std::mutex mutex_;
  RunOptions* run_ = nullptr;
  SessionOptions* making_ = nullptr;
  bool stopped_ = false;
};

// Work that ends together: that of one environment. Any thread.
class WorkGroup : public std::enable_shared_from_this<WorkGroup> {
 public:
  static std::shared_ptr<WorkGroup> Make();

  // Runs `work` on a thread whose stack is as large as a program's own, unless the group has ended by then. `control`
  // may be null. Not OK only when there is no thread and none can be started.
  Status Post(std::shared_ptr<Control> control, std::function<void()> work);

  // Nothing begins any more and what runs is told to end. Waits for that: true when it is over. One node of a graph
  // cannot be stopped, so without a limit this may take as long as the longest of them.
  bool End(std::optional<std::chrono::milliseconds> limit);

 private:
  WorkGroup() = default;
  void Run(const std::shared_ptr<Control>& control, std::function<void()> work);

  std::mutex mutex_;  // guards what follows
  std::condition_variable idle_;
  bool ended_ = false;
  size_t running_ = 0;
  std::multiset<std::shared_ptr<Control>> controls_;  // of what runs
};

// What belongs to no environment: sessions that were dropped are freed here.
WorkGroup& Background();

// The process is about to exit: ends every group, waits a second at most. Whatever runs on then makes exit() skip all
// destructors. May be called again.
void EndProcess();

}  // namespace fst::ort
