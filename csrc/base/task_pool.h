// A few detached threads that run blocking work in the order it was posted.
//
// Work goes to the thread that has been idle for the shortest time, and a thread is started only where none is idle. So
// work that comes piece by piece stays on one thread, and the memory that it frees there (malloc keeps an arena a
// thread) serves the next piece; spread over many threads, each arena would keep the most that a piece needed.
#pragma once
#include <functional>
#include <memory>

#include "base/status.h"

namespace fst {

class TaskPool {
 public:
  // At most `threads` threads, started as work arrives. `name` shows in debuggers. Other libraries may need more stack.
  TaskPool(const char* name, int threads, size_t stack_bytes = 1 << 20);
  // Tasks that were posted still run; the threads end after them. Never blocks.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // Any thread. Fails only when the pool has no thread and can start none; the task will not run then.
  Status Post(std::function<void()> task);

  // For telling that a task is done to somebody who may post the next: in a task, `then` runs after it and when its
  // thread counts as idle, so that the next finds that thread; elsewhere at once. In order; short, and without waiting.
  static void AfterTask(std::function<void()> then);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fst
