// Each conversion for one element, without branches, so that compilers vectorize a loop around it. Often by integers:
// no float operand or result may be subnormal unless flushing it to zero gives the same bits, because a library built
// with -ffast-math switches flushing on for the threads that it starts.
#pragma once
#include <cstdint>
#include <cstring>

#define FST_INLINE inline __attribute__((always_inline))

namespace fst::convert {

template <class To, class From>
FST_INLINE To Bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// `condition ? yes : no` by a mask. GCC turns the operator into a branch around float arithmetic, which might trap, and
// then does not vectorize.
template <class T>
FST_INLINE T Select(bool condition, T yes, T no) {
  const T mask = static_cast<T>(-static_cast<T>(condition));
  return static_cast<T>((yes & mask) | (no & ~mask));
}

struct F32ToBF16 {
  using From = uint32_t;
  using To = uint16_t;
  static FST_INLINE To Do(From x) {
    const int32_t magnitude = static_cast<int32_t>(x & 0x7fffffff);
    // The carry goes from the mantissa into the exponent, and from the largest value to infinity.
    const uint32_t rounded = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
    const uint32_t nan = x >> 16 | 0x40;
    return static_cast<To>(magnitude > 0x7f800000 ? nan : rounded);
  }
};

struct F32ToF16 {
  using From = uint32_t;
  using To = uint16_t;
  static FST_INLINE To Do(From x) {
    const int32_t magnitude = static_cast<int32_t>(x & 0x7fffffff);
    const int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const int32_t finite = normal > 0x7c00 ? 0x7c00 : normal;
    // The last place of 0.5 is 2^-24, as that of F16's subnormals: the addition rounds.
    const int32_t tiny = Bits<int32_t>(Bits<float>(magnitude) + 0.5F) - 0x3f000000;
    const int32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    int32_t result = Select(magnitude < (113 << 23), tiny, finite);
    result = Select(magnitude > 0x7f800000, nan, result);
    return static_cast<To>(static_cast<uint32_t>(result) | (x >> 16 & 0x8000));
  }
};

struct F16ToF32 {
  using From = uint16_t;
  using To = uint32_t;
  static FST_INLINE To Do(From h) {
    const int32_t magnitude = h & 0x7fff;
    const int32_t normal = (magnitude << 13) + (112 << 23);
    const int32_t tiny = Bits<int32_t>(static_cast<float>(magnitude) * 0x1p-24F);
    const int32_t special = normal + (112 << 23);
    const int32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;
    int32_t result = Select(magnitude < 0x400, tiny, normal);
    result = Select(magnitude >= 0x7c00, special, result);
    return static_cast<To>(result | quiet) | static_cast<To>(h & 0x8000) << 16;
  }
};

struct BF16ToF32 {
  using From = uint16_t;
  using To = uint32_t;
  static FST_INLINE To Do(From b) {
    const uint32_t wide = static_cast<uint32_t>(b) << 16;
    return wide | (static_cast<int32_t>(wide & 0x7fffffff) > 0x7f800000 ? 0x400000U : 0U);
  }
};

struct BF16ToF16 {
  using From = uint16_t;
  using To = uint16_t;
  static FST_INLINE To Do(From b) { return F32ToF16::Do(static_cast<uint32_t>(b) << 16); }
};

struct F16ToBF16 {
  using From = uint16_t;
  using To = uint16_t;
  static FST_INLINE To Do(From h) { return F32ToBF16::Do(F16ToF32::Do(h)); }
};

struct F64ToF32 {
  using From = uint64_t;
  using To = uint32_t;
  static FST_INLINE To Do(From x) {
    const int64_t magnitude = static_cast<int64_t>(x & 0x7fffffffffffffff);
    const int64_t normal = (magnitude - (int64_t{896} << 52) + 0x0fffffff + ((magnitude >> 29) & 1)) >> 29;
    const int64_t finite = normal > 0x7f800000 ? 0x7f800000 : normal;
    // The last place of 2^-97 is 2^-149, as that of F32's subnormals.
    const int64_t tiny = Bits<int64_t>(Bits<double>(magnitude) + 0x1p-97) - Bits<int64_t>(0x1p-97);
    const int64_t nan = 0x7fc00000 | ((magnitude >> 29) & 0x7fffff);
    int64_t result = Select(magnitude < (int64_t{897} << 52), tiny, finite);
    result = Select(magnitude > (int64_t{0x7ff} << 52), nan, result);
    return static_cast<To>(result) | static_cast<To>(x >> 32 & 0x80000000);
  }
};

// 8-bit floats fit into 16-bit arithmetic. A subnormal's exponent follows from its highest bit.
template <int kMantissaBits, int kToMantissaBits, int kBias, int kToBias>
FST_INLINE uint16_t WidenFinite(uint16_t magnitude) {
  constexpr int kShift = kToMantissaBits - kMantissaBits;
  constexpr int kOne = kToBias - kBias + 1 - kMantissaBits;  // the target's exponent of the smallest subnormal
  const uint16_t normal = static_cast<uint16_t>((magnitude << kShift) + ((kToBias - kBias) << kToMantissaBits));
  uint16_t tiny = Select<uint16_t>(magnitude >= 1, kOne << kToMantissaBits, 0);
  for (int bit = 1; bit < kMantissaBits; ++bit) {
    const uint16_t high = static_cast<uint16_t>(1 << bit);
    const uint16_t value = static_cast<uint16_t>(((kOne + bit) << kToMantissaBits) +
                                                 (static_cast<uint16_t>(magnitude - high) << (kToMantissaBits - bit)));
    tiny = Select<uint16_t>(magnitude >= high, value, tiny);
  }
  return Select<uint16_t>(magnitude >= (1 << kMantissaBits), normal, tiny);
}

struct E5M2ToF16 {  // E5M2 is the upper half of F16
  using From = uint8_t;
  using To = uint16_t;
  static FST_INLINE To Do(From e) {
    const uint16_t wide = static_cast<uint16_t>(e << 8);
    return static_cast<uint16_t>(wide | Select<uint16_t>((e & 0x7f) > 0x7c, 0x200, 0));
  }
};

struct E5M2ToBF16 {
  using From = uint8_t;
  using To = uint16_t;
  static FST_INLINE To Do(From e) {
    const uint16_t magnitude = e & 0x7f;
    const uint16_t finite = WidenFinite<2, 7, 15, 127>(magnitude);
    const uint16_t special = static_cast<uint16_t>(0x7f80 | (magnitude & 3) << 5);
    const uint16_t quiet = Select<uint16_t>(magnitude > 0x7c, 0x40, 0);
    const uint16_t result = Select<uint16_t>(magnitude >= 0x7c, special | quiet, finite);
    return static_cast<uint16_t>(result | (e & 0x80) << 8);
  }
};

struct E4M3ToF16 {  // no infinities, one NaN
  using From = uint8_t;
  using To = uint16_t;
  static FST_INLINE To Do(From e) {
    const uint16_t magnitude = e & 0x7f;
    const uint16_t result = Select<uint16_t>(magnitude == 0x7f, 0x7f80, WidenFinite<3, 10, 7, 15>(magnitude));
    return static_cast<uint16_t>(result | (e & 0x80) << 8);
  }
};

struct E4M3ToBF16 {
  using From = uint8_t;
  using To = uint16_t;
  static FST_INLINE To Do(From e) {
    const uint16_t magnitude = e & 0x7f;
    const uint16_t result = Select<uint16_t>(magnitude == 0x7f, 0x7ff0, WidenFinite<3, 7, 7, 127>(magnitude));
    return static_cast<uint16_t>(result | (e & 0x80) << 8);
  }
};

// BF16 holds every value of 8-bit floats, and is the upper half of F32.
template <class ToBF16>
struct F8ToF32 {
  using From = uint8_t;
  using To = uint32_t;
  static FST_INLINE To Do(From e) { return static_cast<uint32_t>(ToBF16::Do(e)) << 16; }
};
using E4M3ToF32 = F8ToF32<E4M3ToBF16>;
using E5M2ToF32 = F8ToF32<E5M2ToBF16>;

}  // namespace fst::convert
