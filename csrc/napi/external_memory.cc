#include "napi/external_memory.h"

#include <algorithm>
#include <utility>

#include "napi/env_state.h"

namespace fst {

namespace {

void Adjust(napi_env env, int64_t change) {
  int64_t total;
  if (change != 0) napi_adjust_external_memory(env, change, &total);
}

}  // namespace

ExternalMemory::ExternalMemory(Napi::Env env, uint64_t bytes, int64_t reported, bool mapped)
    : env_(env),
      dispatcher_(EnvState::Of(env).dispatcher()),
      given_back_(EnvState::Of(env).given_back()),
      mapped_(mapped),
      bytes_(bytes),
      reported_(reported) {}

std::shared_ptr<ExternalMemory> ExternalMemory::Count(Napi::Env env, uint64_t bytes) {
  std::shared_ptr<ExternalMemory> memory(new ExternalMemory(env, bytes, 0, /*mapped=*/false));
  memory->Update();
  return memory;
}

ExternalMemory::~ExternalMemory() {
  bytes_ = covered_ = 0;
  Tell();
  Report(0);
}

void ExternalMemory::Tell() {
  if (!std::exchange(held_back_, false)) return;
  const int64_t more = Change(Counted());
  Adjust(env_, more + ChangeOfParts());
}

void ExternalMemory::TellParts() { Adjust(env_, ChangeOfParts()); }

int64_t ExternalMemory::ChangeOfParts() {
  int64_t more = 0;
  for (const std::weak_ptr<ExternalMemory>& weak : std::exchange(parts_, {})) {
    auto part = weak.lock();
    if (part == nullptr) continue;
    part->held_back_ = false;
    more += part->Change(part->Counted());
  }
  return more;
}

void ExternalMemory::Add(uint64_t bytes) {
  bytes_ += bytes;
  Update();
}

void ExternalMemory::Clear() {
  bytes_ = 0;
  Update();
}

std::shared_ptr<ExternalMemory> ExternalMemory::Split(uint64_t bytes, bool mapped) {
  if (mapped) bytes = CountOfMapped(bytes);
  // Moved rather than counted again: V8 takes each increase for new memory.
  const int64_t moved = std::min(static_cast<int64_t>(bytes), reported_);
  bytes_ -= std::min(bytes, bytes_);
  reported_ -= moved;
  std::shared_ptr<ExternalMemory> part(new ExternalMemory(env_, bytes, moved, mapped));
  if (held_back_) {
    part->held_back_ = true;
    parts_.push_back(part);
  }
  part->Update();
  return part;
}

void ExternalMemory::Cover(uint64_t bytes) {
  covered_ += bytes;
  Update();
}

void ExternalMemory::Uncover(uint64_t bytes) {
  covered_ -= bytes;
  // Later, since what keeps the memory itself was often collected with the ArrayBuffer, and is finalized after it.
  dispatcher_->Post([weak = weak_from_this()](Napi::Env) {
    if (auto memory = weak.lock()) memory->Update();
  });
}

int64_t ExternalMemory::Counted() const {
  const int64_t left = static_cast<int64_t>(held_back_ ? 0 : bytes_) - static_cast<int64_t>(covered_);
  return mapped_ || held_back_ ? left : std::max<int64_t>(left, 0);
}

int64_t ExternalMemory::Change(int64_t bytes) { return bytes - std::exchange(reported_, bytes); }

void ExternalMemory::Report(int64_t bytes) {
  // What was taken off for ArrayBuffers, which are collected by the thousand: from each growth by 64 MiB V8 collects
  // garbage, and this is none. So V8 hears of all that comes back before the event loop has its turn at once.
  const int64_t taken_off = std::max<int64_t>(-reported_, 0);
  const int64_t change = Change(bytes), given_back = std::clamp<int64_t>(change, 0, taken_off);
  if (given_back > 0) {
    if (*given_back_ == 0) {
      dispatcher_->Post([all = given_back_](Napi::Env env) { Adjust(env, std::exchange(*all, 0)); });
    }
    *given_back_ += given_back;
  }
  Adjust(env_, change - given_back);
}

uint64_t ExternalBytes(Napi::Env env) {
  int64_t total = 0;
  napi_adjust_external_memory(env, 0, &total);
  return static_cast<uint64_t>(total);
}

std::shared_future<void> NextCollection(Napi::Env env) {
  struct Dropped {
    std::shared_ptr<Dispatcher> dispatcher;
    std::shared_ptr<std::promise<void>> collected;
  };
  Napi::HandleScope scope(env);
  auto dropped =
      std::make_unique<Dropped>(Dropped{EnvState::Of(env).dispatcher(), std::make_shared<std::promise<void>>()});
  std::shared_future<void> future = dropped->collected->get_future().share();
  // Nothing refers to this value.
  Napi::External<Dropped>::New(env, dropped.get(), [](Napi::Env, Dropped* dead) {
    // Posted, since finalizers of others may come after this one.
    dead->dispatcher->Post([collected = dead->collected](Napi::Env) { collected->set_value(); });
    delete dead;
  });
  dropped.release();  // NOLINT: the finalizer owns it now; before, New may have thrown
  return future;
}

}  // namespace fst
