// The slice of the CUDA driver API that the core calls, declared by hand and found by dlopen: no toolkit to build with,
// no driver to link with, one binary for machines with and without a GPU. test/native/cuda_api_check.cc compares it
// with cuda.h where one is installed. The declarations agree with CUDA 11 to 13 on 64-bit Linux.
#pragma once
#include <cstddef>
#include <string>
#include <type_traits>

#include "base/shared_library.h"
#include "base/status.h"

namespace fst::cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;

using CUmemGenericAllocationHandle = unsigned long long;

// Enums of the driver are ints.
struct CUmemLocation {
  int type;
  int id;
};
struct CUmemAllocationProp {
  int type;
  int requestedHandleTypes;
  CUmemLocation location;
  void* win32HandleMetaData;
  struct {
    unsigned char compressionType, gpuDirectRDMACapable;
    unsigned short usage;  // NOLINT(google-runtime-int): the driver's type
    unsigned char reserved[4];
  } allocFlags;
};
struct CUmemAccessDesc {
  CUmemLocation location;
  int flags;
};

// CUresult
constexpr CUresult kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kDeinitialized = 4,
                   kNoDevice = 100, kInvalidDevice = 101, kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500,
                   kNotReady = 600, kIllegalAddress = 700, kContextIsDestroyed = 709,
                   kHostMemoryAlreadyRegistered = 712, kHostMemoryNotRegistered = 713, kLaunchFailed = 719,
                   kNotSupported = 801;
// flags
constexpr unsigned kStreamNonBlocking = 1, kEventDisableTiming = 2, kMemHostAllocPortable = 1,
                   kMemHostAllocDeviceMap = 2, kMemHostRegisterPortable = 1, kMemHostRegisterReadOnly = 8,
                   kMemAttachGlobal = 1;
// CUdevice_attribute
constexpr int kAttributeIntegrated = 18, kAttributeComputeCapabilityMajor = 75, kAttributeComputeCapabilityMinor = 76,
              kAttributeConcurrentManagedAccess = 89, kAttributeHostRegisterSupported = 99, kAttributeHostNumaId = 134,
              kAttributeVirtualMemorySupported = 102, kAttributePosixFdSupported = 103,
              kAttributeReadOnlyHostRegisterSupported = 113;
// of cuMemCreate and what goes with it
constexpr int kMemAllocationTypePinned = 1, kMemHandleTypePosixFd = 1, kMemLocationTypeDevice = 1, kMemAccessRead = 1,
              kMemAccessReadWrite = 3, kMemAllocGranularityMinimum = 0;

// The functions that the core calls, and no other: a library without one of them is refused.
// X(member of CudaApi, exported symbol, parameters). Every function returns a CUresult.
#define FST_CUDA_API(X)                                                                                       \
  X(Init, cuInit, (unsigned flags))                                                                           \
  X(DriverGetVersion, cuDriverGetVersion, (int* version))                                                     \
  X(GetErrorName, cuGetErrorName, (CUresult error, const char** text))                                        \
  X(GetErrorString, cuGetErrorString, (CUresult error, const char** text))                                    \
  X(DeviceGetCount, cuDeviceGetCount, (int* count))                                                           \
  X(DeviceGet, cuDeviceGet, (CUdevice * device, int ordinal))                                                 \
  X(DeviceGetName, cuDeviceGetName, (char* name, int length, CUdevice device))                                \
  X(DeviceGetAttribute, cuDeviceGetAttribute, (int* value, int attribute, CUdevice device))                   \
  X(DeviceGetPCIBusId, cuDeviceGetPCIBusId, (char* id, int length, CUdevice device))                          \
  X(DevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                 \
  X(CtxSetCurrent, cuCtxSetCurrent, (CUcontext context))                                                      \
  X(CtxSynchronize, cuCtxSynchronize, ())                                                                     \
  X(MemGetInfo, cuMemGetInfo_v2, (size_t * free, size_t * total))                                             \
  X(MemAlloc, cuMemAlloc_v2, (CUdeviceptr * pointer, size_t bytes))                                           \
  X(MemAllocManaged, cuMemAllocManaged, (CUdeviceptr * pointer, size_t bytes, unsigned flags))                \
  X(MemFree, cuMemFree_v2, (CUdeviceptr pointer))                                                             \
  X(MemHostAlloc, cuMemHostAlloc, (void** pointer, size_t bytes, unsigned flags))                             \
  X(MemFreeHost, cuMemFreeHost, (void* pointer))                                                              \
  X(MemHostRegister, cuMemHostRegister_v2, (void* pointer, size_t bytes, unsigned flags))                     \
  X(MemHostUnregister, cuMemHostUnregister, (void* pointer))                                                  \
  X(MemcpyHtoD, cuMemcpyHtoD_v2, (CUdeviceptr to, const void* from, size_t bytes))                            \
  X(MemcpyDtoH, cuMemcpyDtoH_v2, (void* to, CUdeviceptr from, size_t bytes))                                  \
  X(MemcpyDtoD, cuMemcpyDtoD_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes))                            \
  X(MemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void* from, size_t bytes, CUstream stream)) \
  X(MemcpyDtoDAsync, cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream)) \
  X(StreamCreate, cuStreamCreate, (CUstream * stream, unsigned flags))                                        \
  X(StreamDestroy, cuStreamDestroy_v2, (CUstream stream))                                                     \
  X(StreamSynchronize, cuStreamSynchronize, (CUstream stream))                                                \
  X(StreamQuery, cuStreamQuery, (CUstream stream))                                                            \
  X(EventCreate, cuEventCreate, (CUevent * event, unsigned flags))                                            \
  X(EventDestroy, cuEventDestroy_v2, (CUevent event))                                                         \
  X(EventRecord, cuEventRecord, (CUevent event, CUstream stream))                                             \
  X(EventSynchronize, cuEventSynchronize, (CUevent event))

// For memory of other processes (cuda_sharing.h): a library may lack them, and serves for all else.
#define FST_CUDA_SHARING_API(X)                                                                                        \
  X(MemGetAllocationGranularity, cuMemGetAllocationGranularity,                                                        \
    (size_t * bytes, const CUmemAllocationProp* properties, int option))                                               \
  X(MemCreate, cuMemCreate,                                                                                            \
    (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp* properties,                       \
     unsigned long long flags))                                                                                        \
  X(MemRelease, cuMemRelease, (CUmemGenericAllocationHandle handle))                                                   \
  X(MemAddressReserve, cuMemAddressReserve,                                                                            \
    (CUdeviceptr * pointer, size_t bytes, size_t alignment, CUdeviceptr wish, unsigned long long flags))               \
  X(MemAddressFree, cuMemAddressFree, (CUdeviceptr pointer, size_t bytes))                                             \
  X(MemMap, cuMemMap,                                                                                                  \
    (CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)) \
  X(MemUnmap, cuMemUnmap, (CUdeviceptr pointer, size_t bytes))                                                         \
  X(MemSetAccess, cuMemSetAccess, (CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* access, size_t count))    \
  X(MemExportToShareableHandle, cuMemExportToShareableHandle,                                                          \
    (void* shareable, CUmemGenericAllocationHandle handle, int type, unsigned long long flags))                        \
  X(MemImportFromShareableHandle, cuMemImportFromShareableHandle,                                                      \
    (CUmemGenericAllocationHandle * handle, void* os_handle, int type))

// The functions of one loaded driver library, through the exit gate: once exit() has begun they do not return, or give
// kDeinitialized on its thread, as the driver does. (The driver answers so only from the moment that its own handlers
// have run; what calls into it while they run is undefined, says the CUDA programming guide, and was seen to crash.)
// Immutable once loaded, valid until the process ends. Any thread.
struct CudaApi {
  using Deinitialized = std::integral_constant<CUresult, kDeinitialized>;
#define X(member, symbol, parameters) Gated<CUresult(*) parameters, Deinitialized> member;
  FST_CUDA_API(X)
  FST_CUDA_SHARING_API(X)
#undef X
  std::string library;        // the file that was loaded
  std::string lacks_sharing;  // the functions of FST_CUDA_SHARING_API that it lacks; then none may be called

  void Bind(const SharedLibrary& from, std::string* missing);  // for SharedLibrary::Load

  // OK for kSuccess; else a status that says which call failed, with the driver's name and text for the code:
  // OUT_OF_DEVICE_MEMORY for kOutOfMemory (OUT_OF_HOST_MEMORY from the cuMemHost* calls), CUDA_ERROR for all others.
  // For a sticky error the message says that the device is lost for this process. `call` is the driver's name of the
  // function, as "cuMemAlloc".
  Status Check(CUresult result, const char* call) const;

  // "CUDA_ERROR_INVALID_VALUE (1): invalid argument"
  std::string Describe(CUresult result) const;
};

// True for the codes that leave a context unusable for the rest of the process (CUDA Runtime API, cudaError: "leaves
// the process in an inconsistent state and any further CUDA work will return the same error").
constexpr bool IsSticky(CUresult result) {
  switch (result) {
    case 214:  // ECC_UNCORRECTABLE
    case 220:  // NVLINK_UNCORRECTABLE
    case 226:  // CONTAINED
    case kIllegalAddress:
    case 702:  // LAUNCH_TIMEOUT
    case kContextIsDestroyed:
    case 710:  // ASSERT
    case 714:  // HARDWARE_STACK_ERROR
    case 715:  // ILLEGAL_INSTRUCTION
    case 716:  // MISALIGNED_ADDRESS
    case 717:  // INVALID_ADDRESS_SPACE
    case 718:  // INVALID_PC
    case kLaunchFailed:
    case 721:  // TENSOR_MEMORY_LEAK
      return true;
    default:
      return false;
  }
}

// The driver at FASTSAFETENSORS_CUDA_LIB (a path), else libcuda.so.1, loaded and initialised (cuInit). Each library is
// loaded once per process; that it cannot be loaded is remembered, but a failed cuInit is tried again. Errors are
// DEVICE_UNAVAILABLE and name the library. *out stays valid until the process ends. Any thread; at first takes ms.
Status LoadCuda(const CudaApi** out);

// FST_CUDA_CHECK(api, MemAlloc, &pointer, bytes): calls and checks.
#define FST_CUDA_CHECK(api, member, ...) ((api).Check((api).member(__VA_ARGS__), "cu" #member))

}  // namespace fst::cuda
