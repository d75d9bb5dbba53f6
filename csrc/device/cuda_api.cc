#include "device/cuda_api.h"

#include <cstring>
#include <mutex>
#include <set>

namespace fst::cuda {
namespace {

constexpr LibrarySpec kLibrary = {
    Code::DEVICE_UNAVAILABLE,
    "the CUDA driver library",
    "FASTSAFETENSORS_CUDA_LIB",
    "libcuda.so.1",
    "it comes with the NVIDIA driver: install that (in a container: run with --gpus), set FASTSAFETENSORS_CUDA_LIB to "
    "its path, or use device 'cpu'",
    "a driver of CUDA 11 or later has them: update the NVIDIA driver",
};

}  // namespace

void CudaApi::Bind(const SharedLibrary& from, std::string* missing) {
#define X(member, symbol, parameters) from.Resolve(#symbol, &member, missing);
  FST_CUDA_API(X)
#undef X
#define X(member, symbol, parameters) from.Resolve(#symbol, &member, &lacks_sharing);
  FST_CUDA_SHARING_API(X)
#undef X
}

Status LoadCuda(const CudaApi** out) {
  static auto* mutex = new std::mutex;
  static auto* initialised = new std::set<const CudaApi*>;  // cuInit has succeeded
  const CudaApi* api = nullptr;
  FST_RETURN_IF_ERROR(SharedLibrary::LoadOnce(kLibrary, &api));
  std::lock_guard<std::mutex> lock(*mutex);
  if (initialised->count(api) == 0) {
    CUresult result = api->Init(0);
    if (result != kSuccess) {
      return Status(Code::DEVICE_UNAVAILABLE, "the CUDA driver " + api->library +
                                                  " does not start: cuInit failed with " + api->Describe(result) +
                                                  "; check the GPU and its driver with nvidia-smi");
    }
    FST_RETURN_IF_ERROR(ExitGate::CloseBeforeDestructors());
    initialised->insert(api);
  }
  *out = api;
  return Status::Ok();
}

std::string CudaApi::Describe(CUresult result) const {
  if (result == kDeinitialized) return "CUDA_ERROR_DEINITIALIZED (4): the process is exiting";
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
