// A checked header as JavaScript gets it: arrays in one block of memory, made off the event loop, which takes it over
// without a copy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "safetensors/header.h"

namespace fst {

// From so many bytes on texts are handed over as bytes: to make a string of them would hold the event loop.
constexpr size_t kLongTexts = 64 << 10;

struct PackedHeader {
  struct Array {
    size_t offset = 0;  // bytes from the block's begin
    size_t length = 0;  // elements
  };

  // The block begins with so many numbers (double): headerLength, sizeBytes, dataStart, trailingBytes, tensorCount,
  // hasSums, textSeed, hasIdentity; offset and length of each array, in the order of below; and the file's identity
  // (uint64_t: dev, ino, size, mtimeNs), to be filled in by who has it. src/safetensors/metadata.ts reads them.
  static constexpr size_t kHasIdentity = 7, kArrays = 8, kIdentity = kArrays + 2 * 11, kNumbers = kIdentity + 4;

  uint64_t header_length = 0, size_bytes = 0, data_start = 0, trailing_bytes = 0;  // as in Header
  bool has_sums = false;     // digests of tensors are in a file beside it, or in __metadata__
  size_t count = 0;          // of tensors
  Array begins, ends, dims;  // double
  // uint32_t. Ends of texts are in bytes where those are in the block, else in UTF-16 units.
  Array rank_ends, name_ends, metadata_ends, name_slots, metadata_slots;
  Array dtypes;           // uint8_t
  Array names, metadata;  // long texts, UTF-8; else empty, and the texts are these:
  std::string short_names, short_metadata;
  std::unique_ptr<uint8_t[]> block;
  size_t size = 0;  // of the block
};

// Takes what it needs out of `header`. OUT_OF_HOST_MEMORY. Any thread.
Status PackHeader(Header header, PackedHeader* out);

// Where each of several texts ends, one after the other, in UTF-16 units; `lengths` are in bytes of UTF-8.
void TextEnds(const std::string& texts, const uint32_t* lengths, size_t count, uint32_t* ends);

// Whether all bytes are ASCII.
bool IsAscii(const std::string& text);

}  // namespace fst
