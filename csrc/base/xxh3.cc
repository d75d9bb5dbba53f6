// XXH3 with 128 bits and without a seed, written from its specification (doc/xxhash_spec.md of xxHash 0.8).
#include <algorithm>
#include <cstring>

#include "base/digest.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie in memory");

namespace fst {
namespace {

constexpr uint64_t kPrime32_1 = 0x9E3779B1, kPrime32_2 = 0x85EBCA77, kPrime32_3 = 0xC2B2AE3D;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87, kPrime64_2 = 0xC2B2AE3D27D4EB4F, kPrime64_3 = 0x165667B19E3779F9,
                   kPrime64_4 = 0x85EBCA77C2B2AE63, kPrime64_5 = 0x27D4EB2F165667C5;
constexpr uint64_t kPrimeMx1 = 0x165667919E3779F9, kPrimeMx2 = 0x9FB21C651E98DF25;

constexpr size_t kSecretBytes = 192, kStripe = 64, kStripesOfBlock = (kSecretBytes - kStripe) / 8;

// The default secret.
alignas(64) constexpr uint8_t kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,  //
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,  //
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,  //
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,  //
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,  //
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,  //
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,  //
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,  //
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,  //
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,  //
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,  //
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

template <class T>
T Word(const uint8_t* at) {
  T word;
  memcpy(&word, at, sizeof word);
  return word;
}
uint64_t Word64(const uint8_t* at) { return Word<uint64_t>(at); }
uint32_t Word32(const uint8_t* at) { return Word<uint32_t>(at); }
uint64_t Secret64(size_t at) { return Word64(kSecret + at); }

struct Product {
  uint64_t low, high;
};

Product Multiply(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  return {static_cast<uint64_t>(product), static_cast<uint64_t>(product >> 64)};
}

uint64_t Folded(uint64_t a, uint64_t b) {
  const Product product = Multiply(a, b);
  return product.low ^ product.high;
}

uint64_t Avalanche(uint64_t x) {
  x ^= x >> 37;
  x *= kPrimeMx1;
  return x ^ x >> 32;
}

uint64_t AvalancheXxh64(uint64_t x) {
  x ^= x >> 33;
  x *= kPrime64_2;
  x ^= x >> 29;
  x *= kPrime64_3;
  return x ^ x >> 32;
}

// The two halves of a result.
struct Halves {
  uint64_t low, high;
};

Halves OfUpTo3(const uint8_t* in, size_t length) {
  if (length == 0) return {AvalancheXxh64(Secret64(64) ^ Secret64(72)), AvalancheXxh64(Secret64(80) ^ Secret64(88))};
  const uint32_t combined = in[length - 1] | static_cast<uint32_t>(length) << 8 | static_cast<uint32_t>(in[0]) << 16 |
                            static_cast<uint32_t>(in[length >> 1]) << 24;
  const uint32_t swapped = __builtin_bswap32(combined);
  const uint32_t rotated = swapped << 13 | swapped >> 19;
  return {AvalancheXxh64(uint64_t{Word32(kSecret) ^ Word32(kSecret + 4)} ^ combined),
          AvalancheXxh64(uint64_t{Word32(kSecret + 8) ^ Word32(kSecret + 12)} ^ rotated)};
}

Halves Of4To8(const uint8_t* in, size_t length) {
  const uint64_t combined = Word32(in) | uint64_t{Word32(in + length - 4)} << 32;
  const uint64_t value = Secret64(16) ^ Secret64(24) ^ combined;
  auto [low, high] = Multiply(value, kPrime64_1 + (length << 2));
  high += low << 1;
  low ^= high >> 3;
  low ^= low >> 35;
  low *= kPrimeMx2;
  low ^= low >> 28;
  return {low, Avalanche(high)};
}

Halves Of9To16(const uint8_t* in, size_t length) {
  const uint64_t first = Word64(in), last = Word64(in + length - 8);
  const uint64_t one = Secret64(32) ^ Secret64(40) ^ first ^ last, two = Secret64(48) ^ Secret64(56) ^ last;
  auto [low, high] = Multiply(one, kPrime64_1);
  low += static_cast<uint64_t>(length - 1) << 54;
  high += two + static_cast<uint32_t>(two) * (kPrime32_2 - 1);
  low ^= __builtin_bswap64(high);
  const Product product = Multiply(low, kPrime64_2);
  return {Avalanche(product.low), Avalanche(product.high + high * kPrime64_2)};
}

// What 17 to 240 bytes are mixed into.
struct Mixer {
  uint64_t one, two = 0;

  static uint64_t Step(const uint8_t* in, size_t secret) {
    return Folded(Word64(in) ^ Secret64(secret), Word64(in + 8) ^ Secret64(secret + 8));
  }
  void Mix(const uint8_t* a, const uint8_t* b, size_t secret) {
    one += Step(a, secret);
    two += Step(b, secret + 16);
    one ^= Word64(b) + Word64(b + 8);
    two ^= Word64(a) + Word64(a + 8);
  }
};

Halves Of17To240(const uint8_t* in, size_t length) {
  Mixer mixer{length * kPrime64_1};
  if (length <= 128) {
    for (size_t i = (length - 1) / 32 + 1; i-- > 0;) mixer.Mix(in + i * 16, in + length - i * 16 - 16, i * 32);
  } else {
    for (size_t i = 0; i < 4; ++i) mixer.Mix(in + i * 32, in + i * 32 + 16, i * 32);
    mixer.one = Avalanche(mixer.one);
    mixer.two = Avalanche(mixer.two);
    for (size_t i = 4; i < length / 32; ++i) mixer.Mix(in + i * 32, in + i * 32 + 16, (i - 4) * 32 + 3);
    mixer.Mix(in + length - 16, in + length - 32, 103);
  }
  const uint64_t high = mixer.one * kPrime64_1 + mixer.two * kPrime64_4 + length * kPrime64_2;
  return {Avalanche(mixer.one + mixer.two), 0 - Avalanche(high)};
}

// Adds stripes to the accumulators, with the secret from `secret` on, 8 bytes further for each.
using Accumulate = void (*)(uint64_t* sums, const uint8_t* in, const uint8_t* secret, size_t stripes);

void AccumulatePortably(uint64_t* sums, const uint8_t* in, const uint8_t* secret, size_t stripes) {
  uint64_t local[8];
  memcpy(local, sums, sizeof local);
  for (; stripes > 0; --stripes, in += kStripe, secret += 8) {
    uint64_t data[8], value[8];
    memcpy(data, in, sizeof data);
    memcpy(value, secret, sizeof value);
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) value[i] ^= data[i];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) local[i] += data[i ^ 1] + (value[i] & 0xffffffff) * (value[i] >> 32);
  }
  memcpy(sums, local, sizeof local);
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) void AccumulateByAvx2(uint64_t* sums, const uint8_t* in, const uint8_t* secret,
                                                      size_t stripes) {
  auto* out = reinterpret_cast<__m256i*>(sums);
  __m256i low = _mm256_loadu_si256(out), high = _mm256_loadu_si256(out + 1);
  for (; stripes > 0; --stripes, in += kStripe, secret += 8) {
    const auto* from = reinterpret_cast<const __m256i*>(in);
    const auto* key = reinterpret_cast<const __m256i*>(secret);
    _mm_prefetch(in + 2048, _MM_HINT_T0);
    const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
    const __m256i x = _mm256_xor_si256(a, _mm256_loadu_si256(key));
    const __m256i y = _mm256_xor_si256(b, _mm256_loadu_si256(key + 1));
    // Neighbours change places; the halves of each word are multiplied.
    low = _mm256_add_epi64(low, _mm256_shuffle_epi32(a, 0x4e));
    high = _mm256_add_epi64(high, _mm256_shuffle_epi32(b, 0x4e));
    low = _mm256_add_epi64(low, _mm256_mul_epu32(x, _mm256_srli_epi64(x, 32)));
    high = _mm256_add_epi64(high, _mm256_mul_epu32(y, _mm256_srli_epi64(y, 32)));
  }
  _mm256_storeu_si256(out, low);
  _mm256_storeu_si256(out + 1, high);
}

Accumulate Best() { return __builtin_cpu_supports("avx2") ? AccumulateByAvx2 : AccumulatePortably; }

#else

Accumulate Best() { return AccumulatePortably; }

#endif

class Xxh3 : public Digester {
 public:
  explicit Xxh3(Accumulate accumulate) : accumulate_(accumulate) {}

  // Of the bytes so far, the last ones are in buffer_, at least one: the last stripe is treated in another way.
  void Update(const void* bytes, size_t length) override {
    const auto* in = static_cast<const uint8_t*>(bytes);
    total_ += length;
    if (buffered_ + length > kBuffer) {
      if (buffered_ > 0) {
        const size_t fill = kBuffer - buffered_;
        memcpy(buffer_ + buffered_, in, fill);
        in += fill;
        length -= fill;
        Consume(buffer_, kBuffer / kStripe);
        buffered_ = 0;
      }
      if (length > kBuffer) {
        const size_t stripes = (length - 1) / kStripe;
        Consume(in, stripes);
        in += stripes * kStripe;
        length -= stripes * kStripe;
      }
    }
    if (length > 0) memcpy(buffer_ + buffered_, in, length);
    buffered_ += length;
  }

  Digest Finish() override {
    Halves halves = total_ <= 3     ? OfUpTo3(buffer_, total_)
                    : total_ <= 8   ? Of4To8(buffer_, total_)
                    : total_ <= 16  ? Of9To16(buffer_, total_)
                    : total_ <= 240 ? Of17To240(buffer_, total_)
                                    : OfStripes();
    // The canonical form has the higher half first, and the highest byte of each.
    const uint64_t words[2] = {__builtin_bswap64(halves.high), __builtin_bswap64(halves.low)};
    Digest digest;
    digest.kind = DigestKind::kXxh3;
    memcpy(digest.bytes.data(), words, sizeof words);
    return digest;
  }

 private:
  static constexpr size_t kBuffer = 256;

  void Consume(const uint8_t* in, size_t stripes) {
    memcpy(before_, in + (stripes - 1) * kStripe, kStripe);
    while (stripes > 0) {
      const size_t some = std::min(stripes, kStripesOfBlock - in_block_);
      accumulate_(sums_, in, kSecret + 8 * in_block_, some);
      in += some * kStripe;
      stripes -= some;
      in_block_ += some;
      if (in_block_ < kStripesOfBlock) continue;
      in_block_ = 0;
      for (size_t i = 0; i < 8; ++i)
        sums_[i] = (sums_[i] ^ sums_[i] >> 47 ^ Secret64(kSecretBytes - kStripe + 8 * i)) * kPrime32_1;
    }
  }

  Halves OfStripes() {
    uint8_t last[kStripe];  // the last 64 bytes, of which some may have been consumed
    const size_t kept = std::min(buffered_, kStripe);
    memcpy(last + kStripe - kept, buffer_ + buffered_ - kept, kept);
    memcpy(last, before_ + kept, kStripe - kept);
    if (buffered_ > kStripe) Consume(buffer_, (buffered_ - 1) / kStripe);
    accumulate_(sums_, last, kSecret + kSecretBytes - 71, 1);
    return {Merge(total_ * kPrime64_1, 11), Merge(~(total_ * kPrime64_2), kSecretBytes - 75)};
  }

  uint64_t Merge(uint64_t result, size_t secret) const {
    for (size_t i = 0; i < 8; i += 2)
      result += Folded(sums_[i] ^ Secret64(secret + 8 * i), sums_[i + 1] ^ Secret64(secret + 8 * i + 8));
    return Avalanche(result);
  }

  const Accumulate accumulate_;
  uint64_t sums_[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
  uint64_t total_ = 0;
  size_t in_block_ = 0;  // stripes
  size_t buffered_ = 0;
  uint8_t buffer_[kBuffer];
  uint8_t before_[kStripe];  // the last stripe that was consumed
};

}  // namespace

std::unique_ptr<Digester> NewXxh3() {
  static const Accumulate best = Best();
  return std::make_unique<Xxh3>(best);
}

std::unique_ptr<Digester> NewPortableXxh3() { return std::make_unique<Xxh3>(AccumulatePortably); }

}  // namespace fst
