#include "convert/float_convert.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "convert/float_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace fst {
namespace {

using namespace convert;  // NOLINT(google-build-using-namespace): the kernels of this file

using Function = void (*)(const void* source, void* destination, size_t n);

template <class Kernel>
FST_INLINE void Loop(const void* __restrict source, void* __restrict destination, size_t n) {
  using From = typename Kernel::From;
  using To = typename Kernel::To;
  const char* __restrict in = static_cast<const char*>(source);
  char* __restrict out = static_cast<char*>(destination);
  for (size_t i = 0; i < n; ++i) {
    From x;
    memcpy(&x, in + i * sizeof(From), sizeof x);
    const To y = Kernel::Do(x);
    memcpy(out + i * sizeof(To), &y, sizeof y);
  }
}

template <class Kernel>
constexpr bool kByWay = false;  // of another dtype
template <class First, class Second>
constexpr bool kByWay<Then<First, Second>> = true;

// Of 8 bits: each of their values is converted once.
template <class Kernel>
void ByTable(const void* source, void* destination, size_t n) {
  using To = typename Kernel::To;
  std::array<To, 256> table;
  for (size_t i = 0; i < table.size(); ++i) table[i] = Kernel::Do(static_cast<uint8_t>(i));
  const auto* in = static_cast<const uint8_t*>(source);
  char* out = static_cast<char*>(destination);
  for (size_t i = 0; i < n; ++i) memcpy(out + i * sizeof(To), &table[in[i]], sizeof(To));
}

template <class Kernel>
void Portable(const void* source, void* destination, size_t n) {
  if constexpr (kByWay<Kernel> && sizeof(typename Kernel::From) == 1) {
    if (n >= 256) return ByTable<Kernel>(source, destination, n);
  }
  Loop<Kernel>(source, destination, n);
}

#if defined(__x86_64__)

#define FST_AVX2 __attribute__((target("avx2,f16c")))

template <class First, class Second>
void InBlocks(Then<First, Second> /*kernel*/, const void* source, void* destination, size_t n);

// The same arithmetic, compiled for AVX2.
template <class Kernel>
FST_AVX2 void Fast(const void* source, void* destination, size_t n) {
  if constexpr (!kByWay<Kernel>) {
    Loop<Kernel>(source, destination, n);
  } else if constexpr (sizeof(typename Kernel::From) == 1) {
    Portable<Kernel>(source, destination, n);
  } else {
    InBlocks(Kernel(), source, destination, n);
  }
}

// The elements after the last whole register of eight.
template <class Kernel>
FST_AVX2 FST_INLINE void Tail(const void* source, void* destination, size_t done, size_t n) {
  Loop<Kernel>(static_cast<const char*>(source) + done * sizeof(typename Kernel::From),
               static_cast<char*>(destination) + done * sizeof(typename Kernel::To), n - done);
}

template <>
FST_AVX2 void Fast<F32ToF16>(const void* source, void* destination, size_t n) {
  const float* in = static_cast<const float*>(source);
  __m128i* out = static_cast<__m128i*>(destination);
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(out + i / 8, _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  Tail<F32ToF16>(source, destination, i, n);
}

template <>
FST_AVX2 void Fast<F16ToF32>(const void* source, void* destination, size_t n) {
  const __m128i* in = static_cast<const __m128i*>(source);
  float* out = static_cast<float*>(destination);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(in + i / 8)));
  Tail<F16ToF32>(source, destination, i, n);
}

template <>
FST_AVX2 void Fast<BF16ToF16>(const void* source, void* destination, size_t n) {
  const __m128i* in = static_cast<const __m128i*>(source);
  __m128i* out = static_cast<__m128i*>(destination);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(in + i / 8)), 16);
    _mm_storeu_si128(out + i / 8, _mm256_cvtps_ph(_mm256_castsi256_ps(wide), _MM_FROUND_TO_NEAREST_INT));
  }
  Tail<BF16ToF16>(source, destination, i, n);
}

template <>
FST_AVX2 void Fast<F16ToBF16>(const void* source, void* destination, size_t n) {
  const __m128i* in = static_cast<const __m128i*>(source);
  __m128i* out = static_cast<__m128i*>(destination);
  const __m256i half = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1), quiet = _mm256_set1_epi32(0x40);
  const __m256i sign = _mm256_set1_epi32(0x7fffffff), infinity = _mm256_set1_epi32(0x7f800000);
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i x = _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(in + i / 8)));
    const __m256i top = _mm256_srli_epi32(x, 16);
    const __m256i up = _mm256_add_epi32(half, _mm256_and_si256(top, one));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(x, up), 16);
    const __m256i is_nan = _mm256_cmpgt_epi32(_mm256_and_si256(x, sign), infinity);
    const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, quiet), is_nan);
    const __m128i low = _mm256_castsi256_si128(result), high = _mm256_extracti128_si256(result, 1);
    _mm_storeu_si128(out + i / 8, _mm_packus_epi32(low, high));
  }
  Tail<F16ToBF16>(source, destination, i, n);
}

// Each half by its own instructions, through what the first-level cache holds.
template <class First, class Second>
void InBlocks(Then<First, Second> /*kernel*/, const void* source, void* destination, size_t n) {
  constexpr size_t kBlock = 1024;
  typename First::To between[kBlock];
  const char* in = static_cast<const char*>(source);
  char* out = static_cast<char*>(destination);
  for (size_t count = 0; n > 0; n -= count) {
    count = std::min(n, kBlock);
    Fast<First>(in, between, count);
    Fast<Second>(between, out, count);
    in += count * sizeof(typename First::From);
    out += count * sizeof(typename Second::To);
  }
}

bool DetectFast() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  // The compiler's check of AVX2 includes that the system saves its registers.
  return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

#else

template <class Kernel>
constexpr Function Fast = Portable<Kernel>;
bool DetectFast() { return false; }

#endif

struct Conversion {
  Function portable = nullptr, fast = nullptr;
};

constexpr DType kFloats[] = {DType::F64,     DType::F32,     DType::F16,         DType::BF16,
                             DType::F8_E4M3, DType::F8_E5M2, DType::F8_E4M3FNUZ, DType::F8_E5M2FNUZ};
constexpr size_t kFloatCount = std::size(kFloats);

template <size_t kPair>
constexpr Conversion Of() {
  constexpr DType kFrom = kFloats[kPair / kFloatCount], kTo = kFloats[kPair % kFloatCount];
  if constexpr (kFrom == kTo) {
    return {};
  } else {
    using Kernel = typename KernelOf<kFrom, kTo>::Type;
    return {Portable<Kernel>, Fast<Kernel>};
  }
}

template <size_t... kPairs>
constexpr std::array<Conversion, sizeof...(kPairs)> All(std::index_sequence<kPairs...>) {
  return {Of<kPairs>()...};
}

const Conversion* Find(DType from, DType to) {
  static constexpr auto kConversions = All(std::make_index_sequence<kFloatCount * kFloatCount>());
  const auto* const end = std::end(kFloats);
  const auto* const row = std::find(std::begin(kFloats), end, from);
  const auto* const column = std::find(std::begin(kFloats), end, to);
  if (from == to || row == end || column == end) return nullptr;
  return &kConversions[static_cast<size_t>(row - kFloats) * kFloatCount + static_cast<size_t>(column - kFloats)];
}

}  // namespace

bool CanConvertFloats(DType from, DType to) { return Find(from, to) != nullptr; }

bool HasFastConvert() {
  static const bool fast = DetectFast();
  return fast;
}

void ConvertFloats(DType from, DType to, const void* source, void* destination, size_t n, ConvertPath path) {
  const Conversion* conversion = Find(from, to);
  if (conversion == nullptr) return;  // excluded by the contract
  const bool fast = path == ConvertPath::kBest && HasFastConvert();
  (fast ? conversion->fast : conversion->portable)(source, destination, n);
}

}  // namespace fst
