// Reads from a 3FS mount through its user-space I/O (USRBIO): a ring, and staging slots in an iov that the daemon
// shares.
#pragma once
#include <memory>
#include <string>

#include "reader/reader.h"
#include "reader/usrbio/usrbio_reservation.h"

namespace fst {

struct UsrbioReaderOptions {
  std::string mount_point;  // of every file that is opened
  size_t buffer_bytes = 0;  // of the shared memory, cut into slots; 0: what was measured to be fastest
  size_t chunk = 0;         // bytes per read; 0: what was measured to be fastest
  int entries = 0;          // of the ring, at least 4 per read in flight; 0: exactly that
  // How the daemon takes jobs from the ring: at most -n reads per job; 0: all that are queued. A positive n counts as
  // -n, since jobs of exactly n reads would leave a remainder waiting. 3FS completes a job after its slowest read.
  int io_depth = -1;
  bool numa = true;          // shared memory near the device
  uint64_t block_bytes = 0;  // of the files in the mount (st_blksize): reads do not cross them needlessly; 0: unknown
  std::shared_ptr<usrbio::ShmReservation> pages;  // of the first buffer, or null
};

// Bytes of the buffer that a reader has by itself: an engine that converts, or has limits of its own, takes others.
size_t UsrbioBufferBytes(const UsrbioReaderOptions& options);

// Iov and ring are those of a former reader (usrbio_pool.h) or made when the first read needs them, and again when the
// daemon has lost them: reads in flight are then repeated, into new memory. When the daemon is dead, all reads in
// flight complete with THREEFS_DISCONNECTED, and the next read tries again.
std::unique_ptr<Reader> NewUsrbioReader(const UsrbioReaderOptions& options);

}  // namespace fst
