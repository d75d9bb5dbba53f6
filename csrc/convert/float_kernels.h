// Each conversion for one element, without branches, so that compilers vectorize a loop around it. Often by integers:
// no float operand or result may be subnormal unless flushing it to zero gives the same bits, because a library built
// with -ffast-math switches flushing on for the threads that it starts.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/dtype.h"

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

// Where a float's magnitude lies in `kMantissaBits` and exponents of bias `kBias`: the bits of the nearest value, ties
// to even, of which those above the format's largest finite value mean that it is exceeded. Of a NaN: a large number.
// Float is float or double, and Int the signed integer of as many bits.
template <class Float, class Int, int kMantissaBits, int kBias>
FST_INLINE Int Narrow(Int magnitude) {
  constexpr int kFromMantissaBits = sizeof(Float) == 4 ? 23 : 52, kFromBias = sizeof(Float) == 4 ? 127 : 1023;
  constexpr int kShift = kFromMantissaBits - kMantissaBits;
  constexpr Int kRebias = static_cast<Int>(kFromBias - kBias) << kFromMantissaBits;
  constexpr Int kBelowHalf = (Int{1} << (kShift - 1)) - 1;
  const Int normal = (magnitude - kRebias + kBelowHalf + ((magnitude >> kShift) & 1)) >> kShift;
  // A power of two whose last place is that of the format's subnormals: adding it rounds.
  constexpr Int kPower = static_cast<Int>(kFromBias + 1 - kBias + kShift) << kFromMantissaBits;
  const Int tiny = Bits<Int>(Bits<Float>(magnitude) + Bits<Float>(kPower)) - kPower;
  return Select(magnitude < kRebias + (Int{1} << kFromMantissaBits), tiny, normal);
}

// To a narrower float that has infinities and several NaNs.
template <class Float, class FromBits, class ToBits, int kMantissaBits, int kBias>
struct NarrowIeee {
  using From = FromBits;
  using To = ToBits;
  static FST_INLINE To Do(From x) {
    using Int = std::make_signed_t<From>;
    constexpr int kFromBits = sizeof(From) * 8, kToBits = sizeof(To) * 8;
    constexpr int kFromMantissaBits = sizeof(Float) == 4 ? 23 : 52;
    constexpr Int kInfinity = Int{2 * kBias + 1} << kMantissaBits, kQuiet = Int{1} << (kMantissaBits - 1);
    const Int magnitude = static_cast<Int>(x & ~(From{1} << (kFromBits - 1)));
    const Int near = Narrow<Float, Int, kMantissaBits, kBias>(magnitude);
    const Int finite = Select<Int>(near > kInfinity, kInfinity, near);
    const Int payload = (magnitude >> (kFromMantissaBits - kMantissaBits)) & ((Int{1} << kMantissaBits) - 1);
    const bool is_nan = magnitude > Bits<Int>(std::numeric_limits<Float>::infinity());
    const Int result = Select<Int>(is_nan, kInfinity | kQuiet | payload, finite);
    return static_cast<To>(static_cast<From>(result) | (x >> (kFromBits - kToBits) & From{1} << (kToBits - 1)));
  }
};
using F32ToF16 = NarrowIeee<float, uint32_t, uint16_t, 10, 15>;
using F64ToF16 = NarrowIeee<double, uint64_t, uint16_t, 10, 15>;
using F64ToF32 = NarrowIeee<double, uint64_t, uint32_t, 23, 127>;

// What exceeds the largest value, infinities included, becomes `kAbove`: infinity, or NaN where a format has none.
template <int kMantissaBits, int kBias, int kLargest, int kAbove, int kNan>
struct F32ToF8 {
  using From = uint32_t;
  using To = uint8_t;
  static FST_INLINE To Do(From x) {
    const int32_t magnitude = static_cast<int32_t>(x & 0x7fffffff);
    const int32_t near = Narrow<float, int32_t, kMantissaBits, kBias>(magnitude);
    const int32_t finite = Select(near > kLargest, kAbove, near);
    const int32_t result = Select(magnitude > 0x7f800000, kNan, finite);
    return static_cast<To>(static_cast<uint32_t>(result) | (x >> 24 & 0x80));
  }
};
using F32ToE4M3 = F32ToF8<3, 7, 0x7e, 0x7f, 0x7f>;
using F32ToE5M2 = F32ToF8<2, 15, 0x7b, 0x7c, 0x7e>;

template <int kMantissaBits, int kBias>
struct F32ToFnuz {  // one zero; what would be its negative is the only NaN, for infinities as well
  using From = uint32_t;
  using To = uint8_t;
  static FST_INLINE To Do(From x) {
    const int32_t near = Narrow<float, int32_t, kMantissaBits, kBias>(static_cast<int32_t>(x & 0x7fffffff));
    const int32_t with_sign = near | static_cast<int32_t>(x >> 24 & 0x80);
    const int32_t finite = Select(near == 0, 0, with_sign);
    return static_cast<To>(Select(near > 0x7f, 0x80, finite));
  }
};
using F32ToE4M3Fnuz = F32ToFnuz<3, 8>;
using F32ToE5M2Fnuz = F32ToFnuz<2, 16>;

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

struct F32ToF64 {
  using From = uint32_t;
  using To = uint64_t;
  static FST_INLINE To Do(From x) {
    const int32_t magnitude = static_cast<int32_t>(x & 0x7fffffff);
    const int64_t normal = (static_cast<int64_t>(magnitude) << 29) + (int64_t{896} << 52);
    const int64_t tiny = Bits<int64_t>(static_cast<double>(magnitude) * 0x1p-149);
    const int64_t special = normal + (int64_t{896} << 52);
    const int64_t quiet = Select<int64_t>(magnitude > 0x7f800000, int64_t{1} << 51, 0);
    int64_t result = Select(magnitude < 0x800000, tiny, normal);
    result = Select(magnitude >= 0x7f800000, special, result);
    return static_cast<To>(result | quiet) | static_cast<To>(x & 0x80000000) << 32;
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

template <int kMantissaBits, int kToMantissaBits, int kBias, int kToBias, int kNan>
struct WidenFnuz {
  using From = uint8_t;
  using To = uint16_t;
  static FST_INLINE To Do(From e) {
    const uint16_t finite = WidenFinite<kMantissaBits, kToMantissaBits, kBias, kToBias>(e & 0x7f);
    return Select<uint16_t>(e == 0x80, kNan, static_cast<uint16_t>(finite | (e & 0x80) << 8));
  }
};
using E4M3FnuzToF16 = WidenFnuz<3, 10, 8, 15, 0xfe00>;
using E4M3FnuzToBF16 = WidenFnuz<3, 7, 8, 127, 0xffc0>;
using E5M2FnuzToBF16 = WidenFnuz<2, 7, 16, 127, 0xffc0>;

// BF16 holds every value of 8-bit floats, and is the upper half of F32.
template <class ToBF16>
struct F8ToF32 {
  using From = uint8_t;
  using To = uint32_t;
  static FST_INLINE To Do(From e) { return static_cast<uint32_t>(ToBF16::Do(e)) << 16; }
};

// One after the other.
template <class First, class Second>
struct Then {
  using From = typename First::From;
  using To = typename Second::To;
  static FST_INLINE To Do(From x) { return Second::Do(First::Do(x)); }
};

// The kernel of a pair: its own, or by way of F32, which holds every value of the narrower floats. F64 is rounded twice
// on that way, as PyTorch and ml_dtypes do it.
template <DType kFrom, DType kTo>
struct KernelOf {
  using Type = Then<typename KernelOf<kFrom, DType::F32>::Type, typename KernelOf<DType::F32, kTo>::Type>;
};
#define FST_KERNEL(from, to, kernel)        \
  template <>                               \
  struct KernelOf<DType::from, DType::to> { \
    using Type = kernel;                    \
  };
FST_KERNEL(F64, F32, F64ToF32)
FST_KERNEL(F64, F16, F64ToF16)
FST_KERNEL(F32, F64, F32ToF64)
FST_KERNEL(F32, F16, F32ToF16)
FST_KERNEL(F32, BF16, F32ToBF16)
FST_KERNEL(F32, F8_E4M3, F32ToE4M3)
FST_KERNEL(F32, F8_E5M2, F32ToE5M2)
FST_KERNEL(F32, F8_E4M3FNUZ, F32ToE4M3Fnuz)
FST_KERNEL(F32, F8_E5M2FNUZ, F32ToE5M2Fnuz)
FST_KERNEL(F16, F32, F16ToF32)
FST_KERNEL(F16, BF16, F16ToBF16)
FST_KERNEL(BF16, F32, BF16ToF32)
FST_KERNEL(BF16, F16, BF16ToF16)
FST_KERNEL(F8_E4M3, F32, F8ToF32<E4M3ToBF16>)
FST_KERNEL(F8_E4M3, F16, E4M3ToF16)
FST_KERNEL(F8_E4M3, BF16, E4M3ToBF16)
FST_KERNEL(F8_E5M2, F32, F8ToF32<E5M2ToBF16>)
FST_KERNEL(F8_E5M2, F16, E5M2ToF16)
FST_KERNEL(F8_E5M2, BF16, E5M2ToBF16)
FST_KERNEL(F8_E4M3FNUZ, F32, F8ToF32<E4M3FnuzToBF16>)
FST_KERNEL(F8_E4M3FNUZ, F16, E4M3FnuzToF16)
FST_KERNEL(F8_E4M3FNUZ, BF16, E4M3FnuzToBF16)
FST_KERNEL(F8_E5M2FNUZ, F32, F8ToF32<E5M2FnuzToBF16>)
FST_KERNEL(F8_E5M2FNUZ, BF16, E5M2FnuzToBF16)
#undef FST_KERNEL

}  // namespace fst::convert
