// Tells whether a path or descriptor still means the file that was checked: FILE_CHANGED when it does not.
#pragma once
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "base/status.h"

namespace fst {

struct FileIdentity {
  uint64_t dev = 0;
  uint64_t ino = 0;
  uint64_t size = 0;     // bytes
  int64_t mtime_ns = 0;  // since the epoch

  // Fills `out` from an open descriptor. `path` is for messages only. IO_ERROR when fstat fails or the file is not a
  // regular one.
  static Status Of(int fd, const std::string& path, FileIdentity* out) {
    struct stat info;
    if (fstat(fd, &info) != 0) {
      return Status(Code::IO_ERROR, "cannot stat " + path + ": " + ErrnoText(errno)).At(path);
    }
    if (!S_ISREG(info.st_mode)) {
      const char* kind = S_ISDIR(info.st_mode) ? "a folder" : "not a regular file";
      return Status(Code::IO_ERROR, path + " is " + kind + ", expected a regular file").At(path);
    }
    out->dev = static_cast<uint64_t>(info.st_dev);
    out->ino = static_cast<uint64_t>(info.st_ino);
    out->size = static_cast<uint64_t>(info.st_size);
    out->mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec;
    return Status::Ok();
  }

  // OK when `now` is the same file as this one; else FILE_CHANGED saying what moved.
  Status CheckSame(const FileIdentity& now, const std::string& path) const {
    if (*this == now) return Status::Ok();
    std::string what;
    if (dev != now.dev || ino != now.ino) {
      what = "it was replaced by another file";
    } else if (size != now.size) {
      what = "its size went from " + std::to_string(size) + " to " + std::to_string(now.size) + " bytes";
    } else {
      what = "its modification time moved";
    }
    return Status(Code::FILE_CHANGED,
                  path + " changed while it was read: " + what + "; load it again when its writer is done")
        .At(path);
  }

  bool operator==(const FileIdentity& other) const {
    return dev == other.dev && ino == other.ino && size == other.size && mtime_ns == other.mtime_ns;
  }
  bool operator!=(const FileIdentity& other) const { return !(*this == other); }
};

}  // namespace fst
