#include "safetensors/sums.h"

#include <cstdlib>
#include <string_view>

#include "safetensors/header.h"
#include "safetensors/json.h"

namespace fst {
namespace {

class SumsText {
 public:
  SumsText(const char* text, size_t length, Sums* out) : scanner_(text, length), sums_(*out) {}

  bool Parse() {
    if (scanner_.Peek() != '{') return scanner_.Fail("expected an object with \"tensors\"");
    JsonKeys keys;
    const bool scanned = scanner_.Object([&](std::string_view key) {
      if (!keys.Insert(key)) return scanner_.FailDuplicate(key);
      if (key == "tensors") return ScanTensors();
      if (key == "header") return ScanDigest(&sums_.header);
      if (key != "size") return scanner_.Skip(1);
      std::string_view number;
      if (!scanner_.AtNumber()) return scanner_.Fail("\"size\" must be a number");
      if (!scanner_.Number(&number)) return false;
      sums_.size = strtod(std::string(number).c_str(), nullptr);
      return true;
    });
    if (!scanned || !scanner_.End()) return false;
    return keys.Contains("tensors") || scanner_.Fail("there is no object \"tensors\"");
  }

  const JsonScanner& scanner() const { return scanner_; }
  const std::string& tensor() const { return tensor_; }

 private:
  bool ScanTensors() {
    if (scanner_.Peek() != '{') return scanner_.Fail("\"tensors\" must be an object");
    JsonKeys tensors;
    const bool scanned = scanner_.Object([&](std::string_view key) {
      tensor_ = key;
      if (!tensors.Insert(key)) return scanner_.FailDuplicate(key);
      sums_.names += key;
      sums_.name_lengths.push_back(static_cast<uint32_t>(key.size()));
      return ScanDigest(&sums_.digests.emplace_back());
    });
    if (scanned) tensor_.clear();
    return scanned;
  }

  bool ScanDigest(Digest* out) {
    constexpr char kExpected[] = "a digest must be \"xxh3-128:\" and 32 hexadecimal digits, or \"sha256:\" and 64";
    std::string_view text;
    if (scanner_.Peek() != '"') return scanner_.Fail(kExpected);
    return scanner_.String(&text) && (ParseDigest(text, out) || scanner_.Fail(kExpected));
  }

  JsonScanner scanner_;
  Sums& sums_;
  std::string tensor_;  // whose digest is being scanned
};

}  // namespace

Status ParseSums(const uint8_t* bytes, size_t length, const std::string& path, Sums* out) {
  const char* text = reinterpret_cast<const char*>(bytes);
  auto invalid = [&](Code code, const std::string& found, size_t at, const std::string& tensor = "") {
    return Status(code,
                  Format("%s: expected {\"tensors\": {name: digest, ...}}, at byte %zu: %s; make the digests anew",
                         path.c_str(), at, found.c_str()))
        .At(path, tensor, static_cast<int64_t>(at));
  };
  const size_t broken = FindInvalidUtf8(text, length);
  if (broken < length) return invalid(Code::CHECKSUM_MISMATCH, "no UTF-8", broken);
  SumsText parsed(text, length, out);
  if (parsed.Parse()) return Status::Ok();
  const JsonScanner& scanner = parsed.scanner();
  if (scanner.error() == JsonScanner::Error::kDuplicateKey) {
    const std::string found = "key " + QuoteName(scanner.duplicate_key()) + " is there already";
    return invalid(Code::DUPLICATE_KEY, found, scanner.position(), parsed.tensor());
  }
  const std::string where = parsed.tensor().empty() ? "" : "tensor " + QuoteName(parsed.tensor()) + ": ";
  return invalid(Code::CHECKSUM_MISMATCH, where + scanner.what(), scanner.position(), parsed.tensor());
}

}  // namespace fst
