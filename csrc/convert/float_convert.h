// Conversion of elements between floating dtypes, for loads with `dtype`. Pure functions; any thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fst {

// F64, F32, F16, BF16, F8_E4M3, F8_E5M2, F8_E4M3FNUZ and F8_E5M2FNUZ, each to each other. False for equal dtypes.
bool CanConvertFloats(DType from, DType to);

enum class ConvertPath : uint8_t {
  kBest,      // the fastest on this processor
  kPortable,  // plain C++, as on a processor without AVX2 and F16C
};

// Converts `n` elements. CanConvertFloats(from, to) holds; source and destination do not overlap and need no alignment.
// The same bits on every path: round to nearest even, F64 by way of F32 except to F16; subnormals and signs are kept
// where the dtype has them. Values beyond the largest finite one become infinity, or NaN in F8_E4M3 and the FNUZ
// dtypes, which have none. A NaN becomes quiet and keeps the top bits of its payload, except in 8 bits: 0x7f in
// F8_E4M3, 0x7e in F8_E5M2, each with the sign, 0x80 in FNUZ dtypes. All of it as ml_dtypes does, but for payloads,
// which it drops. The thread's rounding mode must be to nearest even; whether it flushes subnormals does not matter.
void ConvertFloats(DType from, DType to, const void* source, void* destination, size_t n,
                   ConvertPath path = ConvertPath::kBest);

// Whether kBest differs from kPortable on this processor.
bool HasFastConvert();

// Bytes of an element, for dtypes of whole bytes.
constexpr size_t BytesOf(DType dtype) { return kDTypeBits[static_cast<size_t>(dtype)] / 8; }

}  // namespace fst
