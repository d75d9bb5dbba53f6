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
#include "reader/open_file.h"
#include "reader/usrbio/mount_point.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {
namespace {

constexpr int kMaxClosers = 2;
constexpr int kMinOpenFiles = 8, kMaxOpenFiles = 256;
constexpr uint64_t kReservedFds = 16;  // left to the rest of the process
constexpr size_t kMaxFdsTried = 4096;  // far more numbers than the library can hold
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

// reg_fd; <= 0 is success. When the daemon was dead while a file was deregistered, the library keeps the file's number
// for ever (EINVAL for the next file with it): the file is then duplicated until the library takes its number.
int Register(const UsrbioApi& api, UniqueFd* fd) {
  std::vector<UniqueFd> tried;  // kept open, so that no number comes twice
  int result = api.reg_fd(fd->get(), 0);
  while (result == EINVAL && tried.size() < kMaxFdsTried) {
    UniqueFd other(fcntl(fd->get(), F_DUPFD_CLOEXEC, 0));
    if (!other.valid()) return errno;
    tried.push_back(std::exchange(*fd, std::move(other)));
    result = api.reg_fd(fd->get(), 0);
  }
  // -result is the library's own duplicate, which started processes would inherit.
  struct stat own, copy;
  bool same = result < 0 && fstat(fd->get(), &own) == 0 && fstat(-result, &copy) == 0 && own.st_dev == copy.st_dev &&
              own.st_ino == copy.st_ino;
  if (same) (void)fcntl(-result, F_SETFD, FD_CLOEXEC);
  return result;
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
  int open = 0, opening = 0, closing = 0;  // files; of them, those in Open() and those that closers close
  uint64_t closings = 0;                   // ever
  bool paused = false;

  // A soft limit, with a timeout: reads of the files that are open may depend on the one that is being opened.
  void Enter() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_for(lock, kCloseTimeout, [this] { return open < limit; });
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

class Files::OpenFile : public ReaderFile {
 public:
  OpenFile(const std::string& path, const FileIdentity& identity, UniqueFd fd, std::shared_ptr<State> state)
      : ReaderFile(path, identity), fd_(std::make_shared<UniqueFd>(std::move(fd))), state_(std::move(state)) {}
  ~OpenFile() override {
    auto close = [fd = std::move(fd_), state = state_]() mutable {
      state->api->dereg_fd(fd->get());  // before close: the library knows files by their numbers
      fd.reset();
      state->Closed();
    };
    state_->BeginToClose();
    if (!state_->closers.Post(close).ok()) close();
  }
  int fd() const { return fd_->get(); }

 private:
  std::shared_ptr<UniqueFd> fd_;
  std::shared_ptr<State> state_;
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

Status Files::Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) {
  State& state = *state_;
  state.Enter();
  auto fail = [&state](Status status) {
    state.Leave(/*opened=*/false);
    return status;
  };
  for (;;) {
    const uint64_t seen = HeaderFdCache::evictions(), closings = state.Closings();
    UniqueFd fd;
    Status opened = OpenUnchanged(path, 0, expected, &fd);
    if (!opened.ok()) {
      if (OutOfDescriptors(opened.os_error()) && state.WaitForAnother(closings)) continue;
      if (opened.code() == Code::IO_ERROR) {
        Status alive = ProbeMount(state.mount);
        if (!alive.ok()) opened = alive.At(path);
      }
      return fail(opened);
    }
    const int error = Register(*state.api, &fd);  // <= 0 is success
    if (error <= 0) {
      *out = std::make_shared<OpenFile>(path, expected, std::move(fd), state_);
      state.Leave(/*opened=*/true);
      return Status::Ok();
    }
    fd = UniqueFd();
    if (OutOfDescriptors(error) && (HeaderFdCache::EvictAll(seen) || state.WaitForAnother(closings))) continue;
    Status alive = ProbeMount(state.mount);
    if (!alive.ok()) return fail(alive.At(path));
    std::string mount;
    if (error == EBADF) {
      Status where = ExtractMountPoint(path, &mount);
      if (!where.ok()) return fail(where);
    }
    return fail(
        Status(
            Code::THREEFS_ERROR,
            Format(
                "%s: the 3FS client library does not take this file: %s%s", path.c_str(), ErrnoText(error).c_str(),
                OutOfDescriptors(error) ? ("; each file takes two descriptors" + DescriptorRemedy(error)).c_str() : ""),
            error)
            .At(path));
  }
}

int Files::FdOf(const ReaderFile& file) { return static_cast<const OpenFile&>(file).fd(); }

Status Files::CheckUnchanged(const ReaderFile& file) {
  FileIdentity now;
  FST_RETURN_IF_ERROR(FileIdentity::OfServer(FdOf(file), file.path(), &now));
  return file.identity().CheckSame(now, file.path());
}

}  // namespace fst::usrbio
