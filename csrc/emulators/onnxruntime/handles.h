// What the opaque types of csrc/ort/slice.h are here, and which of them are alive.
#pragma once
#include <map>
#include <mutex>
#include <set>
#include <string>
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
  bool terminate = false;
};
struct SessionOptions {
  int device = -1;
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

// What was made and not released; at exit it is told of.
class Handles {
 public:
  ~Handles() {
    for (const auto& [kind, handles] : live_) {
      if (!handles.empty()) Abort("%zu %ss were never released", handles.size(), kind.c_str());
    }
  }
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
};

}  // namespace fst::emulated_ort
