#include "emulators/onnxruntime/device_memory.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace fst::emulated_ort {
namespace {

using Context = void*;

struct Driver {
  int (*DeviceGet)(int*, int);
  int (*Retain)(Context*, int);
  int (*Release)(int);
  int (*SetCurrent)(Context);
  int (*GetCurrent)(Context*);
  int (*Alloc)(unsigned long long*, size_t);
  int (*Free)(unsigned long long);
  int (*DtoH)(void*, unsigned long long, size_t);
  int (*HtoD)(unsigned long long, const void*, size_t);
  int (*Synchronize)();
};

template <class F>
void Find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  if (*function == nullptr) Abort("the CUDA driver has no %s", name);
}

const Driver& TheDriver() {
  static const Driver driver = [] {
    const char* path = getenv("FASTSAFETENSORS_CUDA_LIB");
    void* library = path != nullptr ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    if (library == nullptr) Abort("FASTSAFETENSORS_CUDA_LIB is not loaded");
    Driver found{};
    Find(library, "cuDeviceGet", &found.DeviceGet);
    Find(library, "cuDevicePrimaryCtxRetain", &found.Retain);
    Find(library, "cuDevicePrimaryCtxRelease_v2", &found.Release);
    Find(library, "cuCtxSetCurrent", &found.SetCurrent);
    Find(library, "cuCtxGetCurrent", &found.GetCurrent);
    Find(library, "cuMemAlloc_v2", &found.Alloc);
    Find(library, "cuMemFree_v2", &found.Free);
    Find(library, "cuMemcpyDtoH_v2", &found.DtoH);
    Find(library, "cuMemcpyHtoD_v2", &found.HtoD);
    Find(library, "cuCtxSynchronize", &found.Synchronize);
    return found;
  }();
  return driver;
}

void Check(int result, const char* what) {
  if (result != 0) Abort("%s: CUDA error %d", what, result);
}

// A device's context on this thread while it lives.
class Current {
 public:
  explicit Current(int ordinal) {
    Check(TheDriver().DeviceGet(&device_, ordinal), "the device");
    Check(TheDriver().GetCurrent(&before_), "the context before");
    Context context = nullptr;
    Check(TheDriver().Retain(&context, device_), "the context");
    Check(TheDriver().SetCurrent(context), "the context");
  }
  ~Current() {
    Check(TheDriver().SetCurrent(before_), "the context before");
    Check(TheDriver().Release(device_), "the context");
  }

 private:
  int device_ = 0;
  Context before_ = nullptr;
};

}  // namespace

void Abort(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("emulated ONNX Runtime: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  abort();
}

int Setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text != nullptr && text[0] != '\0' ? atoi(text) : otherwise;
}

uint64_t Allocate(int device, size_t bytes) {
  Current current(device);
  unsigned long long pointer = 0;
  Check(TheDriver().Alloc(&pointer, bytes), "an output");
  return pointer;
}

void Free(int device, uint64_t pointer) {
  Current current(device);
  Check(TheDriver().Free(pointer), "an output's end");
}

void Read(int device, uint64_t from, void* to, size_t bytes) {
  Current current(device);
  Check(TheDriver().DtoH(to, from, bytes), "reading device memory");
}

void Write(int device, uint64_t to, const void* from, size_t bytes) {
  Current current(device);
  Check(TheDriver().HtoD(to, from, bytes), "writing device memory");
  // From pageable memory the call returns while the bytes are still on their way.
  Check(TheDriver().Synchronize(), "writing device memory");
}

}  // namespace fst::emulated_ort
