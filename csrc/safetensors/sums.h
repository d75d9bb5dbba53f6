// model.safetensors.sums.json, and the same text in a header's `__metadata__`: digests of tensors. Like header.h a
// trust boundary: anybody may have written it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"

namespace fst {

// src/safetensors/sums.ts has the same texts.
constexpr char kSumsKey[] = "fastsafetensors.sums";  // of __metadata__
constexpr char kSumsSuffix[] = ".sums.json";         // of the path of a file, for that of its digests

struct Sums {
  std::string names;                   // of all tensors, UTF-8
  std::vector<uint32_t> name_lengths;  // by tensor: bytes
  std::vector<Digest> digests;         // by tensor
  Digest header;                       // of the file's bytes before the data; none where it is not said
  double size = -1;                    // bytes of the file; -1 where it is not said
};

// Reads {"tensors": {name: digest, ...}, "header": digest, "size": number, ...}; other members are skipped. What is not
// that is CHECKSUM_MISMATCH, equal keys in one object are DUPLICATE_KEY; `path` is for messages. On failure *out is
// unspecified. Any thread.
Status ParseSums(const uint8_t* bytes, size_t length, const std::string& path, Sums* out);

}  // namespace fst
