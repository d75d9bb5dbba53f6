#include "base/header_fd_cache.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
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
constexpr int kClosers = 8;      // a dead mount holds up one each time; others must not wait for it
constexpr auto kPatience = std::chrono::seconds(1);

using Closing = std::vector<UniqueFd>;

struct Kept {
  const OpenedFiles* owner;
  UniqueFd fd;
};

struct Store {
  std::mutex mutex;
  std::multimap<std::string, Kept> files;  // by path
  size_t giving = 0;                       // descriptors that are being given up
  uint64_t given = 0;                      // those that were
  std::condition_variable changed;

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

// Closing may be a round trip to the storage, or never end.
void CloseElsewhere(Closing files, std::function<void()> closed) {
  static TaskPool* pool = new TaskPool("fst-close", kClosers);
  auto shared = std::make_shared<Closing>(std::move(files));
  auto close = [shared, closed = std::move(closed)] {
    shared->clear();
    if (closed) closed();
  };
  if (!pool->Post(close).ok()) close();
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

OpenedFiles::~OpenedFiles() { Close(nullptr); }

void OpenedFiles::Put(const std::string& path, UniqueFd fd) {
  std::lock_guard<std::mutex> lock(All().mutex);
  auto& files = All().files;
  rlimit limit;
  if (closed_ || files.size() >= kMost || getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  // A new descriptor has the lowest number that is free: as many are in use.
  const auto used = static_cast<uint64_t>(fd.get());
  if (files.size() < Most(limit.rlim_cur, used)) files.emplace(path, Kept{this, std::move(fd)});
}

void OpenedFiles::Close(std::function<void()> closed) {
  Closing closing;
  {
    std::lock_guard<std::mutex> lock(All().mutex);
    closed_ = true;
    closing = All().Remove(this);
  }
  if (!closing.empty()) return CloseElsewhere(std::move(closing), std::move(closed));
  if (closed) closed();
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

uint64_t OpenedFiles::Given() {
  std::lock_guard<std::mutex> lock(All().mutex);
  return All().given;
}

bool OpenedFiles::GiveUp(uint64_t since) {
  Store& store = All();
  std::unique_lock<std::mutex> lock(store.mutex);
  Closing closing = store.Remove(nullptr);
  store.giving += closing.size();
  lock.unlock();
  for (UniqueFd& fd : closing) {  // each by itself: one may never end
    Closing one;
    one.push_back(std::move(fd));
    CloseElsewhere(std::move(one), [&store] {
      std::lock_guard<std::mutex> done(store.mutex);
      --store.giving;
      ++store.given;
      store.changed.notify_all();
    });
  }
  lock.lock();
  store.changed.wait_for(lock, kPatience, [&] { return store.given != since || store.giving == 0; });
  return store.given != since;
}

size_t OpenedFiles::Most(uint64_t limit, uint64_t used) {
  return limit > used ? std::min<uint64_t>(kMost, (limit - used) / kShare) : 0;
}

bool OutOfDescriptors(int error) { return error == EMFILE || error == ENFILE; }

UniqueFd OpenForReading(const std::string& path, int flags) {
  const int before = errno;
  int error = 0;
  uint64_t given = 0;
  do {
    given = OpenedFiles::Given();
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags));
    if (fd.valid()) {
      errno = before;
      return fd;
    }
    error = errno;
  } while (OutOfDescriptors(error) && OpenedFiles::GiveUp(given));
  errno = error;
  return UniqueFd();
}

}  // namespace fst
