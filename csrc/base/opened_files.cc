#include "base/opened_files.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/task_pool.h"

namespace fst {
namespace {

constexpr size_t kMost = 256;    // more files than nearly all models have
constexpr uint64_t kShare = 16;  // of the descriptors that are free, one in so many

using Closing = std::vector<UniqueFd>;

struct Kept {
  const OpenedFiles* owner;
  UniqueFd fd;
};

struct Store {
  std::mutex mutex;
  std::multimap<std::string, Kept> files;  // by path

  // Those of `owner`, or all: to be closed when the lock is not held any more.
  Closing Remove(const OpenedFiles* owner) {
    Closing closing;
    for (auto file = files.begin(); file != files.end();) {
      auto next = std::next(file);
      if (owner == nullptr || file->second.owner == owner) {
        closing.push_back(std::move(file->second.fd));
        files.erase(file);
      }
      file = next;
    }
    return closing;
  }
};

Store& All() {
  static Store* store = new Store;  // threads that outlive main() may still look
  return *store;
}

TaskPool& Closers() {
  static TaskPool* pool = new TaskPool("fst-close", 1);
  return *pool;
}

bool IsStill(const FileIdentity& expected, int fd, const std::string& path) {
  struct statx fresh;  // asks a server anew, as opening would
  if (statx(AT_FDCWD, path.c_str(), AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &fresh) != 0) return false;
  const FileIdentity there = {makedev(fresh.stx_dev_major, fresh.stx_dev_minor), fresh.stx_ino, fresh.stx_size,
                              fresh.stx_mtime.tv_sec * 1000000000 + fresh.stx_mtime.tv_nsec};
  FileIdentity here;
  return there == expected && FileIdentity::Of(fd, path, &here).ok() && here == expected;
}

}  // namespace

OpenedFiles::~OpenedFiles() {
  auto closing = std::make_shared<Closing>();
  {
    std::lock_guard<std::mutex> lock(All().mutex);
    *closing = All().Remove(this);
  }
  if (!closing->empty()) (void)Closers().Post([closing = std::move(closing)]() mutable { closing.reset(); });
}

void OpenedFiles::Put(const std::string& path, UniqueFd fd) {
  std::lock_guard<std::mutex> lock(All().mutex);
  auto& files = All().files;
  rlimit limit;
  if (closed_ || files.size() >= kMost || getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  // A new descriptor has the lowest number that is free: as many are in use.
  const auto used = static_cast<uint64_t>(fd.get());
  if (files.size() < Most(limit.rlim_cur, used)) files.emplace(path, Kept{this, std::move(fd)});
}

void OpenedFiles::Close() {
  Closing closing;
  std::lock_guard<std::mutex> lock(All().mutex);
  closed_ = true;
  closing = All().Remove(this);
}

UniqueFd OpenedFiles::Take(const std::string& path, const FileIdentity& expected) {
  for (;;) {
    UniqueFd fd;
    {
      std::lock_guard<std::mutex> lock(All().mutex);
      auto found = All().files.find(path);
      if (found == All().files.end()) return fd;
      fd = std::move(found->second.fd);
      All().files.erase(found);
    }
    if (IsStill(expected, fd.get(), path)) return fd;
  }
}

bool OpenedFiles::GiveUp() {
  Closing closing;
  std::lock_guard<std::mutex> lock(All().mutex);
  closing = All().Remove(nullptr);
  return !closing.empty();
}

size_t OpenedFiles::Most(uint64_t limit, uint64_t used) {
  return limit > used ? std::min<uint64_t>(kMost, (limit - used) / kShare) : 0;
}

UniqueFd OpenForReading(const std::string& path, int flags) {
  const int before = errno;
  int error = 0;
  do {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags));
    if (fd.valid()) {
      errno = before;
      return fd;
    }
    error = errno;
  } while ((error == EMFILE || error == ENFILE) && OpenedFiles::GiveUp());
  errno = error;
  return UniqueFd();
}

}  // namespace fst
