// What the opaque types of csrc/ort/slice.h are here, and which of them are alive.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulators/onnxruntime/device_memory.h"
#include "ort/slice.h"

namespace fst::ort {

struct Env {};
struct Allocator {};
struct OrtStatus {
  int code;
  std::string message;
};
struct MemoryInfo {
  std::string name;
  int id = 0;
  int Device() const { return name == "Cuda" ? id : -1; }
};
struct TensorInfo {
  int type = kFloat;
  std::vector<int64_t> dims;
};
struct TypeInfo {
  TensorInfo tensor;
};
struct OrtValue {
  MemoryInfo memory;
  TensorInfo info;
  void* data = nullptr;
  size_t bytes = 0;
  bool owned = false;
};
struct CudaOptions {
  int device = 0;
};
struct RunOptions {
  std::atomic<bool> ended{false};
};
struct SessionOptions {
  int device = -1;
  std::atomic<bool> ended{false};
  std::map<std::string, const OrtValue*> initializers;
};
struct OrtSession {
  int device = -1;
  const OrtValue* weight = nullptr;
};
struct IoBinding {
  OrtSession* session = nullptr;
  const OrtValue* input = nullptr;
  const OrtValue* output = nullptr;  // given; or
  MemoryInfo place;
  bool synchronized = false;
  OrtValue* result = nullptr;
};

}  // namespace fst::ort

namespace fst::emulated_ort {

// What was made and not released; at exit it is told of. A static object of the library: exit() destroys it, and what
// calls then or later ends the process, as it may with the real library.
class Handles {
 public:
  ~Handles() {
    if (calls_ > 0) Abort("exit() destroys its static objects while %d calls are inside", calls_.load());
    destroyed_ = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // a call meanwhile shows
    if (Setting("FST_EMU_ORT_LEAKS", 1) == 0) return;
    for (const auto& [kind, handles] : live_) {
      if (!handles.empty()) Abort("%zu %ss were never released", handles.size(), kind.c_str());
    }
  }
  // One call into the library, while it lives.
  class Call {
   public:
    explicit Call(Handles* handles) : handles_(handles) {
      ++handles_->calls_;
      if (handles_->destroyed_) Abort("called after exit() destroyed its static objects");
    }
    ~Call() { --handles_->calls_; }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Handles* const handles_;
  };
  template <class T>
  T* Made(const char* kind, T* handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    live_[kind].insert(handle);
    return handle;
  }
  template <class T>
  void Release(const char* kind, T* handle) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (live_[kind].erase(handle) == 0) Abort("a %s is released twice", kind);
    }
    delete handle;
  }
  void Expect(const char* kind, const void* handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (live_[kind].count(handle) == 0) Abort("a %s is used after its release", kind);
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::set<const void*>> live_;
  std::atomic<int> calls_{0};
  std::atomic<bool> destroyed_{false};
};

}  // namespace fst::emulated_ort
