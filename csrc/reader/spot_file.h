// A file of which the thread that asks reads what is in memory already, at once: no other thread is woken for it, and
// storage is not waited for. What is not in memory is for a Reader to read.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file_identity.h"
#include "base/header_fd_cache.h"
#include "base/status.h"

struct iovec;

namespace fst {

class SpotFile {
 public:
  struct Range {
    uint64_t offset;  // in the file
    uint64_t length;  // > 0
    void* to;
  };
  // preadv2(2) with RWF_NOWAIT; for tests to take its place.
  using ReadNow = ssize_t (*)(int fd, const iovec* to, int count, off_t offset);

  // Opens a file and leaves its descriptor in `fds`, which closes it when it is closed or descriptors run out. Blocks.
  // *out is null where a look at the file may wait for another machine, or where this kernel cannot tell what is in
  // memory. IO_ERROR, FILE_CHANGED. Any thread.
  static Status Open(std::shared_ptr<HeaderFdCache> fds, const std::string& path, const FileIdentity& expected,
                     std::shared_ptr<SpotFile>* out, ReadNow read_now = nullptr);

  // Whether all ranges were read, and the file was `expected` before and after it. False says nothing of the file: part
  // of it is not in memory, its descriptor was closed, it changed, or it cannot be read; who reads it then finds out.
  // Any thread.
  bool Read(const Range* ranges, size_t count) const;

 private:
  SpotFile(std::shared_ptr<HeaderFdCache> fds, const std::string& path, const FileIdentity& expected)
      : fds_(std::move(fds)), path_(path), expected_(expected) {}
  bool ReadRange(int fd, const Range& range) const;

  const std::shared_ptr<HeaderFdCache> fds_;
  const std::string path_;
  const FileIdentity expected_;
  ReadNow read_now_ = nullptr;
  // On tmpfs, which has no RWF_NOWAIT, pages are looked at before they are read, where there is swap for them.
  bool looks_first_ = false;
};

}  // namespace fst
