// Compile-time proof that the hand-declared slice agrees with nccl.h. CMake builds this where it finds that header and
// cuda_runtime.h, and test/nccl-api.test.ts where nccl.h alone is found; by hand: g++ -std=c++17 -Icsrc
// -Itest/native -I<nccl>/include -I<cuda>/include -fsyntax-only test/native/nccl_api_check.cc
#include <nccl.h>

#include <cstddef>

#include "device/nccl_api.h"
#include "support/same_signature.h"

namespace {

using fst::test::SameSignature;

#define X(member, symbol, result, parameters) \
  static_assert(SameSignature<decltype(fst::nccl::NcclApi::member), decltype(&::symbol)>::value, #symbol);
FST_NCCL_API(X)
#undef X

#define SAME(ours, theirs) static_assert(static_cast<long>(fst::nccl::ours) == static_cast<long>(theirs), #ours)
SAME(kUniqueIdBytes, NCCL_UNIQUE_ID_BYTES);
SAME(kApiMagic, NCCL_API_MAGIC);
SAME(kUndefined, NCCL_CONFIG_UNDEF_INT);
SAME(kLeastVersion, NCCL_VERSION(2, 14, 0));
SAME(kSuccess, ncclSuccess);
SAME(kUnhandledCudaError, ncclUnhandledCudaError);
SAME(kSystemError, ncclSystemError);
SAME(kInternalError, ncclInternalError);
SAME(kInvalidArgument, ncclInvalidArgument);
SAME(kInvalidUsage, ncclInvalidUsage);
SAME(kRemoteError, ncclRemoteError);
SAME(kInProgress, ncclInProgress);
SAME(kUint8, ncclUint8);
#undef SAME

#define SAME_FIELD(ours, theirs) \
  static_assert(offsetof(fst::nccl::ncclConfig_t, ours) == offsetof(::ncclConfig_t, theirs), #ours)
SAME_FIELD(size, size);
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 17, 0)
SAME_FIELD(undefined, cgaClusterSize);
#endif
#undef SAME_FIELD
static_assert(sizeof(fst::nccl::ncclConfig_t) <= sizeof(::ncclConfig_t));

}  // namespace
