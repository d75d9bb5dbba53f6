#include "transfer/chunker.h"

#include <algorithm>

namespace fst {
namespace {

constexpr size_t kPartsOfDirectRead = 1024;  // IOV_MAX
constexpr size_t kPartsOfSlot = 4096;
constexpr size_t kPiecesOfSkippingRead = 2048;
constexpr uint64_t kPickedRun = 16 << 10;  // bytes: a read of its own costs a longer one next to nothing
constexpr uint64_t kOutputAlignment = 64;  // a cache line: no vector store crosses one

uint64_t Down(uint64_t value, uint64_t alignment) { return value / alignment * alignment; }
uint64_t Up(uint64_t value, uint64_t alignment) { return Down(value + alignment - 1, alignment); }

// Bytes: holes beside longer runs are not read, however small they are: a read each costs less than 5 % then.
constexpr uint64_t kLongRun = 64 << 10;
constexpr uint64_t kHolesInLongRuns = 32;  // a hole of this part of the run is read along

// Bytes from the cursor on that are contiguous in file and memory, across tensors; counted up to `enough`.
uint64_t RunLength(const Plan& plan, Cursor cursor, size_t end, uint64_t enough) {
  const PlanItem& first = plan.items[cursor.item];
  uint64_t length = first.Together(cursor.done);
  if (cursor.done + length < first.length) return length;
  const uint64_t start = first.OffsetOf(cursor.done);
  for (size_t i = cursor.item + 1; i < end && length < enough; ++i) {
    const PlanItem& item = plan.items[i];
    if (item.length == 0) continue;
    const uint64_t to = first.destination + cursor.done + length;
    if (item.file != first.file || item.allocation != first.allocation || item.offset != start + length ||
        item.destination != to)
      break;
    length += item.Together(0);
    if (item.strided()) break;
  }
  return length;
}

// Whether the reader picks an item's runs out of larger reads. Those that convert it does not: their bytes are read to
// where they are converted.
bool PicksRuns(const PlanItem& item, const ChunkRules& rules) {
  return rules.needs.skips && item.hole() < rules.needs.picks_holes && item.run <= kPickedRun && !item.converts();
}

// Bytes behind a part of this item that a read may include.
uint64_t GapBehind(const PlanItem& item, const ChunkRules& rules) {
  if (PicksRuns(item, rules)) return 0;
  if (!item.strided() || item.run < kLongRun) return rules.largest_gap;
  return std::min(rules.largest_gap, item.run / kHolesInLongRuns);
}

// The same, of a read: one straight into place includes none.
uint64_t GapBehind(const PlanItem& item, const ChunkRules& rules, const Chunk& chunk) {
  return chunk.direct ? 0 : GapBehind(item, rules);
}

// Whether an item's runs are read along with their holes, where the reader could also fill tensor memory.
bool ReadsHoles(const PlanItem& item, const ChunkRules& rules) { return item.hole() <= GapBehind(item, rules); }

// Whether an item passes through a slot even where the reader can fill tensor memory.
bool NeedsSlot(const PlanItem& item, const ChunkRules& rules) { return item.converts() || ReadsHoles(item, rules); }

// How many runs of an item, from the cursor on, are whole, begin and end below `limit` in the file and have holes that
// are skipped: one part has them all, however short they are. 1: what is at the cursor is a part of its own.
uint64_t RunsTogether(const PlanItem& item, const ChunkRules& rules, const Chunk& chunk, uint64_t done,
                      uint64_t limit) {
  const bool skips = rules.needs.skips && item.strided() && item.hole() > GapBehind(item, rules, chunk);
  if (!skips || item.converts() || chunk.converts || done % item.run != 0) return 1;
  const uint64_t from = item.OffsetOf(done);
  if (limit - from < item.run) return 1;
  return std::min((limit - from - item.run) / item.stride + 1, (item.length - done) / item.run);
}

// How many of `length` bytes that are read to byte `source` of the slot fit in (whole elements if the item converts):
// the slot holds the aligned read and, behind it, the `outputs` bytes that earlier parts convert to and those of this
// part.
uint64_t RoomFor(const PlanItem& item, const ChunkRules& rules, const Chunk& chunk, uint64_t outputs, uint64_t source,
                 uint64_t length) {
  if (!item.converts() && !chunk.converts) return length;
  uint64_t used = source + rules.needs.length_alignment - 1;
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
  const uint64_t start = first.OffsetOf(cursor.done);

  Chunk chunk;
  chunk.direct = rules.direct && !NeedsSlot(first, rules);
  chunk.offset = Down(start, needs.offset_alignment);
  // Reads end at multiples of chunk_bytes, so that a store which stripes files serves each read from one place. An
  // element across such an end belongs to the read that begins there.
  const uint64_t begin = start + (first.converts() ? BytesOf(first.from) - 1 : 0);
  uint64_t limit = Down(begin, rules.chunk_bytes) + rules.chunk_bytes;
  const uint64_t address = allocation_address + first.destination + cursor.done;
  uint64_t room = 0, near = 0;  // of memory from there on: where the read ends in it, for what lies so near
  if (chunk.direct && alignment == 1 && !first.strided()) {
    // Of memory instead, so that no huge page is cleared by one thread and filled by two: 5 % less of the processors.
    limit = start + rules.chunk_bytes;
    room = Down(address, rules.chunk_bytes) + rules.chunk_bytes - address;
    near = rules.chunk_bytes;
  }
  if (needs.boundary > 0) limit = std::min(limit, Down(begin, needs.boundary) + needs.boundary);
  if (chunk.direct && alignment > 1) {
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
  const uint64_t memory_start = first.destination + cursor.done;
  uint64_t gap = 0;  // behind the last part: of a hole that may be read
  uint64_t stop = start, source = start - chunk.offset, outputs = 0;
  size_t pieces = 0;  // of the read, but for parts that follow each other: one behind each hole that is skipped
  while (cursor.item < end && chunk.parts.size() < most_parts && pieces < kPiecesOfSkippingRead) {
    const PlanItem& item = plan.items[cursor.item];
    if (item.length == 0) {  // complete as soon as the cursor passes it
      cursor = {cursor.item + 1, 0};
      continue;
    }
    const uint64_t from = item.OffsetOf(cursor.done);
    // A wider hole, unless the reader skips it, an overlap or a step back in the file begins a new read.
    if (item.file != first.file || from < stop || from >= limit) break;
    const uint64_t hole = from - stop;
    const bool skips = hole > gap;
    if (skips && (!needs.skips || ++pieces == kPiecesOfSkippingRead)) break;
    if (chunk.direct && item.allocation != first.allocation) break;
    if (one_piece && item.destination + cursor.done - memory_start != from - start) break;
    // Where the reader can fill tensor memory, only what has to go through a slot does.
    if (rules.direct && NeedsSlot(item, rules) != NeedsSlot(first, rules)) break;
    if (chunk.converts && PicksRuns(item, rules)) break;
    const uint64_t to = skips ? source : source + hole;
    const uint64_t at = item.destination + cursor.done - memory_start;  // modulo 2^64: far where it lies before
    const bool ends_in_memory = at < near && !item.strided();
    if (ends_in_memory && at >= room) break;
    uint64_t length = std::min(item.Together(cursor.done), limit - from);
    if (ends_in_memory) length = std::min(length, room - at);
    length = RoomFor(item, rules, chunk, outputs, to, length);
    if (length == 0) break;
    const bool whole = length == item.Together(cursor.done);
    const bool picks = PicksRuns(item, rules);  // one piece has any number of runs
    const uint64_t most_runs = picks ? UINT64_MAX : kPiecesOfSkippingRead - pieces;
    const uint64_t runs = std::min(RunsTogether(item, rules, chunk, cursor.done, limit), most_runs);
    length *= runs;
    chunk.parts.push_back(
        {static_cast<uint32_t>(cursor.item), from, item.destination + item.InMemory(cursor.done), length, to, outputs});
    if (skips) chunk.skipped += hole;
    if (runs > 1) {
      ChunkPart& part = chunk.parts.back();
      part.runs = runs;
      part.stride = item.stride;
      part.picked = picks;
      chunk.skipped += (runs - 1) * item.hole();
      if (picks) chunk.picked += (runs - 1) * item.hole();
      pieces += picks ? 1 : runs - 1;
    }
    if (item.converts()) outputs += item.InMemory(length);
    chunk.converts |= item.converts();
    stop = chunk.parts.back().file_end();
    source = to + length;
    gap = GapBehind(item, rules, chunk);
    cursor.done += length;
    if (cursor.done == item.length) {
      cursor = {cursor.item + 1, 0};
      if (plan.apart) gap = 0;
    }
    if (!whole) break;
  }

  chunk.required = stop - chunk.offset;
  chunk.length = Up(chunk.required, needs.length_alignment);
  chunk.next = cursor;
  for (ChunkPart& part : chunk.parts) part.output += Up(chunk.length - chunk.skipped, kOutputAlignment);
  return chunk;
}

}  // namespace fst
