#include "convert/element_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace fst {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class To, class From>
std::vector<To> Convert(const ElementConversion& conversion, const std::vector<From>& from) {
  EXPECT_TRUE(CanConvertElements(conversion));
  std::vector<To> to(from.size());
  Status status = ConvertElements(conversion, from.data(), from.size(), to.data());
  EXPECT_TRUE(status.ok()) << status.message();
  return to;
}

// The value of a code by definition of sign, exponent and mantissa, independent of the code under test.
double Value(unsigned code, int exponent_bits, int mantissa_bits, int bias) {
  unsigned mantissa = code & ((1u << mantissa_bits) - 1);
  int exponent = static_cast<int>((code >> mantissa_bits) & ((1u << exponent_bits) - 1));
  double fraction = mantissa / static_cast<double>(1u << mantissa_bits);
  double value = exponent == 0 ? fraction * std::pow(2.0, 1 - bias) : (1 + fraction) * std::pow(2.0, exponent - bias);
  return (code >> (exponent_bits + mantissa_bits)) & 1 ? -value : value;
}

void ExpectSame(float found, double expected, unsigned code) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(found)) << code;
  } else {
    EXPECT_EQ(found, static_cast<float>(expected)) << code;
    EXPECT_EQ(std::signbit(found), std::signbit(expected)) << code;
  }
}

TEST(TfConvert, EveryF16HasItsValue) {
  std::vector<uint16_t> codes(65536);
  for (unsigned i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint16_t>(i);
  auto floats = Convert<float>({DType::F16, ConvertTo::kFloat32}, codes);
  for (unsigned code = 0; code < codes.size(); ++code) {
    double expected = Value(code, 5, 10, 15);
    if ((code & 0x7c00) == 0x7c00) expected = code & 0x3ff ? NAN : (code & 0x8000 ? -kInfinity : kInfinity);
    ExpectSame(floats[code], expected, code);
  }
}

TEST(TfConvert, EveryBF16IsTheUpperHalfOfAFloat) {
  std::vector<uint16_t> codes(65536);
  for (unsigned i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint16_t>(i);
  auto floats = Convert<float>({DType::BF16, ConvertTo::kFloat32}, codes);
  for (unsigned code = 0; code < codes.size(); ++code) {
    uint32_t bits;
    memcpy(&bits, &floats[code], 4);
    const bool nan = (code & 0x7fff) > 0x7f80;
    ASSERT_EQ(bits, code << 16 | (nan ? 0x400000u : 0u));  // NaN is made quiet, as by `dtype`
  }
}

TEST(TfConvert, EveryF8HasItsValue) {
  std::vector<uint8_t> codes(256);
  for (unsigned i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  auto floats = [&](DType from) { return Convert<float>({from, ConvertTo::kFloat32}, codes); };
  auto e4m3 = floats(DType::F8_E4M3), e5m2 = floats(DType::F8_E5M2), e4m3fnuz = floats(DType::F8_E4M3FNUZ),
       e5m2fnuz = floats(DType::F8_E5M2FNUZ), e8m0 = floats(DType::F8_E8M0);
  for (unsigned code = 0; code < 256; ++code) {
    ExpectSame(e4m3[code], (code & 0x7f) == 0x7f ? NAN : Value(code, 4, 3, 7), code);
    double infinite = code & 3 ? NAN : (code & 0x80 ? -kInfinity : kInfinity);
    ExpectSame(e5m2[code], (code & 0x7c) == 0x7c ? infinite : Value(code, 5, 2, 15), code);
    ExpectSame(e4m3fnuz[code], code == 0x80 ? NAN : Value(code, 4, 3, 8), code);
    ExpectSame(e5m2fnuz[code], code == 0x80 ? NAN : Value(code, 5, 2, 16), code);
    ExpectSame(e8m0[code], code == 255 ? NAN : std::pow(2.0, static_cast<int>(code) - 127), code);
  }
  // The largest numbers, as the specifications give them.
  EXPECT_EQ(e4m3[0x7e], 448.0f);
  EXPECT_EQ(e5m2[0x7b], 57344.0f);
  EXPECT_EQ(e4m3fnuz[0x7f], 240.0f);
  EXPECT_EQ(e5m2fnuz[0x7f], 57344.0f);
}

TEST(TfConvert, F64IsRoundedToTheNearestFloat) {
  auto floats = Convert<float>(
      {DType::F64, ConvertTo::kFloat32},
      std::vector<double>{0.1, 1e300, -1e300, 1e-300, std::nextafter(1.0, 2.0), 16777217.0, std::nan("")});
  EXPECT_EQ(floats[0], 0.1f);
  EXPECT_EQ(floats[1], kInfinity);
  EXPECT_EQ(floats[2], -kInfinity);
  EXPECT_EQ(floats[3], 0.0f);
  EXPECT_EQ(floats[4], 1.0f);
  EXPECT_EQ(floats[5], 16777216.0f);
  EXPECT_TRUE(std::isnan(floats[6]));
}

TEST(TfConvert, IntegersKeepTheirValue) {
  using Int = std::vector<int32_t>;
  EXPECT_EQ(Convert<int32_t>({DType::I8, ConvertTo::kInt32}, std::vector<int8_t>{-128, 127}), (Int{-128, 127}));
  EXPECT_EQ(Convert<int32_t>({DType::U8, ConvertTo::kInt32}, std::vector<uint8_t>{0, 255}), (Int{0, 255}));
  EXPECT_EQ(Convert<int32_t>({DType::I16, ConvertTo::kInt32}, std::vector<int16_t>{-32768, 1}), (Int{-32768, 1}));
  EXPECT_EQ(Convert<int32_t>({DType::U16, ConvertTo::kInt32}, std::vector<uint16_t>{65535}), (Int{65535}));
  EXPECT_EQ(Convert<int32_t>({DType::U32, ConvertTo::kInt32}, std::vector<uint32_t>{2147483647}), (Int{2147483647}));
  EXPECT_EQ(Convert<int32_t>({DType::I64, ConvertTo::kInt32}, std::vector<int64_t>{-2147483648LL, 2147483647LL}),
            (Int{std::numeric_limits<int32_t>::min(), 2147483647}));
  EXPECT_EQ(Convert<int32_t>({DType::U64, ConvertTo::kInt32}, std::vector<uint64_t>{7}), (Int{7}));
}

template <class From>
void ExpectOutside(DType dtype, From value, const char* text) {
  std::vector<From> from(3000, 1);  // beyond one block
  from[2500] = value;
  std::vector<int32_t> to(from.size());
  Status status = ConvertElements({dtype, ConvertTo::kInt32}, from.data(), from.size(), to.data());
  EXPECT_EQ(status.code(), Code::UNSUPPORTED_DTYPE);
  EXPECT_NE(status.message().find(std::string("element 2500 is ") + text), std::string::npos) << status.message();
}

TEST(TfConvert, AnIntegerThatInt32CannotHoldIsNamed) {
  ExpectOutside<uint32_t>(DType::U32, 2147483648u, "2147483648,");
  ExpectOutside<int64_t>(DType::I64, 2147483648LL, "2147483648,");
  ExpectOutside<int64_t>(DType::I64, -2147483649LL, "-2147483649,");
  ExpectOutside<uint64_t>(DType::U64, ~0ull, "18446744073709551615,");
}

TEST(TfConvert, QuantizedValuesAreScaled) {
  ElementConversion c{DType::U8, ConvertTo::kFloat32, true, 0.1, -5};
  EXPECT_EQ(Convert<float>(c, std::vector<uint8_t>{0, 1, 255}),
            (std::vector<float>{-5.0f, static_cast<float>(0.1 - 5), static_cast<float>(255 * 0.1 - 5)}));
  c.from = DType::U16;
  EXPECT_EQ(Convert<float>(c, std::vector<uint16_t>{65535}), (std::vector<float>{static_cast<float>(65535 * 0.1 - 5)}));
  ElementConversion i{DType::U8, ConvertTo::kInt32, true, 0.5, -1};
  EXPECT_EQ(Convert<int32_t>(i, std::vector<uint8_t>{0, 1, 2, 3}), (std::vector<int32_t>{-1, 0, 0, 1}));
}

TEST(TfConvert, SourcesMayLieAnywhere) {
  std::vector<char> bytes(1 + 8 * 2000);
  for (int64_t i = 0; i < 2000; ++i) memcpy(bytes.data() + 1 + 8 * i, &i, 8);
  std::vector<int32_t> to(2000);
  ASSERT_TRUE(ConvertElements({DType::I64, ConvertTo::kInt32}, bytes.data() + 1, 2000, to.data()).ok());
  for (int i = 0; i < 2000; ++i) ASSERT_EQ(to[i], i);
}

TEST(TfConvert, KnowsWhatItCannot) {
  EXPECT_FALSE(CanConvertElements({DType::F4, ConvertTo::kFloat32}));
  EXPECT_FALSE(CanConvertElements({DType::F6_E2M3, ConvertTo::kFloat32}));
  EXPECT_FALSE(CanConvertElements({DType::C64, ConvertTo::kFloat32}));
  EXPECT_FALSE(CanConvertElements({DType::F16, ConvertTo::kInt32}));
  EXPECT_FALSE(CanConvertElements({DType::I64, ConvertTo::kFloat32}));
  EXPECT_FALSE(CanConvertElements({DType::F32, ConvertTo::kFloat32, true, 1, 0}));
}

}  // namespace
}  // namespace fst
