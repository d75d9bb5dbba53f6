// Compile-time proof that the hand-declared slices agree with the real headers, of CUDA 11 to 13. CMake builds this
// where it finds cuda.h; by hand: g++ -std=c++17 -Icsrc -Itest/native -I<cuda>/include -fsyntax-only
// test/native/cuda_api_check.cc
#include "reader/gds/cufile_api.h"
#include "support/driver_api.h"
#include "support/same_signature.h"
// (ours first: cuda.h has macros named like its functions)
#include <cuda.h>

#include <cstddef>

namespace {

using fst::test::SameSignature;

#define X(member, symbol, parameters) \
  static_assert(SameSignature<decltype(fst::cuda::DriverApi::member), decltype(&::symbol)>::value, #symbol);
FST_CUDA_API(X)
FST_CUDA_SHARING_API(X)
FST_CUDA_EXTRA_API(X)
#undef X

#define SAME(ours, theirs) static_assert(static_cast<long>(fst::cuda::ours) == static_cast<long>(theirs), #ours)
SAME(kSuccess, CUDA_SUCCESS);
SAME(kInvalidValue, CUDA_ERROR_INVALID_VALUE);
SAME(kOutOfMemory, CUDA_ERROR_OUT_OF_MEMORY);
SAME(kNotInitialized, CUDA_ERROR_NOT_INITIALIZED);
SAME(kDeinitialized, CUDA_ERROR_DEINITIALIZED);
SAME(kNoDevice, CUDA_ERROR_NO_DEVICE);
SAME(kInvalidDevice, CUDA_ERROR_INVALID_DEVICE);
SAME(kInvalidContext, CUDA_ERROR_INVALID_CONTEXT);
SAME(kInvalidHandle, CUDA_ERROR_INVALID_HANDLE);
SAME(kNotFound, CUDA_ERROR_NOT_FOUND);
SAME(kNotReady, CUDA_ERROR_NOT_READY);
SAME(kIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS);
SAME(kContextIsDestroyed, CUDA_ERROR_CONTEXT_IS_DESTROYED);
SAME(kHostMemoryAlreadyRegistered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME(kHostMemoryNotRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
SAME(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED);
SAME(kNotPermitted, CUDA_ERROR_NOT_PERMITTED);
SAME(kNotSupported, CUDA_ERROR_NOT_SUPPORTED);
SAME(kUnknown, CUDA_ERROR_UNKNOWN);
SAME(kAttributeVirtualMemorySupported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
SAME(kAttributePosixFdSupported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED);
SAME(kMemAllocationTypePinned, CU_MEM_ALLOCATION_TYPE_PINNED);
SAME(kMemHandleTypePosixFd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME(kMemLocationTypeDevice, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(kMemAccessRead, CU_MEM_ACCESS_FLAGS_PROT_READ);
SAME(kMemAccessReadWrite, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
SAME(kMemAllocGranularityMinimum, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
static_assert(offsetof(fst::cuda::CUmemAllocationProp, location) == offsetof(::CUmemAllocationProp, location));
static_assert(offsetof(fst::cuda::CUmemAllocationProp, allocFlags) == offsetof(::CUmemAllocationProp, allocFlags));
static_assert(offsetof(fst::cuda::CUmemAccessDesc, flags) == offsetof(::CUmemAccessDesc, flags));
SAME(kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
SAME(kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
SAME(kMemHostAllocPortable, CU_MEMHOSTALLOC_PORTABLE);
SAME(kMemHostAllocDeviceMap, CU_MEMHOSTALLOC_DEVICEMAP);
SAME(kMemHostRegisterPortable, CU_MEMHOSTREGISTER_PORTABLE);
SAME(kMemHostRegisterDeviceMap, CU_MEMHOSTREGISTER_DEVICEMAP);
SAME(kMemHostRegisterReadOnly, CU_MEMHOSTREGISTER_READ_ONLY);
SAME(kMemAttachGlobal, CU_MEM_ATTACH_GLOBAL);
SAME(kAttributeIntegrated, CU_DEVICE_ATTRIBUTE_INTEGRATED);
SAME(kAttributeCanMapHostMemory, CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY);
SAME(kAttributePciBusId, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
SAME(kAttributePciDeviceId, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID);
SAME(kAttributePciDomainId, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID);
SAME(kAttributeAsyncEngineCount, CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
SAME(kAttributeUnifiedAddressing, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING);
SAME(kAttributeComputeCapabilityMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(kAttributeComputeCapabilityMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(kAttributeManagedMemory, CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY);
SAME(kAttributePageableMemoryAccess, CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS);
SAME(kAttributeConcurrentManagedAccess, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS);
SAME(kAttributeCanUseHostPointerForRegisteredMem, CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM);
SAME(kAttributeHostRegisterSupported, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED);
SAME(kAttributePageableMemoryAccessUsesHostPageTables,
     CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES);
#if CUDA_VERSION >= 12030
SAME(kAttributeReadOnlyHostRegisterSupported, CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED);
SAME(kAttributeHostNumaId, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
#endif
SAME(kPointerContext, CU_POINTER_ATTRIBUTE_CONTEXT);
SAME(kPointerMemoryType, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME(kPointerDevicePointer, CU_POINTER_ATTRIBUTE_DEVICE_POINTER);
SAME(kPointerHostPointer, CU_POINTER_ATTRIBUTE_HOST_POINTER);
SAME(kPointerIsManaged, CU_POINTER_ATTRIBUTE_IS_MANAGED);
SAME(kPointerDeviceOrdinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME(kMemoryTypeHost, CU_MEMORYTYPE_HOST);
SAME(kMemoryTypeDevice, CU_MEMORYTYPE_DEVICE);
#undef SAME

}  // namespace

#if __has_include(<cufile.h>)
#include <cufile.h>

namespace {

#define X(member, symbol, result, parameters) \
  static_assert(SameSignature<decltype(fst::cufile::CufileApi::member), decltype(&::symbol)>::value, #symbol);
// Properties grow from version to version and ours has room to spare, so its size differs by design; passed by pointer
// only.
FST_CUFILE_API(X)
#undef X

#define SAME(ours, theirs) static_assert(fst::cufile::ours == static_cast<int>(theirs), #ours)
SAME(kSuccess, CU_FILE_SUCCESS);
SAME(kDriverNotInitialized, CU_FILE_DRIVER_NOT_INITIALIZED);
SAME(kIoNotSupported, CU_FILE_IO_NOT_SUPPORTED);
SAME(kDeviceNotSupported, CU_FILE_DEVICE_NOT_SUPPORTED);
SAME(kCudaDriverError, CU_FILE_CUDA_DRIVER_ERROR);
SAME(kCudaPointerInvalid, CU_FILE_CUDA_POINTER_INVALID);
SAME(kCudaPointerRangeError, CU_FILE_CUDA_POINTER_RANGE_ERROR);
SAME(kInvalidFileType, CU_FILE_INVALID_FILE_TYPE);
SAME(kInvalidFileOpenFlag, CU_FILE_INVALID_FILE_OPEN_FLAG);
SAME(kDioNotSet, CU_FILE_DIO_NOT_SET);
SAME(kInvalidValue, CU_FILE_INVALID_VALUE);
SAME(kMemoryAlreadyRegistered, CU_FILE_MEMORY_ALREADY_REGISTERED);
SAME(kMemoryNotRegistered, CU_FILE_MEMORY_NOT_REGISTERED);
SAME(kPermissionDenied, CU_FILE_PERMISSION_DENIED);
SAME(kDriverAlreadyOpen, CU_FILE_DRIVER_ALREADY_OPEN);
SAME(kHandleNotRegistered, CU_FILE_HANDLE_NOT_REGISTERED);
SAME(kHandleAlreadyRegistered, CU_FILE_HANDLE_ALREADY_REGISTERED);
SAME(kInternalError, CU_FILE_INTERNAL_ERROR);
SAME(kIoDisabled, CU_FILE_IO_DISABLED);
SAME(kHandleTypeOpaqueFd, CU_FILE_HANDLE_TYPE_OPAQUE_FD);
SAME(kStatusNvmeP2p, CU_FILE_NVME_P2P_SUPPORTED);
SAME(kControlAllowCompat, CU_FILE_ALLOW_COMPAT_MODE);
#undef SAME

#define SAME_FIELD(type, field) static_assert(offsetof(fst::cufile::type, field) == offsetof(type##_t, field), #field)
SAME_FIELD(CUfileDescr, type);
SAME_FIELD(CUfileDescr, handle);
SAME_FIELD(CUfileDescr, fs_ops);
SAME_FIELD(CUfileDrvProps, nvfs.major_version);
SAME_FIELD(CUfileDrvProps, nvfs.minor_version);
SAME_FIELD(CUfileDrvProps, nvfs.max_direct_io_size);
SAME_FIELD(CUfileDrvProps, nvfs.dstatusflags);
SAME_FIELD(CUfileDrvProps, nvfs.dcontrolflags);
SAME_FIELD(CUfileDrvProps, fflags);
SAME_FIELD(CUfileDrvProps, max_device_pinned_mem_size);
SAME_FIELD(CUfileDrvProps, max_batch_io_size);
static_assert(sizeof(fst::cufile::CUfileDescr) == sizeof(CUfileDescr_t));
static_assert(sizeof(fst::cufile::CUfileError) == sizeof(CUfileError_t));
static_assert(sizeof(fst::cufile::CUfileDrvProps) >= sizeof(CUfileDrvProps_t));
#undef SAME_FIELD

}  // namespace
#endif
