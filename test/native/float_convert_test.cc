// Every conversion, compared with independent arithmetic: values by ldexp, rounding by exact comparison with half a
// unit.
#include "convert/float_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fst {
namespace {

enum class Special {
  kIeee,  // the highest exponent is for infinity and NaN
  kNan,   // one pattern of each sign is NaN: all ones
  kFnuz,  // one NaN, where others have the negative zero
};

struct Layout {
  int exponent_bits, mantissa_bits;
  Special special = Special::kIeee;
  int bits() const { return 1 + exponent_bits + mantissa_bits; }
  int bias() const { return (1 << (exponent_bits - 1)) - (special == Special::kFnuz ? 0 : 1); }
  uint64_t top_exponent() const { return (uint64_t{1} << exponent_bits) - 1; }
  uint64_t sign_bit() const { return uint64_t{1} << (bits() - 1); }
  // What is above the largest finite value: an infinity, or else NaN.
  uint64_t above() const {
    const uint64_t infinity = top_exponent() << mantissa_bits;
    return special == Special::kIeee ? infinity : sign_bit() - (special == Special::kNan ? 1 : 0);
  }
};

Layout LayoutOf(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return {11, 52};
    case DType::F32:
      return {8, 23};
    case DType::F16:
      return {5, 10};
    case DType::BF16:
      return {8, 7};
    case DType::F8_E5M2:
      return {5, 2};
    case DType::F8_E4M3:
      return {4, 3, Special::kNan};
    case DType::F8_E4M3FNUZ:
      return {4, 3, Special::kFnuz};
    default:
      return {5, 2, Special::kFnuz};  // F8_E5M2FNUZ
  }
}

uint64_t Round(Layout from, Layout to, uint64_t bits) {
  const uint64_t mantissa_mask = (uint64_t{1} << from.mantissa_bits) - 1;
  const uint64_t exponent = bits >> from.mantissa_bits & from.top_exponent(), mantissa = bits & mantissa_mask;
  const uint64_t sign_out = (bits & from.sign_bit()) != 0 ? to.sign_bit() : 0;
  const bool fnuz = to.special == Special::kFnuz, top = exponent == from.top_exponent();
  const bool nan = from.special == Special::kIeee  ? top && mantissa != 0
                   : from.special == Special::kNan ? top && mantissa == mantissa_mask
                                                   : bits == from.sign_bit();
  if (nan) {
    if (fnuz) return to.above();
    if (to.special == Special::kNan) return sign_out | to.above();
    const uint64_t quiet = uint64_t{1} << (to.mantissa_bits - 1);
    // 8 bits from elsewhere have no payload.
    if (to.bits() == 8) return sign_out | to.above() | quiet;
    const int shift = to.mantissa_bits - from.mantissa_bits;
    const uint64_t payload = shift >= 0 ? mantissa << shift : mantissa >> -shift;
    return sign_out | to.above() | payload | quiet;
  }
  const uint64_t above = fnuz ? to.above() : sign_out | to.above();
  if (from.special == Special::kIeee && top) return above;
  // The magnitude as a double: exact, every format is narrower. Of an F64 the number itself.
  const double value = exponent == 0 ? std::ldexp(static_cast<double>(mantissa), 1 - from.bias() - from.mantissa_bits)
                                     : std::ldexp(static_cast<double>(mantissa | (mantissa_mask + 1)),
                                                  static_cast<int>(exponent) - from.bias() - from.mantissa_bits);
  const uint64_t zero = fnuz ? 0 : sign_out;
  if (value == 0) return zero;
  int power = 0;
  std::frexp(value, &power);  // value = [0.5, 1) * 2^power
  const int unit = std::max(power - 1, 1 - to.bias()) - to.mantissa_bits;
  // Far below the target an F64 would leave the doubles' range when scaled: less than half a unit.
  if (power - 1 < unit - 1) return zero;
  const double scaled = std::ldexp(value, -unit);
  uint64_t whole = static_cast<uint64_t>(scaled);
  const double rest = scaled - static_cast<double>(whole);
  if (rest > 0.5 || (rest == 0.5 && (whole & 1) != 0)) ++whole;
  // A subnormal's exponent field is 0, a carry out of the mantissa is the next exponent.
  const uint64_t exponent_out = static_cast<uint64_t>(unit + to.mantissa_bits + to.bias() - 1);
  const uint64_t result = (exponent_out << to.mantissa_bits) + whole;
  if (result >= to.above()) return above;
  return result == 0 ? zero : sign_out | result;
}

uint64_t Reference(DType from, DType to, uint64_t bits) {
  // F64 to BF16 and to 8 bits is rounded twice, as by others.
  if (from == DType::F64 && to != DType::F16 && to != DType::F32) {
    bits = Round(LayoutOf(from), LayoutOf(DType::F32), bits);
    from = DType::F32;
  }
  return Round(LayoutOf(from), LayoutOf(to), bits);
}

std::vector<std::pair<DType, DType>> AllPairs() {
  std::vector<std::pair<DType, DType>> pairs;
  for (size_t f = 0; f < kDTypeCount; ++f) {
    for (size_t t = 0; t < kDTypeCount; ++t) {
      if (CanConvertFloats(static_cast<DType>(f), static_cast<DType>(t)))
        pairs.emplace_back(static_cast<DType>(f), static_cast<DType>(t));
    }
  }
  return pairs;
}

std::vector<uint64_t> Convert(DType from, DType to, const std::vector<uint64_t>& values, ConvertPath path) {
  const size_t in = BytesOf(from), out = BytesOf(to);
  // Odd addresses on both sides.
  std::vector<char> source(values.size() * in + 1), destination(values.size() * out + 1);
  for (size_t i = 0; i < values.size(); ++i) memcpy(source.data() + 1 + i * in, &values[i], in);
  ConvertFloats(from, to, source.data() + 1, destination.data() + 1, values.size(), path);
  std::vector<uint64_t> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) memcpy(&result[i], destination.data() + 1 + i * out, out);
  return result;
}

std::string Name(DType dtype) { return kDTypeNames[static_cast<size_t>(dtype)]; }

void ExpectExact(DType from, DType to, const std::vector<uint64_t>& values) {
  const std::vector<uint64_t> portable = Convert(from, to, values, ConvertPath::kPortable);
  const std::vector<uint64_t> best = Convert(from, to, values, ConvertPath::kBest);
  int wrong = 0;
  for (size_t i = 0; i < values.size() && wrong < 5; ++i) {
    const uint64_t expected = Reference(from, to, values[i]);
    if (portable[i] == expected && best[i] == expected) continue;
    ++wrong;
    ADD_FAILURE() << Name(from) << " 0x" << std::hex << values[i] << " to " << Name(to) << ": expected 0x" << expected
                  << ", portable 0x" << portable[i] << ", best 0x" << best[i];
  }
}

// Every exponent and sign with the mantissas at which rounding can go wrong for `to`: zero, one, all ones, and around
// each half unit, for normal results and for subnormal ones of every length.
std::vector<uint64_t> Edges(Layout from) {
  std::vector<uint64_t> values;
  const uint64_t mask = (uint64_t{1} << from.mantissa_bits) - 1;
  for (uint64_t exponent = 0; exponent <= from.top_exponent(); ++exponent) {
    // Far from what F32 holds all exponents of F64 are the same.
    const bool far = from.bits() == 64 && (exponent < 860 || exponent > 1160);
    if (far && exponent % 64 > 1 && exponent < from.top_exponent() - 1) continue;
    for (int bit = 0; bit < from.mantissa_bits; ++bit) {
      const uint64_t half = uint64_t{1} << bit;
      for (uint64_t above : {uint64_t{0}, half << 1, mask & ~(half | (half - 1)), uint64_t{0x5555555555555555}}) {
        for (uint64_t low : {half - 1, half, half + 1, uint64_t{0}, 2 * half - 1}) {
          const uint64_t mantissa = ((above & ~(2 * half - 1)) | low) & mask;
          for (uint64_t sign : {0, 1})
            values.push_back(sign << (from.bits() - 1) | exponent << from.mantissa_bits | mantissa);
        }
      }
    }
  }
  return values;
}

TEST(Convert, FloatsOfTheContractToEachOther) {
  using D = DType;
  for (size_t f = 0; f < kDTypeCount; ++f) {
    for (size_t t = 0; t < kDTypeCount; ++t) {
      const D from = static_cast<D>(f), to = static_cast<D>(t);
      const std::set<D> floats = {D::F64,     D::F32,     D::F16,         D::BF16,
                                  D::F8_E4M3, D::F8_E5M2, D::F8_E4M3FNUZ, D::F8_E5M2FNUZ};
      EXPECT_EQ(CanConvertFloats(from, to), from != to && floats.count(from) != 0 && floats.count(to) != 0);
    }
  }
}

// By hand, from the definitions of the formats.
TEST(Convert, KnownValues) {
  auto one = [](DType from, DType to, uint64_t bits) { return Convert(from, to, {bits}, ConvertPath::kBest)[0]; };
  EXPECT_EQ(one(DType::F32, DType::F16, 0x3f800000), 0x3c00U);              // 1
  EXPECT_EQ(one(DType::F32, DType::F16, 0xc77fefff), 0xfbffU);              // just above -65520: the largest finite
  EXPECT_EQ(one(DType::F32, DType::F16, 0x477ff000), 0x7c00U);              // 65520: infinity
  EXPECT_EQ(one(DType::F32, DType::F16, 0x33000000), 0x0000U);              // 2^-25, a tie: even is 0
  EXPECT_EQ(one(DType::F32, DType::F16, 0x33000001), 0x0001U);              // above it
  EXPECT_EQ(one(DType::F32, DType::BF16, 0x3f808000), 0x3f80U);             // a tie: down to even
  EXPECT_EQ(one(DType::F32, DType::BF16, 0x3f818000), 0x3f82U);             // a tie: up to even
  EXPECT_EQ(one(DType::F32, DType::BF16, 0x7f7fffff), 0x7f80U);             // the largest: infinity
  EXPECT_EQ(one(DType::F32, DType::BF16, 0x7f800001), 0x7fc0U);             // NaN must not become infinity
  EXPECT_EQ(one(DType::F64, DType::F32, 0x36a0000000000000), 1U);           // 2^-149
  EXPECT_EQ(one(DType::F8_E4M3, DType::F32, 0x7e), 0x43e00000U);            // 448
  EXPECT_EQ(one(DType::F8_E4M3, DType::F16, 0x01), 0x1800U);                // 2^-9
  EXPECT_EQ(one(DType::F8_E5M2, DType::BF16, 0xfc), 0xff80U);               // -infinity
  EXPECT_EQ(one(DType::F16, DType::F32, 0x8001), 0xb3800000U);              // -2^-24
  EXPECT_EQ(one(DType::F32, DType::F64, 0x00000001), 0x36a0000000000000U);  // 2^-149
  EXPECT_EQ(one(DType::F32, DType::F8_E4M3, 0x43e80000), 0x7eU);            // 464, a tie: 448, the largest
  EXPECT_EQ(one(DType::F32, DType::F8_E4M3, 0xc3e80001), 0xffU);            // below -464: NaN
  EXPECT_EQ(one(DType::F32, DType::F8_E4M3, 0x7f800000), 0x7fU);            // infinity: NaN
  EXPECT_EQ(one(DType::F32, DType::F8_E5M2, 0x476fffff), 0x7bU);            // just below 61440: the largest
  EXPECT_EQ(one(DType::F32, DType::F8_E5M2, 0x47700000), 0x7cU);            // 61440: infinity
  EXPECT_EQ(one(DType::F32, DType::F8_E4M3FNUZ, 0x43700000), 0x7fU);        // 240, the largest
  EXPECT_EQ(one(DType::F32, DType::F8_E4M3FNUZ, 0xff800000), 0x80U);        // -infinity: NaN
  EXPECT_EQ(one(DType::F32, DType::F8_E5M2FNUZ, 0x80000000), 0x00U);        // no negative zero
  EXPECT_EQ(one(DType::F8_E4M3FNUZ, DType::F8_E4M3, 0x80), 0xffU);          // NaN
  EXPECT_EQ(one(DType::F64, DType::F16, 0x3ff0020000000001), 0x3c01U);      // above a tie: once
  EXPECT_EQ(one(DType::F64, DType::BF16, 0x3ff0100000000001), 0x3f80U);     // above a tie by less than an F32 holds
}

TEST(Convert, EveryValueOf8And16Bits) {
  for (auto [from, to] : AllPairs()) {
    const int bits = LayoutOf(from).bits();
    if (bits > 16) continue;
    std::vector<uint64_t> values(size_t{1} << bits);
    for (size_t i = 0; i < values.size(); ++i) values[i] = i;
    ExpectExact(from, to, values);
  }
}

TEST(Convert, TiesSubnormalsAndLimitsOf32And64Bits) {
  for (auto [from, to] : AllPairs()) {
    if (LayoutOf(from).bits() >= 32) ExpectExact(from, to, Edges(LayoutOf(from)));
  }
}

TEST(Convert, RandomPatternsOf32And64Bits) {
  std::mt19937_64 random(20240607);
  std::vector<uint64_t> values(size_t{1} << 18);
  for (auto [from, to] : AllPairs()) {
    const Layout layout = LayoutOf(from);
    if (layout.bits() < 32) continue;
    for (int round = 0; round < 2; ++round) {
      for (uint64_t& value : values) {
        value = random();
        // Of all F64s few are F32s: half of them get an exponent from its range.
        if (layout.bits() == 64 && (value >> 53 & 1) != 0) {
          const uint64_t exponent = 860 + random() % 300;
          value = (value & 0x800fffffffffffff) | exponent << 52;
        }
        if (layout.bits() == 32) value &= 0xffffffff;
      }
      ExpectExact(from, to, values);
    }
  }
}

// Counts that are no multiple of a register, and the bytes beside the destination.
TEST(Convert, ShortRunsTouchNothingElse) {
  for (auto [from, to] : AllPairs()) {
    for (ConvertPath path : {ConvertPath::kPortable, ConvertPath::kBest}) {
      const size_t in = BytesOf(from), out = BytesOf(to);
      for (size_t n = 0; n <= 70; ++n) {
        std::vector<unsigned char> source(n * in), destination(n * out + 32, 0xEE);
        for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<unsigned char>(i * 37 + n);
        ConvertFloats(from, to, source.data(), destination.data() + 16, n, path);
        for (size_t i = 0; i < 16; ++i) {
          ASSERT_EQ(destination[i], 0xEE);
          ASSERT_EQ(destination[16 + n * out + i], 0xEE);
        }
        for (size_t i = 0; i < n; ++i) {
          uint64_t value = 0, result = 0;
          memcpy(&value, &source[i * in], in);
          memcpy(&result, &destination[16 + i * out], out);
          ASSERT_EQ(result, Reference(from, to, value)) << Name(from) << Name(to) << n;
        }
      }
    }
  }
}

#if defined(__x86_64__)
// A library built with -ffast-math does this to the thread that loads it and to the threads that it starts.
TEST(Convert, FlushingOfSubnormalsChangesNothing) {
  const unsigned before = _mm_getcsr();
  for (auto [from, to] : AllPairs()) {
    std::vector<uint64_t> values;
    if (LayoutOf(from).bits() >= 32) {
      values = Edges(LayoutOf(from));
    } else {
      for (uint64_t i = 0; i < uint64_t{1} << LayoutOf(from).bits(); ++i) values.push_back(i);
    }
    for (ConvertPath path : {ConvertPath::kPortable, ConvertPath::kBest}) {
      const std::vector<uint64_t> expected = Convert(from, to, values, path);
      _mm_setcsr(before | 0x8040);  // flush to zero, denormals are zero
      const std::vector<uint64_t> flushed = Convert(from, to, values, path);
      _mm_setcsr(before);
      EXPECT_TRUE(flushed == expected) << Name(from) << " to " << Name(to);
    }
  }
}
#endif

}  // namespace
}  // namespace fst
