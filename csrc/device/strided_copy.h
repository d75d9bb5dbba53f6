// Copies of equally long runs of bytes at regular strides: a slice out of the span that was read, or the columns of
// several tensors beside each other. A few numbers describe any number of runs.
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
  uint64_t run = 0;                                    // bytes that are contiguous on both sides
  uint64_t source_offset = 0, destination_offset = 0;  // of the run at index 0 of every dimension
  std::vector<Dim> dims;                               // outermost first; none: one run

  // OK: run and all counts are > 0, and every run lies within `source_size` and `destination_size` bytes.
  // INVALID_ARGUMENT otherwise.
  Status Validate(uint64_t source_size, uint64_t destination_size) const;
};

// Copies the runs of one dimension, each of `run` bytes, in host memory.
void CopyRow(const StridedCopy::Dim& dim, size_t run, const char* source, char* destination);

// Copies in host memory. `copy` is valid for both sides; neither the two nor the destination's runs overlap.
void CopyRuns(const StridedCopy& copy, const char* source, char* destination);

// The same between two allocations, which may be on a device that the host cannot address: few runs are then copied by
// the device one by one, many through host memory in parts of limited size. Blocks: not for the event loop. The codes
// of Validate and of Device's copies, OUT_OF_HOST_MEMORY.
Status CopyStrided(const StridedCopy& copy, const DeviceBuffer& source, const DeviceBuffer& destination);

}  // namespace fst
