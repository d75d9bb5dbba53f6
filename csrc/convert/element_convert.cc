#include "convert/element_convert.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "convert/float_convert.h"

namespace fst {
namespace {

// F8_E8M0 holds powers of two; 0xff is NaN. Source: OCP Microscaling Formats 1.0.
float OfE8M0(uint8_t code) {
  return code == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, code - 127);
}

// ---- integers ----

// Copies elements into an aligned block first: in files they may lie at any offset.
template <class From, class To, class Convert>
void ForEach(const void* source, size_t count, To* out, Convert convert) {
  constexpr size_t kBlock = 1024;
  From block[kBlock];
  const char* at = static_cast<const char*>(source);
  while (count > 0) {
    size_t n = count < kBlock ? count : kBlock;
    memcpy(block, at, n * sizeof(From));
    for (size_t i = 0; i < n; ++i) out[i] = convert(block[i]);
    at += n * sizeof(From);
    out += n;
    count -= n;
  }
}

template <class From>
bool FitsInt32(From value) {
  using Limits = std::numeric_limits<int32_t>;
  if constexpr (sizeof(From) < sizeof(int32_t)) {
    return true;
  } else if constexpr (std::is_signed_v<From>) {
    return value >= Limits::min() && value <= Limits::max();
  } else {
    return value <= static_cast<From>(Limits::max());
  }
}

template <class From>
Status ToInt32(const void* source, size_t count, int32_t* out) {
  bool outside = false;
  ForEach<From>(source, count, out, [&](From value) {
    outside |= !FitsInt32(value);
    return static_cast<int32_t>(value);
  });
  for (size_t i = 0; outside && i < count; ++i) {
    From value;
    memcpy(&value, static_cast<const char*>(source) + i * sizeof value, sizeof value);
    if (FitsInt32(value)) continue;
    return Status(Code::UNSUPPORTED_DTYPE,
                  Format("element %zu is %s, expected what int32 can hold (TensorFlow.js has no larger integers)", i,
                         std::to_string(value).c_str()));
  }
  return Status::Ok();
}

// By a table, so that each code is computed once. Rounds as JavaScript does, after the product and after the sum: the
// volatile keeps the compiler from fusing them.
template <class From>
void Dequantize(const ElementConversion& c, const void* source, size_t count, void* out) {
  constexpr size_t kCodes = size_t{1} << (8 * sizeof(From));
  std::vector<uint32_t> table(kCodes);
  for (size_t code = 0; code < kCodes; ++code) {
    volatile double product = static_cast<double>(code) * c.scale;
    double value = product + c.min;
    if (c.to == ConvertTo::kFloat32) {
      float rounded = static_cast<float>(value);
      memcpy(&table[code], &rounded, sizeof rounded);
    } else {
      double rounded = std::floor(value + 0.5);  // Math.round: halves go up
      int32_t integer = !(rounded >= -2147483648.0) ? std::numeric_limits<int32_t>::min()
                        : rounded > 2147483647.0    ? std::numeric_limits<int32_t>::max()
                                                    : static_cast<int32_t>(rounded);
      memcpy(&table[code], &integer, sizeof integer);
    }
  }
  ForEach<From>(source, count, static_cast<uint32_t*>(out), [&](From code) { return table[code]; });
}

}  // namespace

bool CanConvertElements(const ElementConversion& c) {
  if (c.quantized) return c.from == DType::U8 || c.from == DType::U16;
  switch (c.from) {
    case DType::BOOL:
    case DType::U8:
    case DType::I8:
    case DType::U16:
    case DType::I16:
    case DType::U32:
    case DType::U64:
    case DType::I64:
      return c.to == ConvertTo::kInt32;
    default:
      return c.to == ConvertTo::kFloat32 && (c.from == DType::F8_E8M0 || CanConvertFloats(c.from, DType::F32));
  }
}

Status ConvertElements(const ElementConversion& c, const void* source, size_t count, void* out) {
  if (c.quantized) {
    c.from == DType::U8 ? Dequantize<uint8_t>(c, source, count, out) : Dequantize<uint16_t>(c, source, count, out);
    return Status::Ok();
  }
  auto* integers = static_cast<int32_t*>(out);
  switch (c.from) {
    case DType::BOOL:
    case DType::U8:
      return ToInt32<uint8_t>(source, count, integers);
    case DType::I8:
      return ToInt32<int8_t>(source, count, integers);
    case DType::U16:
      return ToInt32<uint16_t>(source, count, integers);
    case DType::I16:
      return ToInt32<int16_t>(source, count, integers);
    case DType::U32:
      return ToInt32<uint32_t>(source, count, integers);
    case DType::U64:
      return ToInt32<uint64_t>(source, count, integers);
    case DType::I64:
      return ToInt32<int64_t>(source, count, integers);
    default:
      break;
  }
  if (c.from == DType::F8_E8M0) {
    ForEach<uint8_t>(source, count, static_cast<float*>(out), OfE8M0);
  } else {
    ConvertFloats(c.from, DType::F32, source, out, count);
  }
  return Status::Ok();
}

}  // namespace fst
