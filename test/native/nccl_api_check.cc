// Compile-time proof that the hand-declared slice agrees with nccl.h. CMake builds this where it finds that header and
// cuda_runtime.h, and test/nccl-api.test.ts where nccl.h alone is found; by hand: g++ -std=c++17 -Icsrc
// -I<nccl>/include -I<cuda>/include -fsyntax-only test/native/nccl_api_check.cc
#include <nccl.h>

#include <cstddef>
#include <type_traits>

#include "device/nccl_api.h"

namespace {

// Interchangeable in a call: pointers of which both or neither are to const, class types of equal size, the same
// integers, or an enum for an int.
template <class A, class B>
constexpr bool SameKind() {
  if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using PointeeA = std::remove_pointer_t<A>;
    using PointeeB = std::remove_pointer_t<B>;
    if constexpr (std::is_arithmetic_v<PointeeA> && std::is_arithmetic_v<PointeeB>)
      return std::is_same_v<PointeeA, PointeeB>;
    return std::is_const_v<PointeeA> == std::is_const_v<PointeeB>;
  } else if constexpr (std::is_class_v<A> && std::is_class_v<B>) {
    return sizeof(A) == sizeof(B);
  } else if constexpr (std::is_enum_v<B>) {
    return std::is_same_v<A, int> && sizeof(B) == sizeof(int);
  } else {
    return std::is_same_v<A, B>;
  }
}

template <class Ours, class Theirs>
struct SameSignature : std::false_type {};
template <class Pointer, class Refused, class Theirs>
struct SameSignature<fst::Gated<Pointer, Refused>, Theirs> : SameSignature<Pointer, Theirs> {};
template <class R, class... A, class S, class... B>
struct SameSignature<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) != sizeof...(B)) {
      return false;
    } else {
      return SameKind<R, S>() && (SameKind<A, B>() && ...);
    }
  }();
};

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
