#include "napi/env_state.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>

namespace fst {
namespace {

// Set when the process begins to exit: event loops may not be touched from then on.
std::atomic<bool>& Exiting() {
  static auto* exiting = new std::atomic<bool>(false);
  return *exiting;
}

}  // namespace

Dispatcher::Dispatcher(Napi::Env env) {
  napi_value name;
  napi_create_string_utf8(env, "fastsafetensors", NAPI_AUTO_LENGTH, &name);
  napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, Drain, &function_);
  if (status != napi_ok) Napi::Error::Fatal("fastsafetensors", "the environment gives no thread-safe function");
  napi_unref_threadsafe_function(env, function_);
}

void Dispatcher::Post(std::function<void(Napi::Env)> task) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (function_ == nullptr || Exiting().load()) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

void Dispatcher::Drain(napi_env raw_env, napi_value, void* context, void*) {
  if (raw_env == nullptr) return;  // the environment is ending
  auto self = static_cast<Dispatcher*>(context)->shared_from_this();
  std::vector<std::function<void(Napi::Env)>> tasks;
  {
    std::lock_guard<std::mutex> lock(self->mutex_);
    tasks.swap(self->tasks_);
  }
  Napi::Env env(raw_env);
  for (auto& task : tasks) {
    Napi::HandleScope scope(env);
    try {
      task(env);
    } catch (const Napi::Error&) {
      // The environment is ending: it makes no more values, and nobody waits for them.
    }
  }
}

void Dispatcher::Close() {
  napi_threadsafe_function function;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    function = std::exchange(function_, nullptr);
  }
  if (function != nullptr) napi_release_threadsafe_function(function, napi_tsfn_abort);
  // Tasks hold JavaScript references, so they are destroyed before the environment is.
  std::vector<std::function<void(Napi::Env)>> dropped;
  std::lock_guard<std::mutex> lock(mutex_);
  dropped.swap(tasks_);
}

EnvState::EnvState(Napi::Env env) : dispatcher_(std::make_shared<Dispatcher>(env)) {
  static int registered = std::atexit([] { Exiting().store(true); });
  (void)registered;
  // Runs before the thread-safe function's own hook, which is older.
  env.AddCleanupHook([this] { End(); });
}

void EnvState::Track(const std::shared_ptr<Engine>& engine) {
  engines_.erase(std::remove_if(engines_.begin(), engines_.end(), [](const auto& weak) { return weak.expired(); }),
                 engines_.end());
  engines_.push_back(engine);
}

void EnvState::End() {
  struct Waiting {
    std::mutex mutex;
    std::condition_variable done;
    int left = 0;
  };
  auto waiting = std::make_shared<Waiting>();
  for (auto& weak : engines_) {
    if (auto engine = weak.lock()) {
      {
        std::lock_guard<std::mutex> lock(waiting->mutex);
        ++waiting->left;
      }
      engine->Close([waiting] {
        std::lock_guard<std::mutex> lock(waiting->mutex);
        if (--waiting->left == 0) waiting->done.notify_all();
      });
    }
  }
  {
    // After a second, engines are left to their threads, with their memory: memory under I/O is never freed.
    std::unique_lock<std::mutex> lock(waiting->mutex);
    waiting->done.wait_for(lock, std::chrono::seconds(1), [&] { return waiting->left == 0; });
  }
  dispatcher_->Close();
}

}  // namespace fst
