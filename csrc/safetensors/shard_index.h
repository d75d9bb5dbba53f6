// model.safetensors.index.json: which file has which tensor. As header.h a trust boundary: bytes that anybody may have
// written.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst {

struct ShardIndex {
  std::string names;                   // of all tensors, one after the other, UTF-8
  std::vector<uint32_t> name_lengths;  // bytes, by tensor
  std::vector<uint32_t> shard_of;      // by tensor: an index into shards
  std::vector<std::string> shards;     // as they are spelled, each once
  double total_size = -1;              // of its metadata; -1 when it is none or no number
};

// Reads {"weight_map": {tensor: file, ...}, "metadata": {"total_size": number, ...}, ...}; other members are skipped.
// INVALID_INDEX for what is no such JSON, has equal keys in one object or is longer than 4 GiB; `path` is for messages.
// Names of files are not looked at. On failure *out is unspecified. Any thread.
Status ParseShardIndex(const uint8_t* bytes, size_t length, const std::string& path, ShardIndex* out);

}  // namespace fst
