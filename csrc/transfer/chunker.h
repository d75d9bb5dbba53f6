// Cuts a plan into reads: contiguous tensors are merged, no read crosses a boundary of the reader, and each is either
// straight into place or through a slot.
#pragma once
#include <cstdint>
#include <vector>

#include "reader/reader.h"
#include "transfer/plan.h"

namespace fst {

struct Cursor {
  size_t item = 0;
  uint64_t done = 0;  // bytes of the item that earlier chunks cover, < its length unless that is 0
};

// A piece of one tensor inside a chunk.
struct ChunkPart {
  uint32_t item;
  uint64_t file_offset;
  uint64_t destination;  // in the item's allocation
  uint64_t length;       // > 0, in the file; whole elements where the item converts
  uint64_t output = 0;   // where its converted elements lie in the slot, with outputs_in_slot
};

struct Chunk {
  bool direct = false;           // straight into tensor memory; otherwise through a slot
  bool converts = false;         // a part's item does
  uint64_t offset = 0;           // of the read in the file, aligned as the reader needs
  uint64_t length = 0;           // of the read, aligned as the reader needs
  uint64_t required = 0;         // bytes up to the last byte of the last part
  std::vector<ChunkPart> parts;  // in the order of the file
  Cursor next;                   // where the next chunk begins
};

struct ChunkRules {
  ReaderNeeds needs;
  bool direct;                       // the reader may fill this device's memory
  uint64_t chunk;                    // bytes of a read, and at most of a slot less its alignment
  uint64_t largest_gap;              // unwanted bytes between two tensors that a slot read may carry along
  uint64_t slot_bytes = UINT64_MAX;  // at least 4096
  bool outputs_in_slot =
      false;  // converted elements lie behind the read in its slot; otherwise they go straight into place
};

// The chunk at `cursor`, whose item must have bytes left. `end` is one past the last item that may be started.
// Addresses of allocations are needed for alignment only and may be 0 while nothing is direct.
Chunk NextChunk(const Plan& plan, const ChunkRules& rules, Cursor cursor, size_t end, uint64_t allocation_address);

}  // namespace fst
