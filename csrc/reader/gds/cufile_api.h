// The slice of cuFile (GPUDirect Storage) that the core calls, declared by hand and found by dlopen of libcufile.so.0.
// Declarations follow cufile.h of CUDA 12.9 and 13; test/native/cuda_api_check.cc compares them with an installed one.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/shared_library.h"
#include "base/status.h"

namespace fst::cufile {

struct CUfileError {
  int err;     // CUfileOpError: 0, or 5001 and up
  int cu_err;  // the CUresult behind kCudaDriverError
};

struct CUfileDescr {
  int type;  // kHandleTypeOpaqueFd
  union {
    int fd;
    void* handle;
  } handle;
  const void* fs_ops;
};

struct CUfileDrvProps {
  struct {
    unsigned major_version, minor_version;  // of the nvidia-fs kernel driver; 0.0 where it is not loaded
    size_t poll_thresh_size, max_direct_io_size;
    unsigned dstatusflags;   // bit n: CUfileDriverStatusFlags n
    unsigned dcontrolflags;  // bit n: CUfileDriverControlFlags n
  } nvfs;
  unsigned fflags;                                                                    // bit n: CUfileFeatureFlags n
  unsigned max_device_cache_size, per_buffer_cache_size, max_device_pinned_mem_size;  // KiB
  unsigned max_batch_io_size, max_batch_io_timeout_msecs;
  unsigned char reserved[256];  // room for what later versions append
};

constexpr int kSuccess = 0, kDriverNotInitialized = 5001, kDriverClosing = 5006, kIoNotSupported = 5008,
              kDeviceNotSupported = 5009, kCudaDriverError = 5011, kCudaPointerInvalid = 5012,
              kCudaPointerRangeError = 5014, kInvalidFileType = 5018, kInvalidFileOpenFlag = 5019, kDioNotSet = 5020,
              kInvalidValue = 5022, kMemoryAlreadyRegistered = 5023, kMemoryNotRegistered = 5024,
              kPermissionDenied = 5025, kDriverAlreadyOpen = 5026, kHandleNotRegistered = 5027,
              kHandleAlreadyRegistered = 5028, kInternalError = 5030, kIoDisabled = 5034;
constexpr int kHandleTypeOpaqueFd = 1;
constexpr int kStatusNvmeP2p = 11;      // bit of dstatusflags (CUDA 12)
constexpr int kControlAllowCompat = 1;  // bit of dcontrolflags
constexpr int kFeatureP2p = 4;          // bit of fflags (CUDA 13)

// X(member of CufileApi, exported symbol, return type, parameters)
#define FST_CUFILE_API(X)                                                                         \
  X(DriverOpen, cuFileDriverOpen, CUfileError, ())                                                \
  X(DriverClose, cuFileDriverClose, CUfileError, ())                                              \
  X(DriverGetProperties, cuFileDriverGetProperties, CUfileError, (CUfileDrvProps * properties))   \
  X(HandleRegister, cuFileHandleRegister, CUfileError, (void** handle, CUfileDescr* description)) \
  X(HandleDeregister, cuFileHandleDeregister, void, (void* handle))                               \
  X(BufRegister, cuFileBufRegister, CUfileError, (const void* base, size_t bytes, int flags))     \
  X(BufDeregister, cuFileBufDeregister, CUfileError, (const void* base))                          \
  X(Read, cuFileRead, ssize_t, (void* handle, void* base, size_t bytes, off_t file_offset, off_t base_offset))

// What a call on the thread of exit() gives.
struct DriverClosing {
  explicit operator CUfileError() const { return {kDriverClosing, 0}; }
  explicit operator ssize_t() const { return -kDriverClosing; }
};

// The functions of one loaded library, through the exit gate: once exit() has begun they do not return, or give
// kDriverClosing on its thread. (libcufile has hundreds of static objects, 257 in version 1.15, and closes its driver
// when it goes.) Immutable once loaded, valid until the process ends. Any thread.
struct CufileApi {
#define X(member, symbol, result, parameters) Gated<result(*) parameters, DriverClosing> member;
  FST_CUFILE_API(X)
#undef X
  // A null pointer in versions before 1.8; works without an open driver.
  Gated<CUfileError (*)(int* version), DriverClosing> GetVersion;
  std::string library;  // the file that was loaded

  void Bind(const SharedLibrary& from, std::string* missing);  // for SharedLibrary::Load

  // "1.13.1"; "" when it is unknown.
  std::string Version() const;

  // OK for err 0; else GDS_ERROR that says which call failed and names the CUfileOpError (and the CUresult, if any).
  static Status Check(CUfileError result, const char* call);

  // The status for a negative result of Read: -1 means `error`, the errno right after the call, else -CUfileOpError.
  static Status CheckRead(ssize_t result, int error);
};

// "CU_FILE_IO_NOT_SUPPORTED (5008)"; the bare number for an unknown code.
std::string OpErrorText(int error);

// True for the errors of HandleRegister, BufRegister and Read that mean "GPUDirect Storage does not work for this file,
// memory or device", so that another way of reading may succeed; false for all others, I/O errors above all.
bool IsRefusal(int error);

// What DriverGetProperties says about the path that reads will take.
struct Mode {
  bool direct;          // a kernel path from storage to GPU memory exists (nvidia-fs loaded, or PCI P2PDMA in use)
  bool compat_allowed;  // cufile.json lets cuFile read through the CPU where there is no direct path
};
Mode ModeOf(const CUfileDrvProps& properties);

// The library at FASTSAFETENSORS_CUFILE_LIB (a path), else libcufile.so.0. Opens no driver: DriverOpen can take
// seconds. Each library is loaded once per process; a failure is remembered. Errors are COPIER_UNAVAILABLE and name the
// library. *out stays valid until the process ends. Any thread.
Status LoadCufile(const CufileApi** out);

// Device memory as cuFile takes it.
inline void* Pointer(uint64_t address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr): nothing here reads it
}

}  // namespace fst::cufile
