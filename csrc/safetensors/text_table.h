// A table in which JavaScript finds a text's number among many that were packed one after the other: to fill a Map with
// a million names would hold the event loop, each time that it grows.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fst {

// Fewer texts get no table: to look at them one after the other, or to make a Map of them, takes no time.
constexpr size_t kTextsWithoutTable = 1024;

// Of valid UTF-8, over the UTF-16 units that JavaScript has of it. src/base/text-table.ts hashText is the same.
uint32_t HashText(std::string_view text, uint32_t seed);

// The seed of this process: a secret, so that nobody can write names that all meet in one slot.
uint32_t TextSeed();

// Slots, as many as a power of two: the text of hash h is in slot h or the next one after it, around the end, that
// holds it: 1 + its number, 0 for none. Texts differ from each other. Empty for few texts, and where many meet in one
// place.
std::vector<uint32_t> TextSlots(const std::vector<std::string_view>& texts, uint32_t seed);

}  // namespace fst
