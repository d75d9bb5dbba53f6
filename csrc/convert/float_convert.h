// Conversion of elements between floating dtypes, for loads with `dtype`. Pure functions; any thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fst {

// F32, F16 and BF16 to each other, F64 to F32, F8_E4M3 and F8_E5M2 to F16, BF16 and F32. False for equal dtypes.
bool CanConvertFloats(DType from, DType to);

enum class ConvertPath : uint8_t {
  kBest,      // the fastest on this processor
  kPortable,  // plain C++, as on a processor without AVX2 and F16C
};

// Converts `n` elements. CanConvertFloats(from, to) holds; source and destination do not overlap and need no alignment.
// The same bits on every path: round to nearest even; subnormals, infinities and signs are kept; values beyond the
// largest finite one become infinity; NaN becomes quiet and keeps the top bits of its payload. The thread's rounding
// mode must be to nearest even; whether it flushes subnormals does not matter.
void ConvertFloats(DType from, DType to, const void* source, void* destination, size_t n,
                   ConvertPath path = ConvertPath::kBest);

// Whether kBest differs from kPortable on this processor.
bool HasFastConvert();

// Bytes of an element, for dtypes of whole bytes.
constexpr size_t BytesOf(DType dtype) { return kDTypeBits[static_cast<size_t>(dtype)] / 8; }

}  // namespace fst
