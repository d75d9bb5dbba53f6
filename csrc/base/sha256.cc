// SHA-256 (FIPS 180-4): of the OpenSSL in Node's binary, which uses the processor's instructions, or portable.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "base/digest.h"

namespace fst {
namespace {

// The functions below the EVP interface: they keep no state outside of their context, so that they can run while exit()
// cleans OpenSSL up. BoringSSL, in Electron, has the same ones.
struct OpenSsl {
  int (*init)(void* context);
  int (*update)(void* context, const void* bytes, size_t length);
  int (*final)(unsigned char* digest, void* context);

  bool complete() const { return init != nullptr && update != nullptr && final != nullptr; }
};

template <class Function>
void Look(const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

const OpenSsl& FindOpenSsl() {
  static const OpenSsl found = [] {
    OpenSsl library;
    Look("SHA256_Init", &library.init);
    Look("SHA256_Update", &library.update);
    Look("SHA256_Final", &library.final);
    return library;
  }();
  return found;
}

class OpenSslSha256 : public Digester {
 public:
  explicit OpenSslSha256(const OpenSsl& library) : library_(library) { library_.init(context_); }
  void Update(const void* bytes, size_t length) override { library_.update(context_, bytes, length); }
  Digest Finish() override {
    Digest digest;
    digest.kind = DigestKind::kSha256;
    library_.final(digest.bytes.data(), context_);
    return digest;
  }

 private:
  const OpenSsl& library_;
  alignas(16) unsigned char context_[256];  // SHA256_CTX has 112 bytes
};

constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,  //
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,  //
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,  //
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,  //
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,  //
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,  //
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,  //
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t Rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

class PortableSha256 : public Digester {
 public:
  void Update(const void* bytes, size_t length) override {
    const auto* in = static_cast<const uint8_t*>(bytes);
    size_t used = total_ % kBlock;
    total_ += length;
    while (length > 0) {
      if (used == 0 && length >= kBlock) {
        Compress(in);
        in += kBlock;
        length -= kBlock;
        continue;
      }
      const size_t some = std::min(kBlock - used, length);
      memcpy(block_ + used, in, some);
      in += some;
      length -= some;
      used += some;
      if (used < kBlock) return;
      Compress(block_);
      used = 0;
    }
  }

  Digest Finish() override {
    const uint64_t bits = __builtin_bswap64(total_ * 8);
    static constexpr uint8_t kPadding[kBlock] = {0x80};
    Update(kPadding, 1 + (kBlock + kBlock - 1 - 8 - total_ % kBlock) % kBlock);
    Update(&bits, sizeof bits);
    Digest digest;
    digest.kind = DigestKind::kSha256;
    for (size_t i = 0; i < 8; ++i) {
      const uint32_t word = __builtin_bswap32(state_[i]);
      memcpy(digest.bytes.data() + 4 * i, &word, sizeof word);
    }
    return digest;
  }

 private:
  static constexpr size_t kBlock = 64;

  void Compress(const uint8_t* block) {
    uint32_t w[64];
    for (size_t i = 0; i < 16; ++i) {
      memcpy(&w[i], block + 4 * i, 4);
      w[i] = __builtin_bswap32(w[i]);
    }
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (Rotated(a, 7) ^ Rotated(a, 18) ^ a >> 3) + w[i - 7] +
             (Rotated(b, 17) ^ Rotated(b, 19) ^ b >> 10);
    }
    uint32_t a = state_[0], b = state_[1], c = state_[2], d = state_[3];
    uint32_t e = state_[4], f = state_[5], g = state_[6], h = state_[7];
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t one =
          h + (Rotated(e, 6) ^ Rotated(e, 11) ^ Rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
      const uint32_t two = (Rotated(a, 2) ^ Rotated(a, 13) ^ Rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + one;
      d = c;
      c = b;
      b = a;
      a = one + two;
    }
    const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) state_[i] += sums[i];
  }

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint64_t total_ = 0;
  uint8_t block_[kBlock];
};

}  // namespace

std::unique_ptr<Digester> NewSha256() {
  const OpenSsl& library = FindOpenSsl();
  if (library.complete()) return std::make_unique<OpenSslSha256>(library);
  return NewPortableSha256();
}

std::unique_ptr<Digester> NewPortableSha256() { return std::make_unique<PortableSha256>(); }

}  // namespace fst
