#include "base/task_pool.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/thread.h"

namespace fst {

namespace {

// What the running task left for afterwards; null on threads of no pool, and while none runs.
thread_local std::vector<std::function<void()>>* after_task = nullptr;

}  // namespace

struct TaskPool::State {
  struct Idler {
    std::condition_variable wake;
    std::function<void()> task;
  };

  std::string name;
  int limit;
  size_t stack_bytes;
  std::mutex mutex;
  std::deque<std::function<void()>> tasks;  // only while no thread is idle
  std::vector<Idler*> idle;                 // each on its thread's stack; the last has been idle for the shortest time
  int threads = 0;
  bool stopping = false;

  void Work(std::function<void()> task) {
    Idler self;
    while (task != nullptr) {
      std::vector<std::function<void()>> after;
      after_task = &after;
      task();
      task = nullptr;  // what it holds is released outside the lock
      after_task = nullptr;
      task = Next(&self, std::move(after));
    }
  }

  // The next task of this thread; null when it is to end.
  std::function<void()> Next(Idler* self, std::vector<std::function<void()>> after) {
    std::unique_lock<std::mutex> lock(mutex);
    std::function<void()> task;
    const bool busy = !tasks.empty();
    if (busy) {
      task = std::move(tasks.front());
      tasks.pop_front();
    } else {
      idle.push_back(self);
    }
    if (!after.empty()) {
      lock.unlock();
      for (auto& then : after) std::exchange(then, nullptr)();
      lock.lock();
    }
    if (!busy) {
      self->wake.wait(lock, [&] { return stopping || self->task != nullptr; });
      task = std::exchange(self->task, nullptr);
    }
    if (task == nullptr) --threads;
    return task;
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
  for (State::Idler* idler : state_->idle) idler->wake.notify_one();
}

Status TaskPool::Post(std::function<void()> task) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (!state_->idle.empty()) {
    State::Idler* idler = state_->idle.back();
    state_->idle.pop_back();
    idler->task = std::move(task);
    idler->wake.notify_one();
    return Status::Ok();
  }
  if (state_->threads < state_->limit) {
    auto first = std::make_shared<std::function<void()>>(std::move(task));
    Status started = StartThread(
        state_->name.c_str(),
        // Not just moved: in libc++ that may leave a copy, which would hold what it captured as long as the thread
        // lives.
        [state = state_, first] { state->Work(std::exchange(*first, nullptr)); }, state_->stack_bytes);
    if (started.ok()) ++state_->threads;
    if (started.ok() || state_->threads == 0) return started;
    task = std::move(*first);
  }
  state_->tasks.push_back(std::move(task));
  return Status::Ok();
}

void TaskPool::AfterTask(std::function<void()> then) {
  if (after_task == nullptr) return then();
  after_task->push_back(std::move(then));
}

}  // namespace fst
