#include "base/header_fd_cache.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/io_error.h"
#include "base/task_pool.h"

namespace fst {
namespace {

constexpr size_t kMaxCachedFds = 256;  // more files than nearly all models have
constexpr uint64_t kFreeShare = 16;    // cache at most one in 16 of the descriptors that are free
constexpr int kMaxClosers = 8;         // a dead mount blocks one thread per close; others must not queue behind it
constexpr auto kEvictTimeout = std::chrono::seconds(1);

struct CachedFd {
  const HeaderFdCache* owner;
  UniqueFd fd;
};

struct Store {
  std::mutex mutex;
  std::multimap<std::string, CachedFd> files;  // by path
  size_t evicting = 0;                         // descriptors that EvictAll is closing
  uint64_t evictions = 0;                      // those it has closed
  std::condition_variable evicted;

  // Removes the descriptors of `owner`, or all when it is null. The caller closes them after it has released the lock.
  std::vector<UniqueFd> Remove(const HeaderFdCache* owner) {
    std::vector<UniqueFd> removed;
    for (auto file = files.begin(); file != files.end();) {
      auto next = std::next(file);
      if (owner == nullptr || file->second.owner == owner) {
        removed.push_back(std::move(file->second.fd));
        files.erase(file);
      }
      file = next;
    }
    return removed;
  }
};

Store& TheStore() {
  static Store* store = new Store;  // never destroyed: threads that outlive main() may use it
  return *store;
}

// close(2) may be a round trip to the storage, or never return.
void CloseInBackground(std::vector<UniqueFd> fds, std::function<void()> closed) {
  static TaskPool* pool = new TaskPool("fst-close", kMaxClosers);
  auto shared = std::make_shared<std::vector<UniqueFd>>(std::move(fds));
  auto close = [shared, closed = std::move(closed)] {
    shared->clear();
    if (closed) closed();
  };
  if (!pool->Post(close).ok()) close();
}

}  // namespace

HeaderFdCache::~HeaderFdCache() { Close(nullptr); }

void HeaderFdCache::Put(const std::string& path, UniqueFd fd) {
  Store& store = TheStore();
  std::lock_guard<std::mutex> lock(store.mutex);
  rlimit limit;
  if (closed_ || getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  // open(2) returns the lowest free number, so at least that many descriptors are in use.
  const auto used = static_cast<uint64_t>(fd.get());
  if (store.files.size() < MaxCachedFds(limit.rlim_cur, used)) store.files.emplace(path, CachedFd{this, std::move(fd)});
}

void HeaderFdCache::Close(std::function<void()> closed) {
  std::vector<UniqueFd> removed;
  {
    std::lock_guard<std::mutex> lock(TheStore().mutex);
    closed_ = true;
    removed = TheStore().Remove(this);
  }
  if (!removed.empty()) return CloseInBackground(std::move(removed), std::move(closed));
  if (closed) closed();
}

UniqueFd HeaderFdCache::Take(const std::string& path, const FileIdentity& expected) {
  Store& store = TheStore();
  for (;;) {
    UniqueFd fd;
    {
      std::lock_guard<std::mutex> lock(store.mutex);
      auto found = store.files.find(path);
      if (found == store.files.end()) return fd;
      fd = std::move(found->second.fd);
      store.files.erase(found);
    }
    FileIdentity now;
    if (FileIdentity::OfPath(path, &now) && now == expected && expected.CheckUnchanged(fd.get(), path).ok()) return fd;
  }
}

bool HeaderFdCache::Use(const std::string& path, const FileIdentity& expected, const std::function<bool(int fd)>& use) {
  Store& store = TheStore();
  std::vector<UniqueFd> stale;
  {
    std::lock_guard<std::mutex> lock(store.mutex);
    auto [file, end] = store.files.equal_range(path);
    if (file == end) return false;
    FileIdentity now;
    if (FileIdentity::OfPath(path, &now) && now == expected)
      return std::any_of(file, end, [&use](const auto& each) { return use(each.second.fd.get()); });
    stale.push_back(std::move(file->second.fd));
    store.files.erase(file);
  }
  CloseInBackground(std::move(stale), nullptr);
  return false;
}

uint64_t HeaderFdCache::evictions() {
  std::lock_guard<std::mutex> lock(TheStore().mutex);
  return TheStore().evictions;
}

bool HeaderFdCache::EvictAll(uint64_t seen) {
  Store& store = TheStore();
  std::unique_lock<std::mutex> lock(store.mutex);
  std::vector<UniqueFd> removed = store.Remove(nullptr);
  store.evicting += removed.size();
  lock.unlock();
  for (UniqueFd& fd : removed) {  // one task each: a close may never return
    std::vector<UniqueFd> one;
    one.push_back(std::move(fd));
    CloseInBackground(std::move(one), [&store] {
      std::lock_guard<std::mutex> done(store.mutex);
      --store.evicting;
      ++store.evictions;
      store.evicted.notify_all();
    });
  }
  lock.lock();
  store.evicted.wait_for(lock, kEvictTimeout, [&] { return store.evictions != seen || store.evicting == 0; });
  return store.evictions != seen;
}

size_t HeaderFdCache::MaxCachedFds(uint64_t limit, uint64_t used) {
  return limit > used ? std::min<uint64_t>(kMaxCachedFds, (limit - used) / kFreeShare) : 0;
}

Status OpenForReading(const std::string& path, int flags, UniqueFd* out) {
  int error = 0;
  uint64_t seen = 0;
  do {
    seen = HeaderFdCache::evictions();
    *out = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags));
    if (out->valid()) return Status::Ok();
    error = errno;
  } while (OutOfDescriptors(error) && HeaderFdCache::EvictAll(seen));
  return IoError(path, "cannot open " + path, error);
}

}  // namespace fst
