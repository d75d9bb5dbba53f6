// Work inside ONNX Runtime: on its own threads, stoppable from others, and over before anything that it uses is freed.
//
// Two things that running work uses end on their own: the memory of a JavaScript environment (feeds, model bytes), with
// the environment; and the library's statics, which exit() destroys.
#pragma once
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "base/status.h"
#include "base/task_pool.h"
#include "ort/slice.h"

namespace fst::ort {

// Stops a run or the creation of a session from another thread, before or while it runs.
class Control {
 public:
  // ONNX Runtime checks for it between two nodes of a graph; while it creates a session, only from 1.22 on.
  void Stop();
  bool stopped() const;

  // While this exists, Stop reaches a run or a creation through its options: one of the two, which must outlive this.
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

// Work that ends together, such as that of one environment. Any thread.
class WorkGroup : public std::enable_shared_from_this<WorkGroup> {
 public:
  static std::shared_ptr<WorkGroup> Make();

  // Runs `work` on a thread with a stack of 8 MiB, unless the group has ended by then. `control` may be null. Fails
  // only when there is no thread and none can be started.
  Status Post(std::shared_ptr<Control> control, std::function<void()> work);

  // Starts no more work, stops what runs and waits for it: true when all has ended. A node of a graph cannot be
  // stopped, so without a limit this takes up to as long as the longest node.
  bool End(std::optional<std::chrono::milliseconds> limit);

 private:
  friend WorkGroup& Background();
  explicit WorkGroup(TaskPool* threads) : threads_(threads) {}
  static std::shared_ptr<WorkGroup> MakeOn(TaskPool* threads);
  void Run(const std::shared_ptr<Control>& control, std::function<void()> work);

  TaskPool* const threads_;  // lives as long as the process
  std::mutex mutex_;         // guards what follows
  std::condition_variable idle_;
  bool ended_ = false;
  size_t running_ = 0;
  std::multiset<std::shared_ptr<Control>> controls_;  // of what runs
};

// The group of work that belongs to no environment: on a thread of its own it frees sessions that were not closed and
// whose last reference is gone.
WorkGroup& Background();

// Ends every group before the process exits, and waits at most a second. If work still runs then, exit() skips all
// destructors. May be called again.
void EndProcess();

}  // namespace fst::ort
