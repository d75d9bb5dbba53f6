#include "emulators/hf3fs/mounts.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace emu {
namespace {

constexpr char kVirtual[] = "/3fs-virt";
constexpr char kDead[] = "/.3fs-virt-dead";
constexpr uint32_t kMagic = 0x8f3f5fff;          // HF3FS_SUPER_MAGIC
constexpr unsigned long kGetMagic = 0x80046802;  // HF3FS_IOC_GET_MAGIC_NUM

struct Traces {
  std::mutex mutex;
  std::set<std::string> links, shms, killed, open, stopped;
  std::map<std::string, int> lives;  // daemons that came after the first one here
  std::condition_variable continued;
  std::vector<std::string> folders;  // in the order in which they were made
};

Traces& All() {
  static Traces* traces = new Traces;  // used until the very end of the process
  return *traces;
}

bool IsFolder(const std::string& path) {
  struct stat st;
  return stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

bool IsUnder(const std::string& path, const std::string& folder) {
  return path.compare(0, folder.size(), folder) == 0 && (path.size() == folder.size() || path[folder.size()] == '/');
}

void Revive(Traces& traces) {
  for (const std::string& mount : traces.killed) {
    rename((mount + kDead).c_str(), (mount + kVirtual).c_str());
    traces.lives[mount]++;
  }
  traces.killed.clear();
}

}  // namespace

std::string MountOf(const std::string& path, const std::string& root) {
  if (!root.empty()) {
    char real[PATH_MAX];
    if (realpath(root.c_str(), real) == nullptr) return "";
    return IsUnder(path, real) && IsFolder(std::string(real) + kVirtual) ? real : "";
  }
  for (std::string folder = path; !folder.empty(); folder.resize(folder.rfind('/'))) {
    if (IsFolder(folder + kVirtual)) return folder;
  }
  return "";
}

std::string PathOfFd(int fd) {
  std::string path = ReadLink("/proc/self/fd/" + std::to_string(fd));
  return !path.empty() && path[0] == '/' ? path : "";
}

std::string LifeOf(const std::string& mount) {
  struct stat st;
  if (stat((mount + kVirtual).c_str(), &st) != 0) return "";
  std::lock_guard<std::mutex> lock(All().mutex);
  return std::to_string(st.st_dev) + ":" + std::to_string(All().lives[mount]);
}

bool Is3fs(int fd, const std::string& root, const std::string& life) {
  uint32_t magic = 0;
  if (ioctl(fd, kGetMagic, &magic) == 0) return magic == kMagic;  // of a FUSE mount
  if (errno != ENOTTY && errno != EINVAL && errno != ENOSYS) return false;
  const std::string path = fd < 0 ? "" : PathOfFd(fd), mount = path.empty() ? "" : MountOf(path, root);
  if (mount.empty()) return false;
  AwaitDaemon(mount);
  return life.empty() || LifeOf(mount) == life;
}

int MakeIovsFolder(const std::string& mount, bool make_virtual) {
  AwaitDaemon(mount);
  Traces& traces = All();
  std::lock_guard<std::mutex> lock(traces.mutex);
  if (!IsFolder(mount + kVirtual)) {
    if (!make_virtual || IsFolder(mount + kDead)) return ENOTCONN;
    if (mkdir((mount + kVirtual).c_str(), 0777) == 0) traces.folders.push_back(mount + kVirtual);
  }
  std::string iovs = mount + kVirtual + "/iovs";
  if (mkdir(iovs.c_str(), 0777) == 0) {
    traces.folders.push_back(iovs);
  } else if (errno != EEXIST) {
    return errno;
  }
  return 0;
}

void OpenLinkFolder(const std::string& mount) {
  std::lock_guard<std::mutex> lock(All().mutex);
  if (!All().open.insert(mount).second) return;
  (void)open((mount + kVirtual + "/iovs").c_str(), O_RDONLY | O_DIRECTORY);  // NOLINT: never closed, and inherited
}

int MakeLink(const std::string& target, const std::string& link) {
  if (symlink(target.c_str(), link.c_str()) != 0) return errno;
  RememberLink(link);
  return 0;
}

void RememberLink(const std::string& link) {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().links.insert(link);
}

bool RemoveLink(const std::string& link) {
  bool removed = unlink(link.c_str()) == 0 || errno != EROFS;
  ForgetLink(link);
  return removed;
}

void ForgetLink(const std::string& link) {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().links.erase(link);
}

bool LinkExists(const std::string& link) { return !ReadLink(link).empty(); }

std::string ReadLink(const std::string& link) {
  char target[PATH_MAX];
  ssize_t length = readlink(link.c_str(), target, sizeof target);
  return length < 0 ? "" : std::string(target, static_cast<size_t>(length));
}

void RememberShm(const std::string& name) {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().shms.insert(name);
}

void RemoveShm(const std::string& name) {
  shm_unlink(name.c_str());
  std::lock_guard<std::mutex> lock(All().mutex);
  All().shms.erase(name);
}

void KillDaemon(const std::string& mount) {
  Traces& traces = All();
  std::lock_guard<std::mutex> lock(traces.mutex);
  std::string dead = mount + kDead, iovs = dead + "/iovs";
  if (rename((mount + kVirtual).c_str(), dead.c_str()) != 0) return;  // another process was first
  traces.killed.insert(mount);
  DIR* dir = opendir(iovs.c_str());
  if (dir == nullptr) return;
  while (dirent* entry = readdir(dir)) unlink((iovs + "/" + entry->d_name).c_str());  // fails for "." and ".."
  closedir(dir);
}

void ReviveDaemons() {
  std::lock_guard<std::mutex> lock(All().mutex);
  Revive(All());
}

void ForgetFiles(const std::string& mount) {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().lives[mount]++;
}

void StopDaemon(const std::string& mount) {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().stopped.insert(mount);
}

void ContinueDaemons() {
  std::lock_guard<std::mutex> lock(All().mutex);
  All().stopped.clear();
  All().continued.notify_all();
}

bool IsStopped(const std::string& mount) {
  std::lock_guard<std::mutex> lock(All().mutex);
  return All().stopped.count(mount) != 0;
}

void AwaitDaemon(const std::string& mount) {
  std::unique_lock<std::mutex> lock(All().mutex);
  All().continued.wait_for(lock, std::chrono::seconds(kLongestStop), [&] { return All().stopped.count(mount) == 0; });
}

void OpenSemaphore(const std::string& mount) {
  const std::string target = ReadLink(mount + kVirtual + "/iovs/submit-ios"), prefix = "/dev/shm/sem.";
  if (target.compare(0, prefix.size(), prefix) == 0) (void)sem_open(("/" + target.substr(prefix.size())).c_str(), 0);
}

void RemoveTraces(std::string* left) {
  Traces& traces = All();
  // A process that dies with the lock held still gets its clean-up.
  bool locked = traces.mutex.try_lock();
  for (int i = 0; i < 100 && !locked; i++) {
    usleep(2000);
    locked = traces.mutex.try_lock();
  }
  for (const std::string& link : traces.links) {
    if (unlink(link.c_str()) == 0 && left != nullptr) *left += " link " + link;
  }
  for (const std::string& name : traces.shms) {
    if (shm_unlink(name.c_str()) == 0 && left != nullptr) *left += " /dev/shm" + name;
  }
  traces.links.clear();
  traces.shms.clear();
  Revive(traces);
  while (!traces.folders.empty()) {
    rmdir(traces.folders.back().c_str());  // stays while another process has links in it
    traces.folders.pop_back();
  }
  if (locked) traces.mutex.unlock();
}

}  // namespace emu
