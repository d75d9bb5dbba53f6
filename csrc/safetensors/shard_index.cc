#include "safetensors/shard_index.h"

#include <cstdlib>
#include <map>
#include <string_view>

#include "safetensors/header.h"
#include "safetensors/json.h"

namespace fst {
namespace {

class IndexText {
 public:
  IndexText(const char* text, size_t length, ShardIndex* out) : scanner_(text, length), index_(*out) {}

  bool Parse() {
    if (scanner_.Peek() != '{') return scanner_.Fail("expected an object with \"weight_map\"");
    JsonKeys keys;
    bool scanned = scanner_.Object([&](std::string_view key) {
      if (!keys.Insert(key)) return scanner_.FailDuplicate(key);
      if (key == "weight_map") return ScanWeightMap();
      if (key == "metadata" && scanner_.Peek() == '{') return ScanMetadata();
      return scanner_.Skip(1);
    });
    if (!scanned || !scanner_.End()) return false;
    return keys.Contains("weight_map") || scanner_.Fail("there is no object \"weight_map\"");
  }

  const JsonScanner& scanner() const { return scanner_; }
  const std::string& tensor() const { return tensor_; }

 private:
  bool ScanWeightMap() {
    if (scanner_.Peek() != '{') return scanner_.Fail("\"weight_map\" must be an object");
    JsonKeys tensors;
    std::map<std::string, uint32_t, std::less<>> shards;
    bool scanned = scanner_.Object([&](std::string_view key) {
      tensor_ = key;
      if (!tensors.Insert(key)) return scanner_.FailDuplicate(key);
      index_.names += key;
      index_.name_lengths.push_back(static_cast<uint32_t>(key.size()));
      if (scanner_.Peek() != '"') return scanner_.Fail("a tensor's file must be a string");
      std::string_view shard;
      if (!scanner_.String(&shard)) return false;
      auto found = shards.find(shard);
      if (found == shards.end()) {
        found = shards.emplace(shard, static_cast<uint32_t>(index_.shards.size())).first;
        index_.shards.emplace_back(shard);
      }
      index_.shard_of.push_back(found->second);
      return true;
    });
    if (scanned) tensor_.clear();
    return scanned;
  }

  bool ScanMetadata() {
    JsonKeys keys;
    return scanner_.Object([&](std::string_view key) {
      if (!keys.Insert(key)) return scanner_.FailDuplicate(key);
      if (key != "total_size" || !scanner_.AtNumber()) return scanner_.Skip(2);
      std::string_view number;
      if (!scanner_.Number(&number)) return false;
      index_.total_size = strtod(std::string(number).c_str(), nullptr);
      return true;
    });
  }

  JsonScanner scanner_;
  ShardIndex& index_;
  std::string tensor_;  // whose file is being scanned
};

}  // namespace

Status ParseShardIndex(const uint8_t* bytes, size_t length, const std::string& path, ShardIndex* out) {
  const char* text = reinterpret_cast<const char*>(bytes);
  auto invalid = [&](const std::string& found, size_t at, const std::string& tensor = "") {
    return Status(Code::INVALID_INDEX, Format("%s: expected {\"weight_map\": {tensor: file, ...}}, at byte %zu: %s",
                                              path.c_str(), at, found.c_str()))
        .At(path, tensor, static_cast<int64_t>(at));
  };
  if (length > UINT32_MAX) return invalid("more than 4 GiB", 0);
  const size_t broken = FindInvalidUtf8(text, length);
  if (broken < length) return invalid("no UTF-8", broken);
  IndexText parsed(text, length, out);
  if (parsed.Parse()) return Status::Ok();
  const JsonScanner& scanner = parsed.scanner();
  if (scanner.error() == JsonScanner::Error::kDuplicateKey) {
    const std::string& key = scanner.duplicate_key();
    return invalid("key " + QuoteName(key) + " is there already; keys must be unique in their object",
                   scanner.position(), parsed.tensor());
  }
  const std::string where = parsed.tensor().empty() ? "" : "tensor " + QuoteName(parsed.tensor()) + ": ";
  return invalid(where + scanner.what(), scanner.position(), parsed.tensor());
}

}  // namespace fst
