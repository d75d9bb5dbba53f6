#include "transfer/chunker.h"

#include <algorithm>

namespace fst {
namespace {

constexpr size_t kPartsOfDirectRead = 1024;  // IOV_MAX
constexpr size_t kPartsOfSlot = 4096;
constexpr uint64_t kOutputAlignment = 64;  // a cache line: no vector store crosses one

uint64_t Down(uint64_t value, uint64_t alignment) { return value / alignment * alignment; }
uint64_t Up(uint64_t value, uint64_t alignment) { return Down(value + alignment - 1, alignment); }

// Bytes from the cursor on that are contiguous in file and memory, across tensors; counted up to `enough`.
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

// How many of the `length` bytes at `from` fit into the slot (whole elements if the item converts): the slot holds the
// aligned read and, behind it, the `outputs` bytes that earlier parts convert to and those of this part.
uint64_t RoomFor(const PlanItem& item, const ChunkRules& rules, const Chunk& chunk, uint64_t outputs, uint64_t from,
                 uint64_t length) {
  if (!item.converts() && !chunk.converts) return length;
  uint64_t used = from - chunk.offset + rules.needs.length_alignment - 1;
  if (rules.outputs_in_slot) used += kOutputAlignment + outputs;
  const uint64_t room = rules.slot_bytes > used ? rules.slot_bytes - used : 0;
  if (!item.converts()) return std::min(length, room);
  const uint64_t element = BytesOf(item.from), output = rules.outputs_in_slot ? BytesOf(item.to) : 0;
  return std::min(length / element, room / (element + output)) * element;
}

}  // namespace

Chunk NextChunk(const Plan& plan, const ChunkRules& rules, Cursor cursor, size_t end, uint64_t allocation_address) {
  const ReaderNeeds& needs = rules.needs;
  const PlanItem& first = plan.items[cursor.item];
  const uint64_t alignment = std::max({needs.offset_alignment, needs.length_alignment, needs.memory_alignment});
  const uint64_t start = first.offset + cursor.done;

  Chunk chunk;
  chunk.direct = rules.direct && !first.converts();
  chunk.offset = Down(start, needs.offset_alignment);
  // Reads end at multiples of chunk_bytes, so that a store which stripes files serves each read from one place. An
  // element across such an end belongs to the read that begins there.
  const uint64_t begin = start + (first.converts() ? BytesOf(first.from) - 1 : 0);
  uint64_t limit = Down(begin, rules.chunk_bytes) + rules.chunk_bytes;
  if (needs.boundary > 0) limit = std::min(limit, Down(begin, needs.boundary) + needs.boundary);
  if (chunk.direct && alignment > 1) {
    uint64_t address = allocation_address + first.destination + cursor.done;
    const uint64_t left = RunLength(plan, cursor, end, rules.chunk_bytes + alignment);
    bool congruent = start % alignment == address % alignment;
    if (congruent && start % alignment == 0 && left >= alignment) {
      limit = std::min(limit, start + Down(left, alignment));
    } else {
      chunk.direct = false;
      // Only the unaligned edge of a congruent run goes through a slot: the next chunk is direct.
      if (congruent && left > alignment) limit = std::min(limit, Up(start, alignment));
    }
  }

  const size_t most_parts = chunk.direct ? kPartsOfDirectRead : kPartsOfSlot;
  const bool one_piece = chunk.direct && (alignment > 1 || !needs.scatters);
  uint64_t gap = chunk.direct ? 0 : rules.largest_gap;
  uint64_t stop = start, outputs = 0;
  while (cursor.item < end && chunk.parts.size() < most_parts) {
    const PlanItem& item = plan.items[cursor.item];
    if (item.length == 0) {  // complete as soon as the cursor passes it
      cursor = {cursor.item + 1, 0};
      continue;
    }
    uint64_t from = item.offset + cursor.done;
    // A wider hole, an overlap or a step back in the file begins a new read.
    if (item.file != first.file || from < stop || from - stop > gap || from >= limit) break;
    if (chunk.direct && item.allocation != first.allocation) break;
    if (one_piece && item.destination + cursor.done != first.destination + (from - first.offset)) break;
    // Where the reader can fill tensor memory, only converted items go through a slot.
    if (rules.direct && item.converts() != first.converts()) break;
    uint64_t length = std::min(item.length - cursor.done, limit - from);
    length = RoomFor(item, rules, chunk, outputs, from, length);
    if (length == 0) break;
    chunk.parts.push_back(
        {static_cast<uint32_t>(cursor.item), from, item.destination + item.InMemory(cursor.done), length, outputs});
    if (item.converts()) outputs += item.InMemory(length);
    chunk.converts |= item.converts();
    stop = from + length;
    cursor.done += length;
    if (cursor.done < item.length) break;
    cursor = {cursor.item + 1, 0};
  }

  chunk.required = stop - chunk.offset;
  chunk.length = Up(chunk.required, needs.length_alignment);
  chunk.next = cursor;
  for (ChunkPart& part : chunk.parts) part.output += Up(chunk.length, kOutputAlignment);
  return chunk;
}

}  // namespace fst
