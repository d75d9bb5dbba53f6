// Compile-time proof that csrc/ort/slice.h agrees with a real header of ONNX Runtime, from 1.23 on. Compiled by
// test/ort-slice.test.ts; by hand:
//   g++ -std=c++17 -Icsrc -isystem <folder of onnxruntime_c_api.h> -fsyntax-only test/native/ort_slice_check.cc
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort/slice.h"

namespace {

// Arity, and the size of each parameter and of the result.
template <class F>
struct Signature;
template <class R, class... P>
struct Signature<R (*)(P...)> {
  static constexpr size_t kArity = sizeof...(P);
  template <class T>
  static constexpr size_t Size() {
    if constexpr (std::is_void_v<T>) {
      return 0;
    } else {
      return sizeof(T);
    }
  }
  static constexpr size_t Hash() {
    size_t hash = Size<R>();
    ((hash = hash * 31 + sizeof(P)), ...);
    return hash;
  }
  static constexpr bool kPointers[] = {std::is_pointer_v<R>, std::is_pointer_v<P>...};
};
template <class R, class... P>
struct Signature<R (*)(P...) noexcept> : Signature<R (*)(P...)> {};

template <class A, class B>
constexpr bool SamePointers() {
  for (size_t i = 0; i <= Signature<A>::kArity; ++i) {
    if (Signature<A>::kPointers[i] != Signature<B>::kPointers[i]) return false;
  }
  return true;
}

using fst::ort::Functions;
#define X(name, index, since, ret, ...)                                                                    \
  static_assert(offsetof(OrtApi, name) == (index) * sizeof(void*), #name ": index");                       \
  static_assert(Signature<decltype(OrtApi::name)>::kArity == Signature<decltype(Functions::name)>::kArity, \
                #name ": number of parameters");                                                           \
  static_assert(Signature<decltype(OrtApi::name)>::Hash() == Signature<decltype(Functions::name)>::Hash(), \
                #name ": size of a parameter");                                                            \
  static_assert(SamePointers<decltype(OrtApi::name), decltype(Functions::name)>(), #name ": what is a pointer");
FST_ORT_SLICE(X)
#undef X

static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT} == fst::ort::kFloat);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING} == fst::ort::kString);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL} == fst::ort::kBool);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16} == fst::ort::kFloat16);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64} == fst::ort::kUint64);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16} == fst::ort::kBFloat16);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN} == fst::ort::kFloat8E4M3);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2} == fst::ort::kFloat8E5M2);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1} == fst::ort::kFloat4);
static_assert(int{OrtDeviceAllocator} == fst::ort::kDeviceAllocator && int{OrtMemTypeDefault} == fst::ort::kMemDefault);
static_assert(int{ORT_INVALID_ARGUMENT} == fst::ort::kInvalidArgument && int{ORT_NO_SUCHFILE} == fst::ort::kNoSuchFile);
static_assert(int{ORT_INVALID_PROTOBUF} == fst::ort::kInvalidProtobuf &&
              int{ORT_INVALID_GRAPH} == fst::ort::kInvalidGraph);
static_assert(int{ORT_FAIL} == fst::ort::kFail && int{ORT_NOT_IMPLEMENTED} == fst::ort::kNotImplemented);

}  // namespace
