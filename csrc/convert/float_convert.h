// Conversion of elements between floating dtypes: pure functions over memory, the arithmetic of `dtype`.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace fst {

// F32, F16 and BF16 into each other, F64 into F32, F8_E4M3 and F8_E5M2 into F16, BF16 and F32. False for equal dtypes.
bool CanConvert(DType from, DType to);

enum class ConvertPath : uint8_t {
  kBest,      // what this processor does fastest
  kPortable,  // plain C++, as on a processor without AVX2 and F16C
};

// Converts `n` elements; CanConvert(from, to) holds, source and destination do not overlap and need no alignment. Any
// thread, any floating-point environment with round to nearest even: flushing of subnormals to zero changes nothing.
// Bit-exact and the same on every path: round to nearest even, subnormals kept, above the largest finite value
// infinity, infinities and signs kept. NaN stays NaN: made quiet, with the top bits of its payload that fit.
void ConvertElements(DType from, DType to, const void* source, void* destination, size_t n,
                     ConvertPath path = ConvertPath::kBest);

// Whether kBest is anything else than kPortable here.
bool HasFastConvert();

// Bytes of an element; for dtypes of whole bytes.
constexpr size_t BytesOf(DType dtype) { return kDTypeBits[static_cast<size_t>(dtype)] / 8; }

}  // namespace fst
