// Copying runs of bytes that lie at regular distances: a slice out of the span that was read, the columns of several
// tensors beside each other. Described by a few numbers however many runs there are.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/device.h"

namespace fst {

struct StridedCopy {
  struct Dim {
    uint64_t count;
    int64_t source_stride, destination_stride;  // bytes from one index to the next
  };
  uint64_t run = 0;                                    // bytes that lie together on both sides
  uint64_t source_offset = 0, destination_offset = 0;  // of the run at index 0 of every dimension
  std::vector<Dim> dims;                               // outermost first; none: one run

  // OK: every run lies in `source_size` and `destination_size` bytes, run > 0 and all counts are. INVALID_ARGUMENT
  // otherwise.
  Status Validate(uint64_t source_size, uint64_t destination_size) const;
};

// `copy` is valid for both. Memory must not overlap, nor may runs in the destination.
void CopyRuns(const StridedCopy& copy, const char* source, char* destination);

// The same between two allocations; blocks, not for the event loop. Few runs are copied by the device one by one; many
// on the host, through parts of limited size where it cannot address the device's memory. The codes of Validate and of
// Device's copies, OUT_OF_HOST_MEMORY.
Status CopyStrided(const StridedCopy& copy, const DeviceBuffer& source, const DeviceBuffer& destination);

}  // namespace fst
