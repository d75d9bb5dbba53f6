#include "reader/usrbio/usrbio_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "base/header_fd_cache.h"
#include "base/io_error.h"
#include "base/mounts.h"
#include "reader/open_file.h"
#include "reader/usrbio/mount_point.h"
#include "reader/usrbio/usrbio_lost_fds.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {
namespace {

constexpr int kMaxClosers = 2;
constexpr int kMinOpenFiles = 8, kMaxOpenFiles = 256;
constexpr uint64_t kReservedFds = 16;  // left to the rest of the process
constexpr size_t kMaxFdsTried = 4096;  // far more numbers than the library can hold
constexpr int kMaxRestarts = 3;        // of the daemon, while one file is opened
constexpr auto kCloseTimeout = std::chrono::milliseconds(100);
constexpr auto kLongestWait = std::chrono::seconds(1);

uint64_t UsedDescriptors() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 64;
  uint64_t count = 0;
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

// reg_fd: 0 or an errno. *duplicate is then the library's own descriptor of the file; 0: unknown. EINVAL: the library
// still has this number, or that of its duplicate, of a file that was open when a daemon died. Any live descriptor of
// that number makes it forget; until the duplicate gets another one as well, the file is moved on.
int Register(const UsrbioApi& api, UniqueFd* fd, int* duplicate) {
  std::vector<UniqueFd> tried;  // kept open, so that no number comes twice
  int result = api.reg_fd(fd->get(), 0);
  while (result == EINVAL && tried.size() < kMaxFdsTried) {
    api.dereg_fd(fd->get());
    result = api.reg_fd(fd->get(), 0);
    if (result != EINVAL) break;
    UniqueFd other(fcntl(fd->get(), F_DUPFD_CLOEXEC, 0));
    if (!other.valid()) return errno;
    tried.push_back(std::exchange(*fd, std::move(other)));
    result = api.reg_fd(fd->get(), 0);
  }
  if (result > 0) return result;
  // Started processes would inherit the duplicate.
  struct stat own, copy;
  bool same = result < 0 && fstat(fd->get(), &own) == 0 && fstat(-result, &copy) == 0 && own.st_dev == copy.st_dev &&
              own.st_ino == copy.st_ino;
  if (same) (void)fcntl(-result, F_SETFD, FD_CLOEXEC);
  *duplicate = same ? -result : 0;
  return 0;
}

}  // namespace

int OpenFilesFor(uint64_t limit, uint64_t used) {
  uint64_t free_descriptors = limit > used + kReservedFds ? limit - used - kReservedFds : 0;
  return static_cast<int>(std::clamp<uint64_t>(free_descriptors / 2, kMinOpenFiles, kMaxOpenFiles));
}

struct Files::State {
  const UsrbioApi* api;
  std::string mount;
  int limit = kMinOpenFiles;
  // A FUSE close is a round trip to the daemon: never on the I/O thread.
  TaskPool closers{"fst-3fs-close", kMaxClosers};
  std::mutex mutex;
  std::condition_variable changed;
  int open = 0, opening = 0, closing = 0;  // descriptors; of them, those in Open() and those that closers close
  uint64_t closings = 0;                   // ever
  bool paused = false;

  // A soft limit, with a timeout: reads of the files that are open may depend on the one that is being opened.
  void Enter(bool within_limit) {
    std::unique_lock<std::mutex> lock(mutex);
    if (within_limit) changed.wait_for(lock, kCloseTimeout, [this] { return open < limit; });
    changed.wait(lock, [this] { return !paused; });
    ++open;
    ++opening;
  }
  void Leave(bool opened) {
    std::lock_guard<std::mutex> lock(mutex);
    --opening;
    if (!opened) --open;
    changed.notify_all();
  }
  void BeginToClose() {
    std::lock_guard<std::mutex> lock(mutex);
    ++closing;
  }
  void Closed() {
    std::lock_guard<std::mutex> lock(mutex);
    --closing;
    --open;
    ++closings;
    changed.notify_all();
  }
  uint64_t Closings() {
    std::lock_guard<std::mutex> lock(mutex);
    return closings;
  }
  // True as soon as a file has been closed since Closings() was `seen`. False when none is being closed, or none is
  // within a second.
  bool WaitForAnother(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_for(lock, kLongestWait, [&] { return closings != seen || closing == 0; });
    return closings != seen;
  }
};

class Files::OpenDescriptor : public Descriptor {
 public:
  OpenDescriptor(UniqueFd fd, int duplicate, std::shared_ptr<State> state)
      : Descriptor(fd.get()),
        fd_(std::make_shared<UniqueFd>(std::move(fd))),
        duplicate_(duplicate),
        state_(std::move(state)) {}
  ~OpenDescriptor() override {
    state_->BeginToClose();
    auto close = [fd = std::move(fd_), duplicate = duplicate_, state = state_] {
      CloseRegistered(*state->api, std::move(*fd), duplicate);
      state->Closed();
    };
    if (!state_->closers.Post(close).ok()) close();
  }

  // Opens a file, compares it with `expected` and registers it. `within_limit`: see State::Enter.
  static Status Open(const std::shared_ptr<State>& state, const std::string& path, const FileIdentity& expected,
                     bool within_limit, std::shared_ptr<Descriptor>* out) {
    state->Enter(within_limit);
    UniqueFd fd;
    int duplicate = 0;
    Status opened = OpenRegistered(*state, path, expected, &fd, &duplicate);
    if (opened.ok()) *out = std::make_shared<OpenDescriptor>(std::move(fd), duplicate, state);
    state->Leave(opened.ok());
    return opened;
  }

 private:
  static Status OpenRegistered(State& state, const std::string& path, const FileIdentity& expected, UniqueFd* out,
                               int* duplicate);

  std::shared_ptr<UniqueFd> fd_;
  const int duplicate_;
  const std::shared_ptr<State> state_;
};

class Files::OpenFile : public RegisteredFile {
 public:
  OpenFile(const std::string& path, const FileIdentity& identity, std::shared_ptr<Descriptor> through,
           std::shared_ptr<State> state)
      : RegisteredFile(path, identity), state_(std::move(state)), descriptor_(std::move(through)) {}

  std::shared_ptr<Descriptor> descriptor() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return descriptor_;
  }

  Status Renew(const Descriptor& known) override {
    std::lock_guard<std::mutex> one(renewing_);
    if (descriptor().get() != &known) return Status::Ok();
    std::shared_ptr<Descriptor> anew;
    FST_RETURN_IF_ERROR(OpenDescriptor::Open(state_, path(), identity(), /*within_limit=*/false, &anew));
    std::lock_guard<std::mutex> lock(mutex_);
    descriptor_.swap(anew);
    return Status::Ok();
  }

  Status CheckUnchanged() override {
    const std::shared_ptr<Descriptor> through = descriptor();
    FileIdentity now;
    Status found = FileIdentity::OfServer(through->number, path(), &now);
    if (MeansDaemonGone(found.os_error())) return Renew(*through);  // which compares it, too
    FST_RETURN_IF_ERROR(found);
    return identity().CheckSame(now, path());
  }

 private:
  const std::shared_ptr<State> state_;
  std::mutex renewing_;
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<Descriptor> descriptor_;
};

Files::Files(const UsrbioApi& api, std::string mount) : state_(std::make_shared<State>()) {
  state_->api = &api;
  state_->mount = std::move(mount);
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) state_->limit = OpenFilesFor(limit.rlim_cur, UsedDescriptors());
}

Files::~Files() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->open == 0; });
}

void Files::Pause() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->paused = true;
  state_->changed.wait_for(lock, kLongestWait, [this] { return state_->opening == 0; });
}

void Files::Resume() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->paused = false;
  state_->changed.notify_all();
}

Status Files::OpenDescriptor::OpenRegistered(State& state, const std::string& path, const FileIdentity& expected,
                                             UniqueFd* out, int* duplicate) {
  for (int restarts = 0;;) {
    const uint64_t evictions = HeaderFdCache::evictions(), closings = state.Closings();
    UniqueFd fd;
    Status opened = OpenUnchanged(path, 0, expected, &fd);
    if (!opened.ok()) {
      if (OutOfDescriptors(opened.os_error()) && (state.WaitForAnother(closings) || CloseOneLostFd())) continue;
      if (opened.code() == Code::IO_ERROR) FST_RETURN_IF_ERROR(ProbeMount(state.mount).At(path));
      return opened;
    }
    const int error = Register(*state.api, &fd, duplicate);
    if (error == 0) {
      GiveBackLostFds(*state.api, fd.get());
      *out = std::move(fd);
      return Status::Ok();
    }
    const bool dead = error == EBADF && !Answers(fd.get());
    fd = UniqueFd();
    const bool few = OutOfDescriptors(error);
    if (few && (HeaderFdCache::EvictAll(evictions) || state.WaitForAnother(closings) || CloseOneLostFd())) continue;
    FST_RETURN_IF_ERROR(ProbeMount(state.mount).At(path));
    if (dead && ++restarts <= kMaxRestarts) continue;
    std::string where;
    if (error == EBADF) FST_RETURN_IF_ERROR(ExtractMountPoint(path, &where));
    const std::string remedy = few ? "; each file takes two descriptors" + DescriptorRemedy(error) : "";
    return Status(Code::THREEFS_ERROR,
                  Format("%s: the 3FS client library does not take this file: %s%s", path.c_str(),
                         ErrnoText(error).c_str(), remedy.c_str()),
                  error)
        .At(path);
  }
}

Status Files::Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) {
  std::shared_ptr<Descriptor> through;
  FST_RETURN_IF_ERROR(OpenDescriptor::Open(state_, path, expected, /*within_limit=*/true, &through));
  *out = std::make_shared<OpenFile>(path, expected, std::move(through), state_);
  return Status::Ok();
}

}  // namespace fst::usrbio
