// What is known about 3FS before a reader exists: which mount files are on, and whether the copier can work here.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst::usrbio {

struct FilesOnMount {
  std::string mount_point;   // of the first file that is on one; "" when none is
  uint64_t block_bytes = 0;  // st_blksize of that file: 3FS's chunk
  struct NotOnMount {
    std::string path;
    Status why;  // NOT_3FS: on no 3FS mount, or on another one; THREEFS_DISCONNECTED
  };
  std::vector<NotOnMount> not_on_mount;
};

// Finds which files are not on `mount_point` ("": on that of the first file): all of them, or only the first unless
// `all`. Blocks. NOT_3FS, THREEFS_DISCONNECTED and INVALID_ARGUMENT are about a `mount_point` that is not one.
Status ResolveMount(const std::vector<std::string>& paths, const std::string& mount_point, bool all, FilesOnMount* out);

struct Availability {
  bool available = false;
  std::string library, reason, remedy;  // when available, `reason` is what may still hinder it, or ""
};

// Loads the library, looks for a mount, and checks /dev/shm and the limit of locked memory. Blocks.
Availability CheckAvailability();

}  // namespace fst::usrbio
