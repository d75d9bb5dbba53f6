// Host memory for weights: huge pages where the size is worth it, because faulting fresh 4 KiB pages is what limits a
// load from the page cache.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace fst {

constexpr size_t kHugePage = size_t{2} << 20;  // from this size on AllocateHost gives pages of their own

// 4096-aligned from 4096 bytes on (2 MiB from 2 MiB on), 256-aligned below. Untouched: the threads that fill it fault
// it. OUT_OF_HOST_MEMORY.
Status AllocateHost(size_t bytes, void** out);
// Faults memory of AllocateHost, several threads at once where there is much of it: one clears 64 MiB in 8 ms.
void TouchHost(void* address, size_t bytes);
void FreeHost(void* address, size_t bytes);

// The most that can still be had: the system's estimate, capped by the limit of the control group that this process
// runs in.
uint64_t AvailableHostBytes();

}  // namespace fst
