// Reads with blocking calls on worker threads: buffered ones scatter straight into place (preadv), direct ones
// (O_DIRECT) go through aligned slots.
#pragma once
#include "reader/reader.h"

namespace fst {

struct FileReaderOptions {
  int threads = 0;          // 0: a number that suits this machine
  bool direct = false;      // O_DIRECT; a file system that refuses it is read buffered, and TakeFallbacks says so
  bool drop_cache = false;  // drop a file from the page cache after its last read
  size_t chunk = 0;         // bytes per read; 0: 4 MiB, 1 MiB of direct ones
};

std::unique_ptr<Reader> NewFileReader(const FileReaderOptions& options);

}  // namespace fst
