#include "reader/usrbio_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>

#include "base/fd.h"
#include "reader/file_reader.h"
#include "reader/mount_point.h"
#include "reader/usrbio_iov.h"

namespace fst::usrbio {
namespace {

constexpr int kClosers = 2;
constexpr int kLeast = 8, kMost = 256;
constexpr uint64_t kReserve = 16;  // descriptors left to the rest of the process
constexpr auto kPatience = std::chrono::milliseconds(100);

uint64_t UsedDescriptors() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 64;
  uint64_t count = 0;
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

bool IsLimit(int error) { return error == EMFILE || error == ENFILE; }

}  // namespace

int OpenFilesFor(uint64_t limit, uint64_t used) {
  uint64_t free_descriptors = limit > used + kReserve ? limit - used - kReserve : 0;
  return static_cast<int>(std::clamp<uint64_t>(free_descriptors / 2, kLeast, kMost));
}

struct Files::State {
  const UsrbioApi* api;
  std::string mount;
  int limit = kLeast;
  // A FUSE close is a round trip to the daemon: never on the I/O thread.
  TaskPool closers{"fst-3fs-close", kClosers};
  std::mutex mutex;
  std::condition_variable closed;
  int open = 0;

  // The limit is a soft one: files that are open ahead may wait for one that is not open yet.
  void Enter() {
    std::unique_lock<std::mutex> lock(mutex);
    closed.wait_for(lock, kPatience, [this] { return open < limit; });
    ++open;
  }
  void Leave() {
    std::lock_guard<std::mutex> lock(mutex);
    --open;
    closed.notify_all();
  }
  // False when no other file is open whose end could help.
  bool WaitForAnother() {
    std::unique_lock<std::mutex> lock(mutex);
    if (open <= 1) return false;
    closed.wait_for(lock, kPatience);
    return true;
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
      state->Leave();
    };
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
  state_->closed.wait(lock, [this] { return state_->open == 0; });
}

Status Files::Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) {
  State& state = *state_;
  state.Enter();
  auto fail = [&state](Status status) {
    state.Leave();
    return status;
  };
  for (;;) {
    UniqueFd fd;
    errno = 0;
    Status opened = OpenUnchanged(path, 0, expected, &fd);
    if (!opened.ok()) {
      int error = opened.code() == Code::IO_ERROR ? errno : 0;
      if (IsLimit(error) && state.WaitForAnother()) continue;
      if (error == ENOTCONN || error == ECONNABORTED)
        opened = MountError(state.mount, error, path + " cannot be opened").At(path);
      return fail(opened);
    }
    int error = state.api->reg_fd(fd.get(), 0);  // <= 0 is success
    if (error <= 0) {
      *out = std::make_shared<OpenFile>(path, expected, std::move(fd), state_);
      return Status::Ok();
    }
    if (IsLimit(error) && state.WaitForAnother()) continue;
    Status alive = ProbeMount(state.mount);
    if (!alive.ok()) return fail(alive.At(path));
    std::string mount;
    if (error == EBADF) {
      Status where = ExtractMountPoint(path, &mount);
      if (!where.ok()) return fail(where);
    }
    return fail(Status(Code::THREEFS_ERROR,
                       Format("%s: the 3FS client library does not take this file: %s%s", path.c_str(),
                              ErrnoText(error).c_str(),
                              IsLimit(error) ? "; each file takes two descriptors, raise the limit (ulimit -n)" : ""))
                    .At(path));
  }
}

int Files::FdOf(const ReaderFile& file) { return static_cast<const OpenFile&>(file).fd(); }

Status Files::CheckUnchanged(const ReaderFile& file) {
  int fd = FdOf(file);
  struct statx fresh;  // makes the kernel ask the daemon, so that the fstat behind Of() is not last minute's
  (void)statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &fresh);
  FileIdentity now;
  FST_RETURN_IF_ERROR(FileIdentity::Of(fd, file.path(), &now));
  return file.identity().CheckSame(now, file.path());
}

bool Files::IsHole(const ReaderFile& file, uint64_t begin, uint64_t end) {
  // A file system that knows no holes names the offset itself.
  off_t data = lseek(FdOf(file), static_cast<off_t>(begin), SEEK_DATA);
  if (data < 0) return errno == ENXIO && end <= file.size();
  return static_cast<uint64_t>(data) >= end;
}

}  // namespace fst::usrbio
