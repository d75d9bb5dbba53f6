// Host memory that was freed a moment ago, for what is allocated next: clearing fresh pages costs as much as reading
// into them. A consumer that disposes tensors while a load goes on, and a load after a load, use the same pages again.
// Any thread.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace fst {

// As AllocateHost (host_memory.h), but of what Recycle keeps where that has a piece long enough; it holds what was
// there before. Where it has none, as much of it as is allocated goes back to the system first: what is in use and what
// is kept are together never more than was in use at one time.
Status AllocateRecycled(size_t bytes, void** out);

// Keeps memory of either function, `bytes` as given to it, until nothing was kept or taken for half a second. False,
// and the memory is still the caller's, where an eighth of the machine's memory is kept already, the block is smaller
// than 2 MiB (malloc keeps those), or no thread can be started. Takes microseconds.
bool Recycle(void* address, size_t bytes);

// Gives back to the system what is kept.
void DropRecycled();

// What is kept now.
uint64_t RecycledBytes();

}  // namespace fst
