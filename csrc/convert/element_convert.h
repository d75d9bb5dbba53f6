// Conversion of elements for TensorFlow.js, whose tensors are float32, int32 or bool: other dtypes become the nearest
// of the first two, in host memory. Adds to float_convert.h F8_E8M0, integers (which can be out of range) and
// quantization. Pure functions; any thread.
#pragma once
#include <cstddef>

#include "base/dtype.h"
#include "base/status.h"

namespace fst {

enum class ConvertTo { kFloat32, kInt32 };

struct ElementConversion {
  DType from;
  ConvertTo to;
  // TensorFlow.js' quantization of U8 and U16: value * scale + min in double precision, rounded for kInt32.
  bool quantized = false;
  double scale = 1, min = 0;
};

// Floats of 8 bits and more to float32, integers and BOOL to int32, and quantized values to either.
bool CanConvertElements(const ElementConversion& conversion);

// Converts `count` elements. CanConvertElements(conversion) holds. `source` holds count * bits / 8 bytes at any
// alignment, `out` 4 * count bytes aligned to 4; they do not overlap. Floats as in float_convert.h. UNSUPPORTED_DTYPE
// names the first integer that int32 cannot hold.
Status ConvertElements(const ElementConversion& conversion, const void* source, size_t count, void* out);

}  // namespace fst
