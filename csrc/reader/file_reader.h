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

// Opens for reading and compares with `expected`. Shared by all readers that begin with an ordinary file descriptor.
// `flags` is added to O_RDONLY | O_CLOEXEC; without any, the descriptor through which the header was read is taken
// where it is kept. IO_ERROR, FILE_CHANGED.
class UniqueFd;
Status OpenUnchanged(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out);

}  // namespace fst
