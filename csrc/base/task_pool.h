// A few detached threads that run blocking work in the order it was posted.
#pragma once
#include <functional>
#include <memory>

#include "base/status.h"

namespace fst {

class TaskPool {
 public:
  // At most `threads` threads, started as work arrives. `name` shows in debuggers. Foreign code may need more stack.
  TaskPool(const char* name, int threads, size_t stack_bytes = 1 << 20);
  // Tasks already posted still run; their threads end after them. Never waits.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // Any thread. Not OK only when there is no thread and none can be started: the task was not taken then.
  Status Post(std::function<void()> task);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fst
