// The onnxruntime library that the program has loaded (onnxruntime-node brings it): found, checked, never loaded again.
#pragma once
#include <string>

#include "base/status.h"
#include "ort/slice.h"

namespace fst::ort {

struct Library {
  Functions api;
  std::string path;     // the file it was loaded from
  std::string version;  // "1.30.0"
  uint32_t api_version = 0;
  Env* env = nullptr;  // the process's only one; never released
};

// The library, bound on the first call that finds it; valid for the rest of the process. Any thread.
// `log_severity` (0 verbose to 4 fatal) applies unless the process has an environment. DEVICE_UNAVAILABLE when no
// onnxruntime is loaded; PLATFORM_UNSUPPORTED for an unsupported version.
Status OpenLibrary(int log_severity, const Library** out);

// The library; only after OpenLibrary was OK.
const Library& TheLibrary();
inline const Functions& Ort() { return TheLibrary().api; }

// Converts an OrtStatus and releases it. The message begins with "cannot " + `doing`.
Status FromOrt(OrtStatus* status, const std::string& doing);

#define FST_RETURN_IF_ORT_ERROR(expr, doing) FST_RETURN_IF_ERROR(::fst::ort::FromOrt((expr), (doing)))

// Owns one handle of the library.
template <class T, void (*Functions::*release)(T*)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(T* handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(other.Release()) {}
  Owned& operator=(Owned&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() { Reset(nullptr); }

  T* get() const { return handle_; }
  // For functions that return a handle through a pointer. Releases the present one.
  T** out() {
    Reset(nullptr);
    return &handle_;
  }
  T* Release() {
    T* handle = handle_;
    handle_ = nullptr;
    return handle;
  }
  void Reset(T* handle) {
    if (handle_ != nullptr) (Ort().*release)(handle_);
    handle_ = handle;
  }

 private:
  T* handle_ = nullptr;
};

using OwnedSession = Owned<OrtSession, &Functions::ReleaseSession>;
using OwnedSessionOptions = Owned<SessionOptions, &Functions::ReleaseSessionOptions>;
using OwnedRunOptions = Owned<RunOptions, &Functions::ReleaseRunOptions>;
using OwnedValue = Owned<OrtValue, &Functions::ReleaseValue>;
using OwnedMemoryInfo = Owned<MemoryInfo, &Functions::ReleaseMemoryInfo>;
using OwnedBinding = Owned<IoBinding, &Functions::ReleaseIoBinding>;
using OwnedTypeInfo = Owned<TypeInfo, &Functions::ReleaseTypeInfo>;
using OwnedTensorInfo = Owned<TensorInfo, &Functions::ReleaseTensorTypeAndShapeInfo>;
using OwnedCudaOptions = Owned<CudaOptions, &Functions::ReleaseCUDAProviderOptions>;

}  // namespace fst::ort
