#include "device/cuda_api.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "base/shared_library.h"

namespace fst::cuda {

namespace {

struct Loaded {
  Status status;  // of dlopen and dlsym
  CudaApi api;
  bool initialised = false;  // cuInit has succeeded
};

// Says what to do, too: people meet this message on machines that have a GPU but not its driver, or a container without
// it.
std::string Hint(bool chosen) {
  return chosen ? "FASTSAFETENSORS_CUDA_LIB names this library; unset it to use the system's libcuda.so.1"
                : "it comes with the NVIDIA driver: install that (in a container: run with --gpus), set "
                  "FASTSAFETENSORS_CUDA_LIB to "
                  "its path, or use device 'cpu'";
}

Status Open(const std::string& name, bool chosen, CudaApi* api) {
  SharedLibrary library;
  Status opened = SharedLibrary::Open(name, &library);
  if (!opened.ok()) {
    return Status(Code::DEVICE_UNAVAILABLE,
                  "the CUDA driver library " + name + " cannot be loaded: " + opened.message() + "; " + Hint(chosen));
  }
  std::string missing;
#define X(member, symbol, parameters)                                           \
  api->member = reinterpret_cast<decltype(api->member)>(library.Find(#symbol)); \
  if (api->member == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(#symbol);
  FST_CUDA_API(X)
#undef X
  api->library = library.path();
  if (missing.empty()) return Status::Ok();
  return Status(Code::DEVICE_UNAVAILABLE, "the CUDA driver library " + library.path() + " lacks " + missing +
                                              "; a driver of CUDA 11 or later has them: update the NVIDIA driver");
}

}  // namespace

Status LoadCuda(const CudaApi** out) {
  static std::mutex mutex;
  static auto* libraries =
      new std::map<std::string, std::unique_ptr<Loaded>>;  // outlives every thread that may hold an api
  const char* path = getenv("FASTSAFETENSORS_CUDA_LIB");
  bool chosen = path != nullptr && path[0] != '\0';
  std::string name = chosen ? path : "libcuda.so.1";

  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Loaded>& entry = (*libraries)[name];
  if (entry == nullptr) {
    entry = std::make_unique<Loaded>();
    entry->status = Open(name, chosen, &entry->api);
  }
  FST_RETURN_IF_ERROR(entry->status);
  if (!entry->initialised) {
    CUresult result = entry->api.Init(0);
    if (result != kSuccess) {
      return Status(Code::DEVICE_UNAVAILABLE, "the CUDA driver " + entry->api.library +
                                                  " does not start: cuInit failed with " + entry->api.Describe(result) +
                                                  "; check the GPU and its driver with nvidia-smi");
    }
    entry->initialised = true;
  }
  *out = &entry->api;
  return Status::Ok();
}

std::string CudaApi::Describe(CUresult result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (GetErrorName(result, &name) != kSuccess || name == nullptr) name = "unknown CUDA error";
  if (GetErrorString(result, &text) != kSuccess || text == nullptr) return Format("%s (%d)", name, result);
  return Format("%s (%d): %s", name, result, text);
}

Status CudaApi::Check(CUresult result, const char* call) const {
  if (result == kSuccess) return Status::Ok();
  Code code = Code::CUDA_ERROR;
  if (result == kOutOfMemory) {
    bool host = strncmp(call, "cuMemHost", strlen("cuMemHost")) == 0;
    code = host ? Code::OUT_OF_HOST_MEMORY : Code::OUT_OF_DEVICE_MEMORY;
  }
  std::string message = std::string(call) + " failed with " + Describe(result);
  if (IsSticky(result)) message += "; the device is lost for this process: restart it to use the GPU again";
  return Status(code, std::move(message));
}

}  // namespace fst::cuda
