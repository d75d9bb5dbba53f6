// Between C++ values and JavaScript ones.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "napi/env_state.h"

namespace fst {

// {code, message, path?, tensor?, offset?}: src/native/addon.ts makes a FastSafetensorsError of it.
Napi::Object StatusToJs(Napi::Env env, const Status& status);

// Leaves a pending exception: `return Throw(env, status);`.
Napi::Value Throw(Napi::Env env, const Status& status);

// A promise that is rejected already.
Napi::Value Rejected(Napi::Env env, const Status& status);

// What std::bad_alloc becomes at the boundary: the core's own bookkeeping is not checked piece by piece.
Status OutOfMemory();

// A shared pointer as a JavaScript value; collected with it. Type-checked by FromExternal.
template <class T>
Napi::Value ToExternal(Napi::Env env, std::shared_ptr<T> value) {
  auto owned = std::make_unique<std::shared_ptr<T>>(std::move(value));
  Napi::Value external = Napi::External<std::shared_ptr<T>>::New(
      env, owned.get(), [](Napi::Env, std::shared_ptr<T>* dead) { delete dead; });
  owned.release();  // NOLINT: the finalizer owns it now; before, New may have thrown
  return external;
}

// src/native/addon.ts is the only caller and passes what ToExternal made.
template <class T>
std::shared_ptr<T>& FromExternal(const Napi::Value& value) {
  return *value.As<Napi::External<std::shared_ptr<T>>>().Data();
}

// A promise for work on another thread: `work` runs there, then `done` on the environment's thread makes the value. The
// event loop stays alive until then.
class AsyncWork {
 public:
  using Work = std::function<Status()>;
  using Done = std::function<Napi::Value(Napi::Env)>;
  // The promise; rejected with StatusToJs of what `work` returns, or with the Napi::Error that `done` throws. `keep` is
  // not collected before it settles. Neither function may own JavaScript values: both may be destroyed on any thread.
  static Napi::Value Run(Napi::Env env, Work work, Done done, napi_value keep = nullptr);

  // The same for what ends by a callback: resolve with the function returned, from any thread, once.
  static Napi::Value Pending(Napi::Env env, std::function<void(Status)>* finish, Done done, napi_value keep = nullptr);
};

}  // namespace fst
