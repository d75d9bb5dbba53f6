// Host memory for weights. Large blocks use huge pages: faulting 4 KiB pages is what limits a load from the page cache.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace fst {

constexpr size_t kHugePage = size_t{2} << 20;  // from this size on AllocateHost makes a mapping of its own

// How long that is.
constexpr size_t MappedBytes(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// Aligned to 2 MiB from 2 MiB on, to 4096 from 4096 bytes on, to 256 below. Not touched: the threads that fill it also
// fault it in. OUT_OF_HOST_MEMORY.
Status AllocateHost(size_t bytes, void** out);
// Faults in memory of AllocateHost; much of it on several threads, since one clears 64 MiB in 8 ms. Blocks.
void TouchHost(void* address, size_t bytes);
// `bytes` as given to AllocateHost.
void FreeHost(void* address, size_t bytes);

// How much can still be allocated: the kernel's estimate, or the limit of this process's control group if that is less.
uint64_t AvailableHostBytes();
// The machine's memory, or the limit of this process's control group if that is less; used or not.
uint64_t TotalHostBytes();

}  // namespace fst
