// What the emulated driver and the tests use of the CUDA driver API beyond what the core calls (device/cuda_api.h).
#pragma once
#include "device/cuda_api.h"

namespace fst::cuda {

using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUhostFn = void (*)(void* user_data);

// CUresult
constexpr CUresult kNotPermitted = 800, kUnknown = 999;
// flags
constexpr unsigned kMemHostRegisterDeviceMap = 2;
// CUdevice_attribute
constexpr int kAttributeCanMapHostMemory = 19, kAttributePciBusId = 33, kAttributePciDeviceId = 34,
              kAttributeAsyncEngineCount = 40, kAttributeUnifiedAddressing = 41, kAttributePciDomainId = 50,
              kAttributeManagedMemory = 83, kAttributePageableMemoryAccess = 88,
              kAttributeCanUseHostPointerForRegisteredMem = 91, kAttributePageableMemoryAccessUsesHostPageTables = 100;
// CUpointer_attribute and CUmemorytype
constexpr int kPointerContext = 1, kPointerMemoryType = 2, kPointerDevicePointer = 3, kPointerHostPointer = 4,
              kPointerIsManaged = 8, kPointerDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeHost = 1, kMemoryTypeDevice = 2;

// X(member of DriverApi, exported symbol, parameters). Every function returns a CUresult.
#define FST_CUDA_EXTRA_API(X)                                                                                    \
  X(DeviceTotalMem, cuDeviceTotalMem_v2, (size_t * bytes, CUdevice device))                                      \
  X(DevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                    \
  X(CtxGetCurrent, cuCtxGetCurrent, (CUcontext * context))                                                       \
  X(CtxGetDevice, cuCtxGetDevice, (CUdevice * device))                                                           \
  X(MemHostGetDevicePointer, cuMemHostGetDevicePointer_v2, (CUdeviceptr * device, void* host, unsigned flags))   \
  X(PointerGetAttribute, cuPointerGetAttribute, (void* data, int attribute, CUdeviceptr pointer))                \
  X(MemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, (void* to, CUdeviceptr from, size_t bytes, CUstream stream))          \
  X(MemsetD8Async, cuMemsetD8Async, (CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream))        \
  X(StreamWaitEvent, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))                        \
  X(EventQuery, cuEventQuery, (CUevent event))                                                                   \
  X(LaunchHostFunc, cuLaunchHostFunc, (CUstream stream, CUhostFn function, void* user_data))                     \
  X(ModuleLoadData, cuModuleLoadData, (CUmodule * module, const void* image))                                    \
  X(ModuleGetFunction, cuModuleGetFunction, (CUfunction * function, CUmodule module, const char* name))          \
  X(LaunchKernel, cuLaunchKernel,                                                                                \
    (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
     unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters, void** extra))

}  // namespace fst::cuda
