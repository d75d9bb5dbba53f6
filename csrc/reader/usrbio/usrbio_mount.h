// What this process does on a 3FS mount itself: whether it answers, whether links are still those that were made, and
// the one thread that makes them.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace fst::usrbio {

// Runs `task` on the thread that makes all iovs and rings of this process on `mount`, and waits for it. When a process
// dies, the daemon takes back what the thread made that was the first to use the mount, and nothing else; a thread that
// lives as long as the process also keeps its number from being another's, whose rings would go with ours.
Status OnMountThread(const std::string& mount, const std::function<Status()>& task);

// Processes that this one starts inherit no descriptor of the 3FS client library, which opens its own without
// close-on-exec: the daemon cleans up after a process when the last holder of the folder of links has gone. After each
// making of a ring, on any thread.
void CloseLinkFolderOnExec(const std::string& mount);

// OK when the mount answers and has its folder 3fs-virt; else THREEFS_DISCONNECTED. Asks the daemon, not the kernel's
// cache: may block.
Status ProbeMount(const std::string& mount);

// What a failing call into a mount means: THREEFS_DISCONNECTED where its daemon is gone, else THREEFS_ERROR.
Status MountError(const std::string& mount, int error, const std::string& what);

// A link in <mount>/3fs-virt/iovs and where it leads: the daemon gives the place of one that it removed to others.
struct Link {
  std::string path, target;
};

// Reads the link as it is now: 0, or the errno of readlink(2).
int ReadLink(const std::string& path, Link* out);
// True when one of them has been removed or leads elsewhere. Asks the daemon: may block.
bool AnyGone(const std::vector<Link>& links);

}  // namespace fst::usrbio
