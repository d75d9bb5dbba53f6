#include "tf/convert.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace fst {
namespace {

float FromBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// ---- 16 bits ----

// The exponent is moved by multiplying, which makes subnormals right without a branch; infinities and NaNs come out at
// 2^16 and more and get their exponent back.
float FromF16(uint16_t half) {
  float magnitude = FromBits(static_cast<uint32_t>(half & 0x7fff) << 13) * 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &magnitude, sizeof bits);
  bits |= magnitude >= 65536.0f ? 0x7f800000u : 0u;
  return FromBits(bits | static_cast<uint32_t>(half & 0x8000) << 16);
}

float FromBF16(uint16_t bits) { return FromBits(static_cast<uint32_t>(bits) << 16); }

// ---- 8 bits: sign, exponent, mantissa. Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2), OCP
// Microscaling Formats 1.0 (E8M0), arXiv 2206.02915 (the FNUZ ones: one zero, 0x80 is NaN, the bias is one more). ----
using Table = std::array<float, 256>;

Table MakeTable(int mantissa_bits, int bias, bool fnuz, bool infinities) {
  Table table;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const int exponents = 1 << (7 - mantissa_bits);
  const int mantissas = 1 << mantissa_bits;
  for (int code = 0; code < 256; ++code) {
    int exponent = (code & 0x7f) >> mantissa_bits;
    int mantissa = code & (mantissas - 1);
    float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                                : std::ldexp(static_cast<float>(mantissas + mantissa), exponent - bias - mantissa_bits);
    if (fnuz) {
      if (code == 0x80) value = kNan;
    } else if (exponent == exponents - 1) {
      if (infinities) {
        value = mantissa == 0 ? std::numeric_limits<float>::infinity() : kNan;
      } else if (mantissa == mantissas - 1) {
        value = kNan;
      }
    }
    table[code] = (code & 0x80) ? -value : value;
  }
  return table;
}

Table MakeE8M0() {
  Table table;
  for (int code = 0; code < 255; ++code) table[code] = std::ldexp(1.0f, code - 127);
  table[255] = std::numeric_limits<float>::quiet_NaN();
  return table;
}

const Table* TableOf(DType dtype) {
  static const Table e4m3 = MakeTable(3, 7, false, false), e5m2 = MakeTable(2, 15, false, true),
                     e4m3fnuz = MakeTable(3, 8, true, false), e5m2fnuz = MakeTable(2, 16, true, false),
                     e8m0 = MakeE8M0();
  switch (dtype) {
    case DType::F8_E4M3:
      return &e4m3;
    case DType::F8_E5M2:
      return &e5m2;
    case DType::F8_E4M3FNUZ:
      return &e4m3fnuz;
    case DType::F8_E5M2FNUZ:
      return &e5m2fnuz;
    case DType::F8_E8M0:
      return &e8m0;
    default:
      return nullptr;
  }
}

// ---- loops ----

// Elements are copied into an aligned block first: tensors in files need not lie at a multiple of their element's size.
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
Status ToInt32(const void* source, size_t count, int32_t* out) {
  constexpr int64_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
  bool outside = false;
  ForEach<From>(source, count, out, [&](From value) {
    if constexpr (sizeof(From) >= 4) {
      if constexpr (std::is_signed_v<From>) {
        outside |= value < static_cast<From>(kLeast) || value > static_cast<From>(kMost);
      } else {
        outside |= value > static_cast<From>(kMost);
      }
    }
    return static_cast<int32_t>(value);
  });
  if (!outside) return Status::Ok();
  for (size_t i = 0; i < count; ++i) {
    From value;
    memcpy(&value, static_cast<const char*>(source) + i * sizeof value, sizeof value);
    if (std::is_signed_v<From> ? static_cast<int64_t>(value) >= kLeast && static_cast<int64_t>(value) <= kMost
                               : static_cast<uint64_t>(value) <= static_cast<uint64_t>(kMost)) {
      continue;
    }
    std::string text = std::is_signed_v<From> ? std::to_string(static_cast<int64_t>(value))
                                              : std::to_string(static_cast<uint64_t>(value));
    return Status(Code::UNSUPPORTED_DTYPE,
                  Format("element %zu is %s, expected what int32 can hold (TensorFlow.js has no larger integers)", i,
                         text.c_str()));
  }
  return Status::Ok();
}

// Through a table, so that each code is computed once and rounded as JavaScript does: product first (a compiler may
// fuse the two where the processor can), then the sum.
template <class From>
void Dequantize(const Conversion& c, const void* source, size_t count, void* out) {
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

bool CanConvert(const Conversion& c) {
  if (c.quantized) return c.from == DType::U8 || c.from == DType::U16;
  switch (c.from) {
    case DType::F16:
    case DType::BF16:
    case DType::F64:
    case DType::F8_E4M3:
    case DType::F8_E5M2:
    case DType::F8_E8M0:
    case DType::F8_E4M3FNUZ:
    case DType::F8_E5M2FNUZ:
      return c.to == ConvertTo::kFloat32;
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
      return false;
  }
}

Status ConvertElements(const Conversion& c, const void* source, size_t count, void* out) {
  auto* floats = static_cast<float*>(out);
  auto* integers = static_cast<int32_t*>(out);
  if (c.quantized) {
    c.from == DType::U8 ? Dequantize<uint8_t>(c, source, count, out) : Dequantize<uint16_t>(c, source, count, out);
    return Status::Ok();
  }
  switch (c.from) {
    case DType::F16:
      ForEach<uint16_t>(source, count, floats, FromF16);
      return Status::Ok();
    case DType::BF16:
      ForEach<uint16_t>(source, count, floats, FromBF16);
      return Status::Ok();
    case DType::F64:
      ForEach<double>(source, count, floats, [](double value) { return static_cast<float>(value); });
      return Status::Ok();
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
    default: {
      const Table& table = *TableOf(c.from);
      ForEach<uint8_t>(source, count, floats, [&](uint8_t code) { return table[code]; });
      return Status::Ok();
    }
  }
}

}  // namespace fst
