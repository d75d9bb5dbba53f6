// Reads from a 3FS mount through its user-space I/O (USRBIO): a ring, and slots in memory shared with the daemon.
#pragma once
#include <string>

#include "reader/reader.h"

namespace fst {

struct UsrbioReaderOptions {
  std::string mount_point;  // of every file that is opened
  size_t buffer_bytes = 0;  // of the shared memory, cut into slots; 0: what was measured to be fastest
  size_t chunk = 0;         // bytes a read; 0: what was measured to be fastest
  int entries = 0;          // of the ring, at least 4 for each read in flight; 0: as many as that
  // How the daemon cuts jobs from the ring: at most -n reads a job, 0 all that are queued. A positive n is taken as -n:
  // exact batches would leave a remainder hanging. 3FS completes a job after its slowest read.
  int io_depth = -1;
  bool numa = true;          // shared memory near the device
  uint64_t block_bytes = 0;  // of the files in the mount (st_blksize): reads do not cross them needlessly; 0: unknown
};

// Slots and ring are made when the first read needs them, and made anew when the daemon has forgotten them: reads are
// repeated then, into new memory. When the daemon is dead, everything in flight is THREEFS_DISCONNECTED and the next
// read tries again.
std::unique_ptr<Reader> NewUsrbioReader(const UsrbioReaderOptions& options);

}  // namespace fst
