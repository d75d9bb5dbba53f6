// Finds the 3FS mount of a path without the 3FS library, whose own function aborts the process on a missing path.
#pragma once
#include <string>
#include <vector>

#include "base/mounts.h"
#include "base/status.h"

namespace fst {

// Sets *out to the mount point of the 3FS that holds `path` (absolute, symlinks resolved). The path need not exist: its
// longest existing parent counts. A mount is a 3FS when /proc/self/mountinfo says fuse.hf3fs and it holds a folder
// 3fs-virt. Where folders of a 3FS are mounted one by one, the mount point is the parent of a mounted 3fs-virt, or else
// another mount of the same file system that holds 3fs-virt.
//
// NOT_3FS names the path, its real file system and mount. THREEFS_DISCONNECTED: it is a 3FS mount that does not answer
// (its daemon died), or was one that is not mounted any more. INVALID_ARGUMENT: the path is empty or has a NUL.
//
// When MountTypesAreUnchecked, the mount point is the nearest folder at or above `path` that holds a folder 3fs-virt,
// whatever its type: any folder can act as a mount.
//
// Touches no mount but that of the path, so that another one that hangs cannot block it. Any thread. `given`: the
// mounts, of an earlier call or a test's.
Status ExtractMountPoint(const std::string& path, std::string* out, const std::vector<Mount>* given = nullptr);

// Whether HF3FS_USRBIO_DONT_CHECKFS_FOR_MP=yes, the 3FS library's own switch, is set: for tests.
bool MountTypesAreUnchecked();

}  // namespace fst
