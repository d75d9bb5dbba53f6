#include "emulators/hf3fs/files.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "emulators/hf3fs/mounts.h"

namespace emu {
namespace {

// True when `fd` is still the descriptor that was registered. By kcmp where the system lets us (it also sees a file
// that was closed and opened again), else by device and inode, which a dead FUSE mount does not tell.
bool IsSameDescriptor(int fd, const RegisteredFile& file) {
  long order = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, file.dup_fd);
  if (order >= 0) return order == 0;
  struct stat st;
  if (fstat(fd, &st) != 0) return errno != EBADF;
  return st.st_dev == file.device && st.st_ino == file.inode;
}

std::string Number(int fd) { return std::to_string(fd); }

}  // namespace

RegisteredFile::~RegisteredFile() {
  if (dup_fd >= 0) close(dup_fd);
  if (own_fd_ >= 0) close(own_fd_);
}

uint64_t RegisteredFile::DataEnd(uint64_t offset, uint64_t end) {
  uint64_t data_end = offset;
  for (uint64_t at = offset; at < end;) {
    off_t data = lseek(own_fd_, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) return errno == ENXIO ? data_end : end;  // ENXIO: only a hole is left
    if (static_cast<uint64_t>(data) >= end) return data_end;
    off_t hole = lseek(own_fd_, data, SEEK_HOLE);
    if (hole < 0) return end;
    data_end = std::min(static_cast<uint64_t>(hole), end);
    at = data_end;
  }
  return data_end;
}

bool RegisteredFile::OpenOwn() {
  if (own_fd_ < 0) own_fd_ = open(("/proc/self/fd/" + Number(dup_fd)).c_str(), O_RDONLY | O_CLOEXEC);
  return own_fd_ >= 0;
}

RegisteredFile::Holes RegisteredFile::HolesOf(uint64_t offset, uint64_t length) {
  Holes holes;
  std::shared_lock<std::shared_mutex> stays(open_);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!OpenOwn()) return holes;
  const auto begin = static_cast<off_t>(offset), end = begin + static_cast<off_t>(length);
  const off_t hole = lseek(own_fd_, begin, SEEK_HOLE);
  const off_t data = hole < 0 ? -1 : lseek(own_fd_, hole, SEEK_DATA);
  holes.at_start = hole == begin;
  holes.before_data = data >= 0 && data < end;
  return holes;
}

void RegisteredFile::CloseDuplicate() {
  std::unique_lock<std::shared_mutex> lock(open_);
  close(std::exchange(dup_fd, -1));
}

int64_t RegisteredFile::Read(uint8_t* to, uint64_t offset, uint64_t length) {
  const std::string now = LifeOf(mount);
  if (now != life) return now.empty() ? kNoAnswer : -EBADF;
  auto failed = [](int error) {
    if (error == ENOTCONN || error == ECONNABORTED) return kNoAnswer;
    return static_cast<int64_t>(error == ESTALE ? -EBADF : -error);  // ESTALE: a FUSE daemon does not know the file
  };
  std::shared_lock<std::shared_mutex> stays(open_);
  struct stat st;
  if (fstat(dup_fd, &st) != 0) return failed(errno);
  uint64_t size = static_cast<uint64_t>(st.st_size);
  if (offset >= size) return 0;
  uint64_t end = std::min(offset + length, size);
  bool sparse = static_cast<uint64_t>(st.st_blocks) * 512 < size;
  int fd = dup_fd;
  if (sparse || (flags & O_DIRECT) != 0) {
    std::lock_guard<std::mutex> lock(mutex_);  // lseek and what it finds belong together
    if (!OpenOwn()) return -errno;
    fd = own_fd_;
    if (sparse) end = DataEnd(offset, end);
  }
  uint64_t done = 0;
  while (offset + done < end) {
    ssize_t n = pread(fd, to + done, end - offset - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(errno);
    if (n == 0) break;  // truncated meanwhile
    done += static_cast<uint64_t>(n);
  }
  return static_cast<int64_t>(done);
}

int FileTable::Register(int fd, bool is_3fs, const std::string& root, int* dup_fd, std::string* misuse) {
  auto refuse = [this, fd](int error) { return Refuse(fd, error); };
  auto known = files_.find(fd);
  // Of a number that a dead daemon left taken, nobody can say whose it is by now.
  const bool stale = known != files_.end() && !known->second->IsKnown();
  if (known != files_.end() && !stale && !IsSameDescriptor(fd, *known->second)) {
    *misuse = "fd " + Number(fd) + " (" + known->second->path +
              ") was closed before dereg_fd, and its number is registered again";
    return refuse(EINVAL);
  }
  struct stat st;
  if (!is_3fs || fstat(fd, &st) != 0) return refuse(EBADF);
  if (known != files_.end()) return stale ? refuse(EINVAL) : EINVAL;
  int copy = dup(fd);  // which processes that are started inherit, as the library's
  if (copy < 0) return refuse(errno);
  auto taken = files_.find(copy);
  if (taken != files_.end()) {
    if (taken->second->IsKnown())
      *misuse = "fd " + Number(copy) + " (" + taken->second->path + ") was closed before dereg_fd";
    close(copy);
    return refuse(EINVAL);
  }
  auto file = std::make_shared<RegisteredFile>();
  file->fd = fd;
  file->dup_fd = copy;
  file->flags = fcntl(fd, F_GETFL);
  file->device = st.st_dev;
  file->inode = st.st_ino;
  file->path = PathOfFd(fd);
  file->mount = MountOf(file->path, root);
  file->life = LifeOf(file->mount);
  files_[fd] = files_[copy] = file;
  refused_.erase(fd);
  *dup_fd = copy;
  return 0;
}

void FileTable::Deregister(int fd, bool is_3fs, std::string* misuse) {
  auto known = files_.find(fd);
  if (known == files_.end()) {
    auto refused = refused_.find(fd);
    // Nothing happens, then, to a number that reg_fd has just refused as taken.
    if (refused != refused_.end() && refused->second == EINVAL) return;
    *misuse =
        "dereg_fd(" + Number(fd) + "), which is not registered (a second dereg_fd, or a registration that failed)";
    return;
  }
  std::shared_ptr<RegisteredFile> file = known->second;
  if (file->fd != fd) {
    *misuse = "dereg_fd(" + Number(fd) + ") of a duplicate that belongs to the library; fd " + Number(file->fd) +
              " was registered";
    return;
  }
  const bool alive = file->IsKnown();
  if (alive && !IsSameDescriptor(fd, *file)) {
    *misuse = "fd " + Number(fd) + " (" + file->path + ") was closed before dereg_fd";
    return;
  }
  if (!is_3fs) return;
  if (alive && file->in_flight > 0) {
    *misuse = "dereg_fd(" + Number(fd) + ") with " + Number(file->in_flight) + " ios of its file in flight";
  }
  files_.erase(file->dup_fd);
  files_.erase(fd);
  file->CloseDuplicate();
}

std::string FileTable::LifeOfNumber(int fd) const {
  auto known = files_.find(fd);
  return known != files_.end() && IsSameDescriptor(fd, *known->second) ? known->second->life : "";
}

std::shared_ptr<RegisteredFile> FileTable::Find(int fd, std::string* misuse) const {
  auto known = files_.find(fd < 0 ? -fd : fd);
  if (known == files_.end()) {
    auto refused = refused_.find(fd);
    *misuse = "prep_io on fd " + Number(fd) + ", which is not registered";
    if (refused != refused_.end()) {
      *misuse += ": reg_fd answered " + Number(refused->second) + " (" + strerror(refused->second) +
                 "), and a positive answer is an errno";
    }
    return nullptr;
  }
  if (known->first == known->second->fd && !IsSameDescriptor(known->first, *known->second)) {
    *misuse = "prep_io on fd " + Number(fd) + ", whose number stands for " + known->second->path +
              ", which was closed before dereg_fd, or left by a daemon that died";
  }
  return known->second;
}

std::string FileTable::Leftovers() const {
  std::string text;
  for (const auto& entry : files_) {
    if (entry.first == entry.second->fd && entry.second->IsKnown())
      text += " fd " + Number(entry.first) + " (" + entry.second->path + ")";
  }
  return text;
}

size_t FileTable::size() const {
  size_t count = 0;
  for (const auto& entry : files_) count += entry.first == entry.second->fd;
  return count;
}

}  // namespace emu
