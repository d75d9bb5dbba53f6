// model.safetensors.index.json: which file has which tensor. Like header.h a trust boundary: anybody may have written
// it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst {

struct ShardIndex {
  std::string names;                   // all tensors' names, UTF-8
  std::vector<uint32_t> name_lengths;  // by tensor: bytes
  std::vector<uint32_t> shard_of;      // by tensor: index into shards
  std::vector<std::string> shards;     // as they are spelled, each once
  double total_size = -1;              // of the metadata; -1 when it is absent or not a number
};

// Reads {"weight_map": {tensor: file, ...}, "metadata": {"total_size": number, ...}, ...}; other members are skipped.
// INVALID_INDEX for other JSON, equal keys in one object and more than 4 GiB; `path` is for messages. Names of files
// are not checked. On failure *out is unspecified. Any thread.
Status ParseShardIndex(const uint8_t* bytes, size_t length, const std::string& path, ShardIndex* out);

}  // namespace fst
