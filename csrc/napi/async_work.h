// Work for JavaScript on other threads, and the promises of it.
#pragma once
#include <napi.h>

#include <functional>

#include "base/status.h"
#include "base/task_pool.h"

namespace fst {

// Promises that do not keep the event loop alive: the code that waits for one does, in TypeScript. Called on the
// environment's thread.
class AsyncWork {
 public:
  using Work = std::function<Status()>;
  using Done = std::function<Napi::Value(Napi::Env)>;
  // Runs `work` on a worker, then `done` on the environment's thread, which makes the value (undefined without one).
  // Rejects with StatusToJs of what `work` returns, or with the Napi::Error that `done` throws. `keep` is not collected
  // before the promise settles. Neither function may own JavaScript values: both may be destroyed on any thread.
  static Napi::Value Run(Napi::Env env, Work work, Done done, napi_value keep = nullptr);

  // The same for calls on files, which hang where their store does: on threads of their own, so that all other work
  // goes on.
  static Napi::Value RunOnFile(Napi::Env env, Work work, Done done);

  // Run() for what ends by a callback: `*finish` takes the place of `work`'s return. Any thread, to be called once.
  static Napi::Value Pending(Napi::Env env, std::function<void(Status)>* finish, Done done, napi_value keep = nullptr);

  // Calls Close(callback) of an object; the promise resolves when that calls back.
  template <class T>
  static Napi::Value Close(Napi::Env env, T& object) {
    std::function<void(Status)> finish;
    Napi::Value promise = Pending(env, &finish, nullptr);
    object.Close([finish] { finish(Status::Ok()); });
    return promise;
  }

 private:
  static Napi::Value RunOn(TaskPool& pool, Napi::Env env, Work work, Done done, napi_value keep);
};

}  // namespace fst
