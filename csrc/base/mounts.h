// The mounts that this process sees, and which of them are 3FS: known from /proc/self/mountinfo, without touching any.
#pragma once
#include <sys/types.h>

#include <string>
#include <vector>

#include "base/status.h"

namespace fst {

struct Mount {
  std::string device, point, type;  // `device`, as "0:45", is the same for all mounts of one file system
  bool is_3fs() const { return type == "fuse.hf3fs"; }
};

// The content of /proc/self/mountinfo; "" when it cannot be read.
std::string ReadMountinfo();
std::vector<Mount> ParseMountinfo(const std::string& content);
// The mounts as they are now. The process remembers where a 3FS was, for LostThreeFs.
std::vector<Mount> CurrentMounts();
// Calls CurrentMounts when the file system `device` (st_dev) is seen for the first time.
void NoteDevice(dev_t device);

// True when `path` is `folder` or in it; both absolute and normal.
bool IsUnder(const std::string& path, const std::string& folder);
// The folder of an absolute path.
std::string ParentOf(const std::string& path);
std::string JoinPath(const std::string& folder, const std::string& name);

// Makes a path absolute and follows its symlinks. What does not exist, or cannot be looked at since its mount is dead,
// stays as it is written, with "." and ".." resolved lexically. IO_ERROR.
Status ResolvePath(const std::string& path, std::string* out);

// The mount that holds a resolved path; null for none.
const Mount* MountHolding(const std::string& resolved, const std::vector<Mount>& mounts);
// Where a 3FS was mounted that held this resolved path and is not there any more; "" when none is known.
std::string LostThreeFs(const std::string& resolved, const std::vector<Mount>& mounts);

// 0 when `path` is a folder, else an errno. Asks the file system's server, not the kernel's cache, which answers for
// half a minute after a daemon died: blocks.
int ProbeFolder(const std::string& path);

// Whether `path` is on a 3FS, alive or dead.
bool IsOnThreeFs(const std::string& path);

// Whether an errno says that the daemon behind a FUSE mount is gone: it died (ENOTCONN, ECONNABORTED), or another one
// is there (ESTALE).
bool MeansDaemonGone(int error);
// The 3FS mount on which a system call on `path` failed because its daemon is gone; "" for other causes of the errno.
std::string DeadThreeFs(const std::string& path, int error);

}  // namespace fst
