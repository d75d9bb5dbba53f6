// A few detached threads that run blocking work in the order it was posted.
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

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fst
