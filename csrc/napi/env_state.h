// The state of one JavaScript environment (the main thread's or a worker's): the way back to its thread, and the
// engines that must close before it ends.
#pragma once
#include <napi.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "transfer/engine.h"

namespace fst {

// Runs functions on the thread of an environment. Shared by everything that may outlive the environment: after its end,
// posted functions are dropped.
class Dispatcher : public std::enable_shared_from_this<Dispatcher> {
 public:
  explicit Dispatcher(Napi::Env env);

  // Any thread. The function runs on the environment's thread with a handle scope open, or never. The event loop does
  // not stay alive for it.
  void Post(std::function<void(Napi::Env)> task);

  // The environment's thread, at its end.
  void Close();

 private:
  static void Drain(napi_env env, napi_value callback, void* context, void* data);

  std::mutex mutex_;  // guards what follows
  napi_threadsafe_function function_ = nullptr;
  std::vector<std::function<void(Napi::Env)>> tasks_;
};

class EnvState {
 public:
  explicit EnvState(Napi::Env env);
  static EnvState& Of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

  const std::shared_ptr<Dispatcher>& dispatcher() const { return dispatcher_; }
  // Bytes that V8 hears of in the next turn: see ExternalMemory. The environment's thread alone.
  const std::shared_ptr<int64_t>& given_back() const { return given_back_; }
  // Of loads that V8 may not have heard of: true when it has, or there is nothing to hear. The environment's thread.
  std::deque<std::function<bool()>>& tellers() { return tellers_; }
  // Closes the engine when the environment ends, and waits for that, at most a second for all engines together.
  void Track(const std::shared_ptr<Engine>& engine);

 private:
  void End();

  std::shared_ptr<Dispatcher> dispatcher_;
  std::shared_ptr<int64_t> given_back_ = std::make_shared<int64_t>(0);
  std::deque<std::function<bool()>> tellers_;
  std::vector<std::weak_ptr<Engine>> engines_;
};

}  // namespace fst
