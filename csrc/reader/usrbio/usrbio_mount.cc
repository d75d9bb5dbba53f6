#include "reader/usrbio/usrbio_mount.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "base/mounts.h"
#include "base/task_pool.h"
#include "reader/usrbio/usrbio_sweep.h"

namespace fst::usrbio {
namespace {

// The one thread of `mount`, started on first use; it never ends.
TaskPool& ThreadOf(const std::string& mount) {
  static std::mutex* mutex = new std::mutex;
  static auto* threads = new std::map<std::string, std::unique_ptr<TaskPool>>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<TaskPool>& thread = (*threads)[mount];
  if (thread == nullptr) thread = std::make_unique<TaskPool>("fst-3fs-mount", 1);
  return *thread;
}

// Once, and again while something was in use that may be left by then.
void SweepBeforeLinks() {
  static std::atomic<bool> clean{false};
  if (!clean) clean = SweepShm() == 0;
}

// The errnos of readlink(2) for a link that is not there any more. EPERM: its number is another user's link now, and
// the kernel still knows it by that number.
bool MeansGone(int error) { return error == ENOENT || error == EPERM || error == ESTALE; }

}  // namespace

Status OnMountThread(const std::string& mount, const std::function<Status()>& task) {
  struct Done {
    std::mutex mutex;
    std::condition_variable wake;
    bool done = false;
    Status status;
  } done;
  FST_RETURN_IF_ERROR(ThreadOf(mount).Post([&] {
    SweepBeforeLinks();
    Status status = task();
    HoldLinkFolder(mount);  // the daemon may be another one than before the task
    std::lock_guard<std::mutex> lock(done.mutex);
    done.status = std::move(status);
    done.done = true;
    done.wake.notify_all();
  }));
  std::unique_lock<std::mutex> lock(done.mutex);
  done.wake.wait(lock, [&] { return done.done; });
  return done.status;
}

void HoldLinkFolder(const std::string& mount) {
  struct Held {
    int fd = -1;  // no UniqueFd: metrics do not count what stays open
    dev_t device = 0;
  };
  static std::mutex* mutex = new std::mutex;
  static auto* folders = new std::map<std::string, Held>;  // open until the process ends
  const std::string folder = mount + "/3fs-virt/iovs";
  std::lock_guard<std::mutex> lock(*mutex);
  Held& held = (*folders)[mount];
  struct stat now;
  if (held.fd >= 0 && stat(folder.c_str(), &now) == 0 && now.st_dev == held.device) return;
  if (held.fd >= 0) close(held.fd);  // of a mount that is gone
  held.fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (held.fd >= 0 && fstat(held.fd, &now) == 0) held.device = now.st_dev;
}

void CloseLinkFolderOnExec(const std::string& mount) {
  const std::string folder = mount + "/3fs-virt/iovs";
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return;
  while (dirent* entry = readdir(dir)) {
    Link link;
    if (ReadLink(std::string("/proc/self/fd/") + entry->d_name, &link) != 0 || link.target != folder) continue;
    int fd = atoi(entry->d_name);
    int flags = fcntl(fd, F_GETFD);
    if (flags >= 0) (void)fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
  }
  closedir(dir);
}

Status ProbeMount(const std::string& mount) {
  const int error = ProbeFolder(mount + "/3fs-virt");
  if (error == 0) return Status::Ok();
  return Status(
      Code::THREEFS_DISCONNECTED,
      Format("the 3FS mount %s does not answer (%s/3fs-virt: %s); restart its hf3fs_fuse daemon and load again",
             mount.c_str(), mount.c_str(), ErrnoText(error).c_str()),
      error);
}

Status MountError(const std::string& mount, int error, const std::string& what, const char* remedy) {
  const bool gone = MeansDaemonGone(error) || error == ENODEV;
  return Status(
      gone ? Code::THREEFS_DISCONNECTED : Code::THREEFS_ERROR,
      Format("%s: %s%s", what.c_str(), ErrnoText(error).c_str(),
             gone ? Format("; the 3FS mount %s has lost its daemon: restart hf3fs_fuse and load again", mount.c_str())
                        .c_str()
                  : remedy));
}

int ReadLink(const std::string& path, Link* out) {
  char target[PATH_MAX];
  ssize_t length = readlink(path.c_str(), target, sizeof target);
  if (length < 0) return errno;
  *out = {path, std::string(target, static_cast<size_t>(length))};
  return 0;
}

bool AnyGone(const std::vector<Link>& links) {
  // readlink asks the daemon each time; lstat is answered from the kernel's cache for seconds.
  return std::any_of(links.begin(), links.end(), [](const Link& link) {
    Link now;
    int error = ReadLink(link.path, &now);
    return error == 0 ? now.target != link.target : MeansGone(error);
  });
}

}  // namespace fst::usrbio
