#include "reader/usrbio/usrbio_lost_fds.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <vector>

#include "base/file_identity.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {
namespace {

struct Lost {
  int fd;  // no UniqueFd: metrics do not count it
  int duplicate;
};

struct FdStore {
  std::mutex mutex;
  std::vector<Lost> lost;
};

FdStore& TheFdStore() {
  static FdStore* store = new FdStore;  // never destroyed: threads that outlive main() may use it
  return *store;
}

// Whether `duplicate` is still a duplicate of `fd`. Asks no daemon.
bool IsDuplicate(int fd, int duplicate) {
  const long order = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, duplicate);
  if (order >= 0 || errno == EBADF) return order == 0;
  Link one, other;  // where a container forbids kcmp
  const std::string fds = "/proc/self/fd/";
  return ReadLink(fds + std::to_string(fd), &one) == 0 && ReadLink(fds + std::to_string(duplicate), &other) == 0 &&
         one.target == other.target;
}

}  // namespace

void CloseRegistered(const UsrbioApi& api, UniqueFd fd, int duplicate) {
  api.dereg_fd(fd.get());  // before close: the library knows files by their numbers
  const bool lost = duplicate > 0 ? IsDuplicate(fd.get(), duplicate) : !Answers(fd.get());
  if (!lost) return GiveBackLostFds(api, fd.get());
  std::lock_guard<std::mutex> lock(TheFdStore().mutex);
  TheFdStore().lost.push_back({fd.Release(), duplicate});
}

void GiveBackLostFds(const UsrbioApi& api, int live) {
  std::vector<Lost> all;
  {
    std::lock_guard<std::mutex> lock(TheFdStore().mutex);
    all.swap(TheFdStore().lost);
  }
  for (auto lost = all.begin(); lost != all.end(); ++lost) {
    const UniqueFd dead(fcntl(lost->fd, F_DUPFD_CLOEXEC, 0));
    if (dup3(live, lost->fd, O_CLOEXEC) >= 0) api.dereg_fd(lost->fd);
    if (lost->duplicate > 0 && IsDuplicate(dead.get(), lost->duplicate)) {  // the daemon of `live` died meanwhile
      (void)dup3(dead.get(), lost->fd, O_CLOEXEC);
      std::lock_guard<std::mutex> lock(TheFdStore().mutex);
      TheFdStore().lost.insert(TheFdStore().lost.end(), lost, all.end());
      return;
    }
    close(lost->fd);
  }
}

bool CloseOneLostFd() {
  std::lock_guard<std::mutex> lock(TheFdStore().mutex);
  if (TheFdStore().lost.empty()) return false;
  close(TheFdStore().lost.back().fd);
  TheFdStore().lost.pop_back();
  return true;
}

bool Answers(int fd) {
  FileIdentity now;
  return FileIdentity::OfServer(fd, "", &now).ok();
}

size_t LostFds() {
  std::lock_guard<std::mutex> lock(TheFdStore().mutex);
  return TheFdStore().lost.size();
}

}  // namespace fst::usrbio
