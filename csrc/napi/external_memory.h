// What V8 is told of the memory that JavaScript values keep: it collects garbage as that grows, and would see nothing
// of tensors but their small objects. Memory of GPUs counts as well: only the collector can free what was dropped.
#pragma once
#include <napi.h>

#include <cstdint>
#include <future>
#include <memory>
#include <vector>

namespace fst {

class Dispatcher;

// Memory as one or several JavaScript values keep it: each holds a reference, and the memory counts until the last one
// is gone. The environment's thread alone. Counting more may collect garbage, but runs no finalizer of this addon.
class ExternalMemory : public std::enable_shared_from_this<ExternalMemory> {
 public:
  static std::shared_ptr<ExternalMemory> Count(Napi::Env env, uint64_t bytes);
  // What so many bytes of a mapping count as: twice their page tables, since the kernel takes the pages themselves back
  // when it needs them. A collection takes as long as mapping a tenth of a gigabyte.
  static uint64_t CountOfMapped(uint64_t bytes) { return bytes / 256; }
  ~ExternalMemory();
  ExternalMemory(const ExternalMemory&) = delete;
  ExternalMemory& operator=(const ExternalMemory&) = delete;

  // V8 hears of none of it, nor of its parts and ArrayBuffers over them, before Tell() or the end of this: what it
  // hears of makes it collect, by threads that a load needs. TellParts: of the parts that there are, no more.
  void HoldBack() { held_back_ = true; }
  void Tell();
  void TellParts();

  // More is kept, or all of it by nothing any more.
  void Add(uint64_t bytes);
  void Clear();
  // Part of it under values of its own, `bytes` in all; what this one has no more of is counted anew. `mapped`: they
  // are pages of a file, which count as CountOfMapped says, with an ArrayBuffer over them as well.
  std::shared_ptr<ExternalMemory> Split(uint64_t bytes, bool mapped);

  // An ArrayBuffer over part of the memory is made, or was collected: V8 counts its bytes by itself.
  void Cover(uint64_t bytes);
  void Uncover(uint64_t bytes);

 private:
  ExternalMemory(Napi::Env env, uint64_t bytes, int64_t reported, bool mapped);
  void Report(int64_t bytes);
  void Update() { Report(Counted()); }
  int64_t Counted() const;
  int64_t ChangeOfParts();        // of those that there are, which are held back no longer
  int64_t Change(int64_t bytes);  // of what is reported, which becomes this

  napi_env env_;
  const std::shared_ptr<Dispatcher> dispatcher_;
  const std::shared_ptr<int64_t> given_back_;  // of all in this environment
  const bool mapped_;
  bool held_back_ = false;
  std::vector<std::weak_ptr<ExternalMemory>> parts_;  // while held back
  uint64_t bytes_;
  uint64_t covered_ = 0;  // by ArrayBuffers; more than bytes_ where they overlap
  int64_t reported_ = 0;  // to V8; below 0 takes off what it counts by itself
};

// All that V8 counts in an environment, typed arrays included.
uint64_t ExternalBytes(Napi::Env env);

// Ready when a collection that has not begun yet has released what was dropped before this call; perhaps never.
std::shared_future<void> NextCollection(Napi::Env env);

}  // namespace fst
