// What can be said about 3FS before anything is made: which mount files are on, and whether the copier can work here.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst::usrbio {

struct FilesOnMount {
  std::string mount_point;   // of the first file that is on one, "" when none is
  uint64_t block_bytes = 0;  // st_blksize of that file: 3FS's chunk
  struct NotOnMount {
    std::string path;
    Status why;  // NOT_3FS: on no 3FS mount, or on another one; THREEFS_DISCONNECTED
  };
  std::vector<NotOnMount> not_on_mount;
};

// Looks at every path, or with `all` false up to the first that is not on it; `mount_point` ("" for that of the first
// file) is the mount that all should be on. Blocks. NOT_3FS, THREEFS_DISCONNECTED, INVALID_ARGUMENT when the mount
// point given is none.
Status ResolveMount(const std::vector<std::string>& paths, const std::string& mount_point, bool all, FilesOnMount* out);

struct Availability {
  bool available = false;
  std::string library, reason, remedy;  // of an available copier, the reason is what may yet hinder it
};

// Loads the library, looks for a mount, at /dev/shm and at the limit of locked memory. Blocks.
Availability CheckAvailability();

}  // namespace fst::usrbio
