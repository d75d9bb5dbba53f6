// Which 3FS mount a path is on, found without the 3FS library (its own function aborts the process on a missing path).
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

// Sets *out to the mount point of the 3FS that holds `path` (absolute, symlinks resolved). The path need not exist: its
// longest existing parent counts. A mount is 3FS when /proc/self/mountinfo says fuse.hf3fs and the folder 3fs-virt is
// in it; also, where folders of a 3FS are mounted one by one, the parent of a mounted 3fs-virt, or else another mount
// of the same file system that has 3fs-virt in it.
//
// Errors: NOT_3FS, naming the path, its real file system type and mount; THREEFS_DISCONNECTED when it is a 3FS mount
// that does not answer (its daemon died); INVALID_ARGUMENT for an empty path or one with a NUL.
//
// Test mode: with HF3FS_USRBIO_DONT_CHECKFS_FOR_MP=yes (the 3FS library's own switch) types are not looked at, and any
// folder can be a mount: the nearest folder at or above `path` that contains a folder 3fs-virt is the mount point.
//
// Touches no mount but the one that holds the path, so that another, hanging one cannot block it. Any thread.
// `mountinfo` replaces the content of /proc/self/mountinfo in tests.
Status ExtractMountPoint(const std::string& path, std::string* out, const std::string* mountinfo = nullptr);

}  // namespace fst
