#include "base/digest.h"

#include <cstring>

namespace fst {
namespace {

struct Name {
  DigestKind kind;
  std::string_view prefix;
};
constexpr Name kNames[] = {{DigestKind::kXxh3, "xxh3-128:"}, {DigestKind::kSha256, "sha256:"}};

int ValueOf(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const char lower = static_cast<char>(digit | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

}  // namespace

size_t SizeOf(DigestKind kind) { return kind == DigestKind::kNone ? 0 : kind == DigestKind::kXxh3 ? 16 : 32; }

std::string DigestText(const Digest& digest) {
  std::string text;
  for (const Name& name : kNames)
    if (name.kind == digest.kind) text = name.prefix;
  for (size_t i = 0; i < SizeOf(digest.kind); ++i) {
    text += "0123456789abcdef"[digest.bytes[i] >> 4];
    text += "0123456789abcdef"[digest.bytes[i] & 15];
  }
  return text;
}

bool ParseDigest(std::string_view text, Digest* out) {
  for (const auto& [kind, prefix] : kNames) {
    if (text.substr(0, prefix.size()) != prefix) continue;
    const std::string_view digits = text.substr(prefix.size());
    if (digits.size() != 2 * SizeOf(kind)) return false;
    *out = {};
    out->kind = kind;
    for (size_t i = 0; i < digits.size(); ++i) {
      const int value = ValueOf(digits[i]);
      if (value < 0) return false;
      out->bytes[i / 2] = static_cast<uint8_t>(out->bytes[i / 2] << 4 | value);
    }
    return true;
  }
  return false;
}

Status DigestsOf(const uint8_t* kinds, size_t count, const uint8_t* bytes, size_t length, std::vector<Digest>* out) {
  Status wrong(Code::INVALID_ARGUMENT, "the digests are not packed as they have to be");
  if (length != count * Digest::kMostBytes) return wrong;
  out->resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (kinds[i] > static_cast<uint8_t>(DigestKind::kSha256)) return wrong;
    (*out)[i].kind = static_cast<DigestKind>(kinds[i]);
    memcpy((*out)[i].bytes.data(), bytes + i * Digest::kMostBytes, SizeOf((*out)[i].kind));
  }
  return Status::Ok();
}

std::unique_ptr<Digester> Digester::New(DigestKind kind) { return kind == DigestKind::kXxh3 ? NewXxh3() : NewSha256(); }

Digest DigestOf(DigestKind kind, const void* bytes, size_t length) {
  auto digester = Digester::New(kind);
  digester->Update(bytes, length);
  return digester->Finish();
}

Status DigestMismatch(const std::string& path, uint64_t offset, uint64_t length, const Digest& expected,
                      const Digest& found) {
  return Status(
             Code::CHECKSUM_MISMATCH,
             Format("%s: expected %s of the %llu bytes from byte %llu on, found %s: the file was damaged, or changed "
                    "after its digests were made; get it again, or make them anew if it is right",
                    path.c_str(), DigestText(expected).c_str(), static_cast<unsigned long long>(length),
                    static_cast<unsigned long long>(offset), DigestText(found).c_str()))
      .At(path, {}, static_cast<int64_t>(offset));
}

}  // namespace fst
