// Digests of bytes that come piece by piece: XXH3 with 128 bits, as `xxhsum -H2` prints it, and SHA-256.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace fst {

// src/base/digest.ts has the same numbers.
enum class DigestKind : uint8_t { kNone = 0, kXxh3 = 1, kSha256 = 2 };

// A digest, or none.
struct Digest {
  static constexpr size_t kMostBytes = 32;
  DigestKind kind = DigestKind::kNone;
  std::array<uint8_t, kMostBytes> bytes = {};  // from the first digit on; zeros after the last

  bool operator==(const Digest& other) const { return kind == other.kind && bytes == other.bytes; }
};

// Bytes of a digest: 16 or 32.
size_t SizeOf(DigestKind kind);
// "xxh3-128:" or "sha256:", and hexadecimal digits in lower case.
std::string DigestText(const Digest& digest);
// The other way, of digits in either case; false for any other text.
bool ParseDigest(std::string_view text, Digest* out);

// Of packed arrays, Digest::kMostBytes for each kind. INVALID_ARGUMENT for other kinds and lengths.
Status DigestsOf(const uint8_t* kinds, size_t count, const uint8_t* bytes, size_t length, std::vector<Digest>* out);

// One thread at a time.
class Digester {
 public:
  // Of a kind that is not kNone.
  static std::unique_ptr<Digester> New(DigestKind kind);
  virtual ~Digester() = default;
  virtual void Update(const void* bytes, size_t length) = 0;
  // Of all bytes so far; the last call.
  virtual Digest Finish() = 0;
};

Digest DigestOf(DigestKind kind, const void* bytes, size_t length);

// CHECKSUM_MISMATCH: `length` bytes of a file from `offset` on have the digest `found`.
Status DigestMismatch(const std::string& path, uint64_t offset, uint64_t length, const Digest& expected,
                      const Digest& found);

std::unique_ptr<Digester> NewXxh3();
std::unique_ptr<Digester> NewSha256();

// For tests: the code for any processor, in place of AVX2 and of Node's OpenSSL.
std::unique_ptr<Digester> NewPortableXxh3();
std::unique_ptr<Digester> NewPortableSha256();

}  // namespace fst
