// The element types of the format. src/base/dtype.ts holds the same table; test/dtype.test.ts compares the two.
// Source: huggingface/safetensors, safetensors/src/tensor.rs (Dtype).
#pragma once
#include <cstddef>
#include <cstdint>

namespace fst {

// X(name, bits). Laid out by hand: clang-format does not settle on a layout of such a list.
// clang-format off
#define FST_DTYPES(X)                                                                              \
  X(BOOL, 8) X(U8, 8) X(I8, 8) X(U16, 16) X(I16, 16) X(F16, 16) X(BF16, 16) X(U32, 32) X(I32, 32)   \
  X(F32, 32) X(U64, 64) X(I64, 64) X(F64, 64) X(C64, 64) X(F8_E5M2, 8) X(F8_E4M3, 8) X(F8_E8M0, 8)  \
  X(F8_E4M3FNUZ, 8) X(F8_E5M2FNUZ, 8) X(F6_E2M3, 6) X(F6_E3M2, 6) X(F4, 4)
// clang-format on

enum class DType : uint8_t {
#define X(name, bits) name,
  FST_DTYPES(X)
#undef X
};

constexpr const char* kDTypeNames[] = {
#define X(name, bits) #name,
    FST_DTYPES(X)
#undef X
};
constexpr uint8_t kDTypeBits[] = {
#define X(name, bits) bits,
    FST_DTYPES(X)
#undef X
};
constexpr size_t kDTypeCount = sizeof kDTypeBits;

}  // namespace fst
