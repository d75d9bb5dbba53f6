// This process's work on a 3FS mount: probing whether it answers, checking that links still exist, and the one thread
// that makes iovs and rings.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst::usrbio {

// Runs `task` on the one thread that makes all iovs and rings of this process on `mount`, and waits for it. Before the
// first one, what dead processes left in /dev/shm is removed. When a process dies, the daemon cleans up only what was
// made by the thread that used the mount first. That thread lives as long as the process, so that its id never becomes
// another process's, whose rings the daemon would remove with ours.
Status OnMountThread(const std::string& mount, const std::function<Status()>& task);

// Opens the folder of links, and keeps it open for as long as its mount is the same one: the daemon cleans up after a
// process when its last descriptor of the folder is closed, and the library opens one only after its first link. To be
// called before the first link, on the mount's thread; after each of its tasks it is called anyway. Where the folder
// cannot be opened, the link will fail and say why.
void HoldLinkFolder(const std::string& mount);

// Keeps the processes that this one starts from inheriting the 3FS client library's descriptor of the folder of links,
// which it opens without close-on-exec: the daemon cleans up after a process only when nobody has that folder open. To
// be called after each ring is made. Any thread.
void CloseLinkFolderOnExec(const std::string& mount);

// OK when the mount answers and has its folder 3fs-virt; else THREEFS_DISCONNECTED. Asks the daemon: blocks.
Status ProbeMount(const std::string& mount);

// The status of a failed call into a mount: THREEFS_DISCONNECTED when the errno says that its daemon is gone, else
// THREEFS_ERROR. `what` begins the message.
Status MountError(const std::string& mount, int error, const std::string& what, const char* remedy = "");

// A link in <mount>/3fs-virt/iovs and its target. The target tells a link of ours from a later one at the same path.
struct Link {
  std::string path, target;
};

// Reads the link as it is now: 0, or the errno of readlink(2).
int ReadLink(const std::string& path, Link* out);
// True when one of them was removed, leads elsewhere, or is another user's now. Asks the daemon: blocks.
bool AnyGone(const std::vector<Link>& links);

}  // namespace fst::usrbio
