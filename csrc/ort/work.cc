#include "ort/work.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ort/library.h"

namespace fst::ort {
namespace {

constexpr std::chrono::milliseconds kExitTimeout{1000};

TaskPool* Threads() {
  // Runs block a thread each; ONNX Runtime spreads one run over its own threads.
  static TaskPool* pool = new TaskPool("fst-ort", 32, size_t{8} << 20);
  return pool;
}

// One of its own: sessions are collected many at a time, which would start as many of the above.
TaskPool* FreeingThread() {
  static TaskPool* pool = new TaskPool("fst-ort-free", 1, size_t{8} << 20);
  return pool;
}

struct Groups {
  std::mutex mutex;
  std::vector<std::weak_ptr<WorkGroup>> all;
  bool ended = false;

  // False when the process is ending.
  bool Add(const std::shared_ptr<WorkGroup>& group) {
    std::lock_guard<std::mutex> lock(mutex);
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& weak) { return weak.expired(); }), all.end());
    all.push_back(group);
    return !ended;
  }

  // Ends all; true when all are over within the limit.
  bool End(std::chrono::milliseconds limit) {
    std::vector<std::shared_ptr<WorkGroup>> groups;
    {
      std::lock_guard<std::mutex> lock(mutex);
      ended = true;
      for (auto& weak : all) {
        if (auto group = weak.lock()) groups.push_back(std::move(group));
      }
    }
    for (auto& group : groups) group->End(std::chrono::milliseconds(0));
    const auto until = std::chrono::steady_clock::now() + limit;
    bool over = true;
    for (auto& group : groups) {
      auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
      over = group->End(std::max(left, std::chrono::milliseconds(0))) && over;
    }
    return over;
  }
};

Groups& AllGroups() {
  static auto* groups = new Groups;
  return *groups;
}

// Set when running work has been waited for: of the 'exit' event and the exit handler, only the first waits.
std::atomic<bool> waited{false};

void EndAtExit(int status) {
  if (AllGroups().End(waited.load() ? std::chrono::milliseconds(0) : kExitTimeout)) return;
  fflush(nullptr);
  _exit(status);
}

// exit() calls handlers in the reverse order of their registration, and destructors of statics are such handlers. So
// statics constructed after this call are destroyed before our handler runs; EndProcess registers it once more.
void RegisterExit() {
#ifdef __GLIBC__
  on_exit([](int status, void*) { EndAtExit(status); }, nullptr);
#else
  atexit([] { EndAtExit(EXIT_FAILURE); });  // musl's handlers are not told the status; work that does not end failed
#endif
}

}  // namespace

void Control::Stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  // These fail for null objects only.
  if (run_ != nullptr) (void)FromOrt(Ort().RunOptionsSetTerminate(run_), "end a run");
  if (making_ != nullptr && Ort().SessionOptionsSetLoadCancellationFlag != nullptr) {
    (void)FromOrt(Ort().SessionOptionsSetLoadCancellationFlag(making_, true), "end the creation of a session");
  }
}

bool Control::stopped() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stopped_;
}

Control::Attached::Attached(Control* control, RunOptions* run, SessionOptions* making) : control_(control) {
  if (control_ == nullptr) return;
  std::lock_guard<std::mutex> lock(control_->mutex_);
  control_->run_ = run;
  control_->making_ = making;
}

Control::Attached::~Attached() {
  if (control_ == nullptr) return;
  std::lock_guard<std::mutex> lock(control_->mutex_);
  control_->run_ = nullptr;
  control_->making_ = nullptr;
}

std::shared_ptr<WorkGroup> WorkGroup::Make() { return MakeOn(Threads()); }

std::shared_ptr<WorkGroup> WorkGroup::MakeOn(TaskPool* threads) {
  static bool registered = (RegisterExit(), true);
  (void)registered;
  std::shared_ptr<WorkGroup> group(new WorkGroup(threads));
  if (!AllGroups().Add(group)) group->ended_ = true;
  return group;
}

Status WorkGroup::Post(std::shared_ptr<Control> control, std::function<void()> work) {
  return threads_->Post([self = shared_from_this(), control = std::move(control), work = std::move(work)]() mutable {
    self->Run(control, std::move(work));
  });
}

void WorkGroup::Run(const std::shared_ptr<Control>& control, std::function<void()> work) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return;
    ++running_;
    if (control != nullptr) controls_.insert(control);
  }
  work();
  work = nullptr;  // what it holds is released before End returns
  // After what the work itself left for then: that may hold more.
  TaskPool::AfterTask([self = shared_from_this(), control] {
    std::lock_guard<std::mutex> lock(self->mutex_);
    if (control != nullptr) self->controls_.erase(self->controls_.find(control));
    if (--self->running_ == 0) self->idle_.notify_all();
  });
}

bool WorkGroup::End(std::optional<std::chrono::milliseconds> limit) {
  std::unique_lock<std::mutex> lock(mutex_);
  ended_ = true;
  for (const auto& control : controls_) control->Stop();
  auto over = [this] { return running_ == 0; };
  if (limit) return idle_.wait_for(lock, *limit, over);
  idle_.wait(lock, over);
  return true;
}

WorkGroup& Background() {
  static auto* group = new std::shared_ptr<WorkGroup>(WorkGroup::MakeOn(FreeingThread()));
  return **group;
}

void EndProcess() {
  AllGroups().End(kExitTimeout);
  waited = true;
  RegisterExit();
}

}  // namespace fst::ort
