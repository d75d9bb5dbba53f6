// Which file a header was read from, and in which version: FILE_CHANGED when a path or a descriptor means another one.
#pragma once
#include <cstdint>
#include <string>

#include "base/status.h"

namespace fst {

struct FileIdentity {
  uint64_t dev = 0;
  uint64_t ino = 0;
  uint64_t size = 0;     // bytes
  int64_t mtime_ns = 0;  // since the epoch

  // Fills *out from an open descriptor. `path` is for messages. IO_ERROR when fstat fails, or for no regular file.
  static Status Of(int fd, const std::string& path, FileIdentity* out);
  // The same as the file's server has it now: blocks. The kernel's cache may be old, and takes a file for shorter than
  // it is where a read ended in a hole of 3FS.
  static Status OfServer(int fd, const std::string& path, FileIdentity* out);
  // Fills *out from what `path` names now. Asks the file's server, as open(2) would, and not the kernel's cache:
  // blocks. False when it cannot be read.
  static bool OfPath(const std::string& path, FileIdentity* out);

  // OK when `now`, which `path` means, is this file in this version; else FILE_CHANGED, which says what changed. A 3FS
  // whose daemon was restarted is another device with the same files.
  Status CheckSame(const FileIdentity& now, const std::string& path) const;
  // CheckSame with the file that `fd` has open; asks its server only about a difference. IO_ERROR as Of.
  Status CheckUnchanged(int fd, const std::string& path) const;

  bool operator==(const FileIdentity& other) const {
    return dev == other.dev && ino == other.ino && size == other.size && mtime_ns == other.mtime_ns;
  }
  bool operator!=(const FileIdentity& other) const { return !(*this == other); }
};

}  // namespace fst
