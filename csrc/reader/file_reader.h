// Buffered reads scatter straight into place (preadv), by blocking calls on worker threads. Direct ones (O_DIRECT) go
// through aligned slots: by io_uring where the kernel allows it and the file lies on a disk of this machine, else by
// threads as well.
#pragma once
#include "reader/reader.h"
#include "reader/ring_reads.h"

namespace fst {

struct FileReaderOptions {
  int threads = 0;          // 0: a number that suits this machine
  bool direct = false;      // O_DIRECT; a file system that refuses it is read buffered, and TakeFallbacks says so
  bool drop_cache = false;  // drop a file from the page cache after its last read
  size_t chunk = 0;         // bytes per read; 0: 4 MiB, 1 MiB of direct ones
  bool ring = true;         // direct reads by io_uring where that can be; where not, TakeFallbacks says why
  RingSetup ring_setup = nullptr;  // for tests
};

std::unique_ptr<Reader> NewFileReader(const FileReaderOptions& options);

}  // namespace fst
