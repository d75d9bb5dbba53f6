// Cuts a plan into chunks, which are the reads: contiguous tensors are merged, and so are short runs of tensors' parts
// with the holes between them, or without where the reader skips these. No read crosses a boundary of the reader, and
// each goes either directly into tensor memory or through a slot. Pure functions.
#pragma once
#include <cstdint>
#include <vector>

#include "reader/reader.h"
#include "transfer/plan.h"

namespace fst {

struct Cursor {
  size_t item = 0;
  uint64_t done = 0;  // bytes of the item that earlier chunks cover; less than its length unless that is 0
};

// A piece of one tensor inside a chunk: bytes that are together in the file, or runs whose holes the reader skips.
struct ChunkPart {
  uint32_t item;
  uint64_t file_offset;
  uint64_t destination;  // in the item's allocation
  uint64_t length;       // > 0, of the file, without holes; whole elements where the item converts
  uint64_t source = 0;   // through a slot: where it is read to in the slot
  uint64_t output = 0;   // with outputs_in_slot: where its converted elements go in the slot
  // With `runs` > 1 its bytes are so many runs of equal length, `stride` bytes from one's first byte to the next one's.
  uint64_t runs = 1, stride = 0;
  bool picked = false;  // out of reads that have their holes as well, however many they are

  uint64_t run() const { return length / runs; }
  // Behind its last byte in the file.
  uint64_t file_end() const { return file_offset + (runs - 1) * stride + run(); }
};

struct Chunk {
  bool direct = false;    // into tensor memory; otherwise through a slot
  bool converts = false;  // a part's item converts
  uint64_t offset = 0;    // of the read in the file, aligned as the reader needs
  uint64_t length = 0;    // of the read, aligned as the reader needs
  uint64_t required = 0;  // bytes up to the end of the last part
  uint64_t skipped = 0;   // of them, those in holes that go nowhere, also where the reader picks runs out of them
  uint64_t picked = 0;    // of these, those that the reader reads all the same
  std::vector<ChunkPart> parts;  // in the order of the file
  Cursor next;                   // where the next chunk begins
};

struct ChunkRules {
  ReaderNeeds needs;
  bool direct;                       // the reader may fill this device's memory
  uint64_t chunk_bytes;              // the longest read, except for alignment in a slot
  uint64_t largest_gap;              // unneeded bytes between two parts that a read through a slot may include
  uint64_t slot_bytes = UINT64_MAX;  // at least 4096
  bool outputs_in_slot = false;      // converted elements go behind the read in its slot, not into tensor memory
};

// The chunk at `cursor`, whose item must have bytes left. `end` is one past the last item that may be started.
// `allocation_address` (of that item's allocation) serves alignment only and may be 0 if rules.direct is false.
Chunk NextChunk(const Plan& plan, const ChunkRules& rules, Cursor cursor, size_t end, uint64_t allocation_address);

}  // namespace fst
