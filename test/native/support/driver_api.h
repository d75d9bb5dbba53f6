// The CUDA driver as tests call it: the functions that the core calls, and the others of the emulator.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "base/shared_library.h"
#include "device/cuda_api.h"
#include "emulators/cuda/extra_api.h"

namespace fst::cuda {

struct DriverApi : CudaApi {
  DriverApi() = default;
  explicit DriverApi(const CudaApi& api) : CudaApi(api) {}
#define X(member, symbol, parameters) CUresult(*member) parameters = nullptr;
  FST_CUDA_EXTRA_API(X)
#undef X
};

// LoadCuda with all functions of DriverApi, which the library must have. *out stays valid until the process ends. One
// thread at a time.
inline Status LoadDriver(const DriverApi** out) {
  static auto* loaded = new std::map<const CudaApi*, std::unique_ptr<DriverApi>>;
  const CudaApi* api = nullptr;
  FST_RETURN_IF_ERROR(LoadCuda(&api));
  std::unique_ptr<DriverApi>& driver = (*loaded)[api];
  if (driver == nullptr) {
    SharedLibrary library;
    std::string missing;
    FST_RETURN_IF_ERROR(SharedLibrary::Open(api->library, &library));
    auto made = std::make_unique<DriverApi>(*api);
#define X(member, symbol, parameters) library.Resolve(#symbol, &made->member, &missing);
    FST_CUDA_EXTRA_API(X)
#undef X
    if (!missing.empty()) return Status(Code::DEVICE_UNAVAILABLE, api->library + " lacks " + missing);
    driver = std::move(made);
  }
  *out = driver.get();
  return Status::Ok();
}

}  // namespace fst::cuda
