#include "transfer/chunker.h"

#include <algorithm>

namespace fst {
namespace {

constexpr size_t kPartsOfDirectRead = 1024;  // IOV_MAX
constexpr size_t kPartsOfSlot = 4096;

uint64_t Down(uint64_t value, uint64_t alignment) { return value / alignment * alignment; }
uint64_t Up(uint64_t value, uint64_t alignment) { return Down(value + alignment - 1, alignment); }

// Bytes from the cursor on that follow each other in file and memory, across tensors; counted up to `enough`.
uint64_t RunLength(const Plan& plan, Cursor cursor, size_t end, uint64_t enough) {
  const PlanItem& first = plan.items[cursor.item];
  uint64_t length = first.length - cursor.done;
  for (size_t i = cursor.item + 1; i < end && length < enough; ++i) {
    const PlanItem& item = plan.items[i];
    if (item.length == 0) continue;
    const uint64_t from = first.offset + cursor.done + length, to = first.destination + cursor.done + length;
    if (item.file != first.file || item.allocation != first.allocation || item.offset != from || item.destination != to)
      break;
    length += item.length;
  }
  return length;
}

}  // namespace

Chunk NextChunk(const Plan& plan, const ChunkRules& rules, Cursor cursor, size_t end, uint64_t allocation_address) {
  const ReaderNeeds& needs = rules.needs;
  const PlanItem& first = plan.items[cursor.item];
  const uint64_t alignment = std::max({needs.offset_alignment, needs.length_alignment, needs.memory_alignment});
  const uint64_t start = first.offset + cursor.done;

  Chunk chunk;
  chunk.direct = rules.direct;
  // Reads end at multiples of the chunk's length: a store that cuts files into chunks then serves each from one place.
  uint64_t limit = Down(start, rules.chunk) + rules.chunk;
  if (needs.boundary > 0) limit = std::min(limit, Down(start, needs.boundary) + needs.boundary);
  if (chunk.direct && alignment > 1) {
    uint64_t address = allocation_address + first.destination + cursor.done;
    const uint64_t left = RunLength(plan, cursor, end, rules.chunk + alignment);
    bool congruent = start % alignment == address % alignment;
    if (congruent && start % alignment == 0 && left >= alignment) {
      limit = std::min(limit, start + Down(left, alignment));
    } else {
      chunk.direct = false;
      // Only the edge of a congruent run goes through a slot: its middle can go straight.
      if (congruent && left > alignment) limit = std::min(limit, Up(start, alignment));
    }
  }

  const size_t most_parts = chunk.direct ? kPartsOfDirectRead : kPartsOfSlot;
  const bool one_piece = chunk.direct && (alignment > 1 || !needs.scatters);
  uint64_t gap = chunk.direct ? 0 : rules.largest_gap;
  uint64_t stop = start;
  while (cursor.item < end && chunk.parts.size() < most_parts) {
    const PlanItem& item = plan.items[cursor.item];
    if (item.length == 0) {  // complete as soon as the cursor passes it
      cursor = {cursor.item + 1, 0};
      continue;
    }
    uint64_t from = item.offset + cursor.done;
    // A hole wider than the gap, an overlap or a step back begin a new read.
    if (item.file != first.file || from < stop || from - stop > gap || from >= limit) break;
    if (chunk.direct && item.allocation != first.allocation) break;
    if (one_piece && item.destination + cursor.done != first.destination + (from - first.offset)) break;
    uint64_t length = std::min(item.length - cursor.done, limit - from);
    chunk.parts.push_back({static_cast<uint32_t>(cursor.item), from, item.destination + cursor.done, length});
    stop = from + length;
    cursor.done += length;
    if (cursor.done < item.length) break;
    cursor = {cursor.item + 1, 0};
  }

  chunk.offset = Down(start, needs.offset_alignment);
  chunk.wanted = stop - chunk.offset;
  chunk.length = Up(chunk.wanted, needs.length_alignment);
  chunk.next = cursor;
  return chunk;
}

}  // namespace fst
