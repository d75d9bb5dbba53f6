#include "napi/async_work.h"

#include <new>
#include <utility>

#include "napi/env_state.h"
#include "napi/js_values.h"

namespace fst {

namespace {

// The process's workers. Not libuv's pool: a mount that hangs must not stop the program's own file system calls.
TaskPool& Workers() {
  static TaskPool* pool = new TaskPool("fst-work", 8);
  return *pool;
}

// Those for files: several loads that hang leave some to the others (src/base/waiting.ts says how many one takes).
TaskPool& FileWorkers() {
  static TaskPool* pool = new TaskPool("fst-files", 64);
  return *pool;
}

struct Promise {
  Napi::Promise::Deferred deferred;
  AsyncWork::Done done;
  napi_ref kept = nullptr;  // deleted on the environment's thread, or with the environment
};

}  // namespace

Napi::Value AsyncWork::Pending(Napi::Env env, std::function<void(Status)>* finish, Done done, napi_value keep) {
  auto promise = std::make_shared<Promise>(Promise{Napi::Promise::Deferred::New(env), std::move(done)});
  if (keep != nullptr) napi_create_reference(env, keep, 1, &promise->kept);
  auto dispatcher = EnvState::Of(env).dispatcher();
  Napi::Value result = promise->deferred.Promise();
  *finish = [dispatcher, promise = std::move(promise)](const Status& status) {
    auto settle = [promise, status](Napi::Env on) {
      if (promise->kept != nullptr) napi_delete_reference(on, std::exchange(promise->kept, nullptr));
      if (!status.ok()) return promise->deferred.Reject(StatusToJs(on, status));
      Napi::Value value;
      try {
        value = promise->done ? promise->done(on) : on.Undefined();
      } catch (const Napi::Error& error) {
        return promise->deferred.Reject(error.Value());
      }
      promise->deferred.Resolve(value);
    };
    TaskPool::AfterTask([dispatcher, settle = std::move(settle)]() mutable { dispatcher->Post(std::move(settle)); });
  };
  return result;
}

Napi::Value AsyncWork::Run(Napi::Env env, Work work, Done done, napi_value keep) {
  return RunOn(Workers(), env, std::move(work), std::move(done), keep);
}

Napi::Value AsyncWork::RunOnFile(Napi::Env env, Work work, Done done) {
  return RunOn(FileWorkers(), env, std::move(work), std::move(done), nullptr);
}

Napi::Value AsyncWork::RunOn(TaskPool& pool, Napi::Env env, Work work, Done done, napi_value keep) {
  std::function<void(Status)> finish;
  Napi::Value promise = Pending(env, &finish, std::move(done), keep);
  Status posted = pool.Post([work = std::move(work), finish]() mutable {
    Status status;
    try {
      status = work();
    } catch (const std::bad_alloc&) {
      status = OutOfMemory();
    }
    work = nullptr;  // what it holds is released before the promise settles
    finish(status);
  });
  if (!posted.ok()) finish(posted);
  return promise;
}

}  // namespace fst
