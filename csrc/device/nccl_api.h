// The slice of NCCL that the core calls, declared by hand and found by dlopen, as that of the CUDA driver is. It agrees
// with NCCL 2.14 and later 2.x; test/native/nccl_api_check.cc compares it with nccl.h where one is installed. Source:
// NCCL's user guide, "NCCL API", and nccl.h.
#pragma once
#include <climits>
#include <cstddef>
#include <string>

#include "base/shared_library.h"
#include "base/status.h"
#include "device/cuda_api.h"

namespace fst::nccl {

using ncclResult_t = int;
using ncclDataType_t = int;
using ncclComm_t = struct ncclComm*;

constexpr size_t kUniqueIdBytes = 128;
struct ncclUniqueId {
  char internal[kUniqueIdBytes];
};

// The configuration as of 2.14, whose `version` tells later libraries that they choose the rest. In them the last
// member is cgaClusterSize, which was padding before 2.17.
struct ncclConfig_t {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking;
  int undefined;
};
constexpr unsigned kApiMagic = 0xcafebeef;
constexpr int kLeastVersion = 21400, kUndefined = INT_MIN;

constexpr ncclResult_t kSuccess = 0, kUnhandledCudaError = 1, kSystemError = 2, kInternalError = 3,
                       kInvalidArgument = 4, kInvalidUsage = 5, kRemoteError = 6, kInProgress = 7;
constexpr ncclDataType_t kUint8 = 1;

// X(member of NcclApi, exported symbol, result, parameters)
#define FST_NCCL_API(X)                                                                                                \
  X(GetVersion, ncclGetVersion, ncclResult_t, (int* version))                                                          \
  X(GetUniqueId, ncclGetUniqueId, ncclResult_t, (ncclUniqueId * id))                                                   \
  X(CommInitRankConfig, ncclCommInitRankConfig, ncclResult_t,                                                          \
    (ncclComm_t * comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config))                                   \
  X(CommFinalize, ncclCommFinalize, ncclResult_t, (ncclComm_t comm))                                                   \
  X(CommDestroy, ncclCommDestroy, ncclResult_t, (ncclComm_t comm))                                                     \
  X(CommAbort, ncclCommAbort, ncclResult_t, (ncclComm_t comm))                                                         \
  X(CommGetAsyncError, ncclCommGetAsyncError, ncclResult_t, (ncclComm_t comm, ncclResult_t * error))                   \
  X(GetErrorString, ncclGetErrorString, const char*, (ncclResult_t error))                                             \
  X(GetLastError, ncclGetLastError, const char*, (ncclComm_t comm))                                                    \
  X(Broadcast, ncclBroadcast, ncclResult_t,                                                                            \
    (const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm, cuda::CUstream stream)) \
  X(GroupStart, ncclGroupStart, ncclResult_t, ())                                                                      \
  X(GroupEnd, ncclGroupEnd, ncclResult_t, ())

// The functions of one loaded library, through the exit gate: once exit() has begun they do not return, or give
// kSystemError and null on its thread. Immutable once loaded, valid until the process ends. Any thread.
struct NcclApi {
  struct Exiting {
    explicit operator ncclResult_t() const { return kSystemError; }
    explicit operator const char*() const { return nullptr; }
  };
#define X(member, symbol, result, parameters) Gated<result(*) parameters, Exiting> member;
  FST_NCCL_API(X)
#undef X
  std::string library;  // the file that was loaded
  int version = 0;      // 22703 is 2.27.3

  void Bind(const SharedLibrary& from, std::string* missing);  // for SharedLibrary::Load

  // OK for kSuccess and kInProgress; else CUDA_ERROR that says which call failed, with NCCL's texts for it. `call` is
  // NCCL's name of the function; `comm` may be null.
  Status Check(ncclResult_t result, const char* call, ncclComm_t comm) const;
};

// The library at FASTSAFETENSORS_NCCL_LIB (a path), else libnccl.so.2, loaded once per process. COPIER_UNAVAILABLE
// where there is none, or one that is no 2.x from 2.14 on. *out stays valid until the process ends. Any thread but the
// event loop's: takes ms at first.
Status LoadNccl(const NcclApi** out);

// 22703 as "2.27.3".
std::string VersionText(int version);

// A new id, by which the ranks of one communicator find each other: the process that makes it has to live until all
// have. COPIER_UNAVAILABLE, CUDA_ERROR. As LoadNccl.
Status NewUniqueId(ncclUniqueId* id);

}  // namespace fst::nccl
