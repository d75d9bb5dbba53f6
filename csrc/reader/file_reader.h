// Reads by worker threads: buffered, scattered straight into place (preadv), or direct (O_DIRECT) into aligned slots.
#pragma once
#include "reader/reader.h"

namespace fst {

struct FileReaderOptions {
  int threads = 0;          // 0: a number that suits this machine
  bool direct = false;      // O_DIRECT; a file system that refuses it is read buffered, and TakeFallbacks says so
  bool drop_cache = false;  // after its last read, ask the kernel to forget a file's pages
  size_t chunk = 0;         // bytes a read; 0: 4 MiB
};

std::unique_ptr<Reader> NewFileReader(const FileReaderOptions& options);

}  // namespace fst
