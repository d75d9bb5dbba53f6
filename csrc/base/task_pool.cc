#include "base/task_pool.h"

#include <condition_variable>
#include <deque>
#include <mutex>

#include "base/thread.h"

namespace fst {

struct TaskPool::State {
  std::string name;
  int limit;
  size_t stack_bytes;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> tasks;
  int threads = 0, idle = 0;
  bool stopping = false;

  void Work() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      ++idle;
      wake.wait(lock, [this] { return stopping || !tasks.empty(); });
      --idle;
      if (tasks.empty()) break;
      std::function<void()> task = std::move(tasks.front());
      tasks.pop_front();
      lock.unlock();
      task();
      task = nullptr;  // what it holds is released outside the lock
      lock.lock();
    }
    --threads;
  }
};

TaskPool::TaskPool(const char* name, int threads, size_t stack_bytes) : state_(std::make_shared<State>()) {
  state_->name = name;
  state_->limit = threads;
  state_->stack_bytes = stack_bytes;
}

TaskPool::~TaskPool() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->stopping = true;
  state_->wake.notify_all();
}

Status TaskPool::Post(std::function<void()> task) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->idle <= static_cast<int>(state_->tasks.size()) && state_->threads < state_->limit) {
    Status started = StartThread(
        state_->name.c_str(), [state = state_] { state->Work(); }, state_->stack_bytes);
    if (started.ok()) {
      ++state_->threads;
    } else if (state_->threads == 0) {
      return started;
    }
  }
  state_->tasks.push_back(std::move(task));
  state_->wake.notify_one();
  return Status::Ok();
}

}  // namespace fst
