// What tells one version of a file from another: the device, the inode, the size and the time of the last change.
#pragma once
#include <cstdint>
#include <string>

#include "base/status.h"

namespace fst {

struct FileIdentity {
  uint64_t dev = 0, ino = 0, size = 0;
  int64_t mtime_ns = 0;

  // IO_ERROR when fstat fails.
  static Status Of(int fd, const std::string& path, FileIdentity* out);

  // OK when `now` is the same version; FILE_CHANGED naming what differs otherwise.
  Status Compare(const FileIdentity& now, const std::string& path) const;
};

}  // namespace fst
