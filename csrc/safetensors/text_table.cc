#include "safetensors/text_table.h"

#include "base/random.h"

namespace fst {
namespace {

constexpr uint32_t kLongestSearch = 512;

uint32_t Step(uint32_t hash, uint32_t unit) { return (hash ^ unit) * 0x9E3779B1U; }

// The code point at `*at`, of valid UTF-8; moves on to the next one.
uint32_t NextCodePoint(const unsigned char** at) {
  const unsigned char* byte = *at;
  const int length = *byte < 0x80 ? 1 : *byte < 0xE0 ? 2 : *byte < 0xF0 ? 3 : 4;
  uint32_t point = length == 1 ? *byte : *byte & (0x7FU >> length);
  for (int i = 1; i < length; ++i) point = point << 6 | (byte[i] & 0x3FU);
  *at += length;
  return point;
}

}  // namespace

uint32_t HashText(std::string_view text, uint32_t seed) {
  uint32_t hash = seed;
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  for (const auto* end = at + text.size(); at < end;) {
    const uint32_t point = NextCodePoint(&at);
    if (point < 0x10000) {
      hash = Step(hash, point);
    } else {
      hash = Step(Step(hash, 0xD800 + ((point - 0x10000) >> 10)), 0xDC00 + ((point - 0x10000) & 0x3FF));
    }
  }
  hash ^= hash >> 16;
  hash *= 0x85EBCA6BU;
  return hash ^ hash >> 13;
}

uint32_t TextSeed() {
  static const uint32_t seed = static_cast<uint32_t>(RandomSecret());
  return seed;
}

std::vector<uint32_t> TextSlots(const std::vector<std::string_view>& texts, uint32_t seed) {
  if (texts.size() <= kTextsWithoutTable || texts.size() > size_t{1} << 29) return {};
  size_t size = 2;
  while (size < texts.size() * 2) size *= 2;
  std::vector<uint32_t> slots(size);
  const size_t mask = size - 1;
  for (size_t i = 0; i < texts.size(); ++i) {
    size_t at = HashText(texts[i], seed) & mask;
    for (uint32_t searched = 0; slots[at] != 0; at = (at + 1) & mask) {
      if (++searched > kLongestSearch) return {};
    }
    slots[at] = static_cast<uint32_t>(i + 1);
  }
  return slots;
}

}  // namespace fst
