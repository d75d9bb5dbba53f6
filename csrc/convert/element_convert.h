// Element conversions for TensorFlow.js, whose tensors are float32, int32 or bool: what is stored as anything else
// becomes the nearest of the first two on the host. What loads convert (convert/float_convert.h) is converted as they
// do it; here are the dtypes that `dtype` does not know, integers (which can be out of range), and quantization.
#pragma once
#include <cstddef>

#include "base/dtype.h"
#include "base/status.h"

namespace fst::tf {

enum class ConvertTo { kFloat32, kInt32 };

struct Conversion {
  DType from;
  ConvertTo to;
  // TensorFlow.js' quantization: value * scale + min in double precision, rounded for kInt32. `from` is U8 or U16 then.
  bool quantized = false;
  double scale = 1, min = 0;
};

// Whether ConvertElements knows it: floating dtypes (8 bits and more, no scale of their own) to float32, integers and
// BOOL to int32, and quantized ones to either.
bool CanConvert(const Conversion& conversion);

// Converts `count` elements. `source` holds count * bits / 8 bytes at any alignment, `out` 4 * count bytes aligned to
// 4; they do not overlap. Floats as convert/float_convert.h says. UNSUPPORTED_DTYPE for an integer that int32 cannot
// hold, saying which element. CanConvert(conversion) holds.
Status ConvertElements(const Conversion& conversion, const void* source, size_t count, void* out);

}  // namespace fst::tf
