// Folders that act as 3FS mounts, and everything that this process made outside of its memory.
#pragma once
#include <string>

namespace emu {

// The mount that holds `path` (absolute, resolved): `root` when that is set, else the nearest folder with a 3fs-virt in
// it. "" for none.
std::string MountOf(const std::string& path, const std::string& root);

// The path behind an open descriptor; "" when there is none.
std::string PathOfFd(int fd);

// Which daemon serves `mount`: another text after each restart, "" while there is none.
std::string LifeOf(const std::string& mount);
// What the library asks a descriptor's daemon before it registers or forgets it. False where the daemon that it was
// opened with is gone: `life` is that of its registration, "" before. Waits while the daemon is stopped.
bool Is3fs(int fd, const std::string& root, const std::string& life);

// Makes <mount>/3fs-virt/iovs where it is absent (removed at exit). 0, or an errno; ENOTCONN when the mount's daemon is
// dead.
int MakeIovsFolder(const std::string& mount, bool make_virtual);

// Keeps <mount>/3fs-virt/iovs open until the end of the process, and in the processes that it starts: when all of them
// are gone the daemon takes back what they left. As the library does it at the first iov or ring of a mount.
void OpenLinkFolder(const std::string& mount);

// symlink(), remembered until RemoveLink. 0 or an errno.
int MakeLink(const std::string& target, const std::string& link);
// A link that the caller made himself: removed with the others when the process aborts, as a daemon does when its
// client dies.
void RememberLink(const std::string& link);
// False where its daemon does not allow that (EROFS).
bool RemoveLink(const std::string& link);
void ForgetLink(const std::string& link);
// Whether it can be read: asks the daemon of a FUSE mount, each time.
bool LinkExists(const std::string& link);
// Its target; "" where it cannot be read.
std::string ReadLink(const std::string& link);

// Names in /dev/shm ("/hf3fs-iov-…") that are removed at exit unless forgotten before.
void RememberShm(const std::string& name);
void RemoveShm(const std::string& name);

// The daemon of `mount` dies: its links go, and 3fs-virt is renamed away. Revive brings back every daemon killed here,
// which knows no file of before.
void KillDaemon(const std::string& mount);
void ReviveDaemons();
// The daemon of `mount` forgets all files, as one does that is restarted in a moment.
void ForgetFiles(const std::string& mount);
// The daemon of `mount` is stopped: calls that ask it wait for ContinueDaemons, at most kLongestStop seconds.
void StopDaemon(const std::string& mount);
void ContinueDaemons();
bool IsStopped(const std::string& mount);
constexpr int kLongestStop = 60;
// Waits while the daemon of `mount` is stopped.
void AwaitDaemon(const std::string& mount);

// Opens the semaphore of the daemon that wakes it, as the library does for each ring, and never closes it. Nothing
// where the daemon has none.
void OpenSemaphore(const std::string& mount);

// Removes all of the above; *left (if given) lists the links and names that were still there.
void RemoveTraces(std::string* left);

}  // namespace emu
