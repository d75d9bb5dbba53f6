#include "reader/spot_file.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/file_system.h"
#include "base/mapped_pages.h"
#include "reader/open_file.h"

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008  // Linux 4.14
#endif

namespace fst {
namespace {

constexpr size_t kMostPages = 1024;  // that are looked at before a range is read

ssize_t ReadWithoutWaiting(int fd, const iovec* to, int count, off_t offset) {
  return preadv2(fd, to, count, offset, RWF_NOWAIT);
}

ssize_t ReadPlainly(int fd, const iovec* to, int count, off_t offset) { return preadv(fd, to, count, offset); }

// Whether all pages of a range are in memory and not swapped out. The kernel says so of every page where the file may
// not be written by this process; a page of those that is swapped out is waited for.
bool IsResident(int fd, uint64_t offset, uint64_t length) {
  const uint64_t begin = offset / PageSize() * PageSize();
  const uint64_t size = (offset + length - begin + PageSize() - 1) / PageSize() * PageSize();
  if (size > kMostPages * PageSize()) return false;
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (mapped == MAP_FAILED) return false;
  const bool resident = AllResident(static_cast<char*>(mapped), size, /*told=*/true);
  munmap(mapped, size);
  return resident;
}

}  // namespace

Status SpotFile::Open(std::shared_ptr<HeaderFdCache> fds, const std::string& path, const FileIdentity& expected,
                      std::shared_ptr<SpotFile>* out, ReadNow read_now) {
  out->reset();
  UniqueFd fd;
  FST_RETURN_IF_ERROR(OpenUnchanged(path, 0, expected, &fd));
  FileSystemTraits traits;
  if (FileSystemOf(fd.get(), &traits) != 0 || !traits.answers_at_once) return Status::Ok();
  std::shared_ptr<SpotFile> file(new SpotFile(std::move(fds), path, expected));
  file->read_now_ = read_now != nullptr ? read_now : ReadWithoutWaiting;
  char byte;
  const iovec to{&byte, 1};
  if (read_now == nullptr && ReadWithoutWaiting(fd.get(), &to, 1, 0) < 0 && errno != EAGAIN) {
    if (!traits.in_memory) return Status::Ok();
    struct sysinfo system;
    file->read_now_ = ReadPlainly;
    file->looks_first_ = sysinfo(&system) != 0 || system.totalswap > 0;
  }
  file->fds_->Put(path, std::move(fd));
  *out = std::move(file);
  return Status::Ok();
}

bool SpotFile::Read(const Range* ranges, size_t count) const {
  // The path means the expected file. So does the descriptor, if it does after the read: an inode that is open is not
  // used for another file.
  return HeaderFdCache::Use(path_, expected_, [&](int fd) {
    return std::all_of(ranges, ranges + count, [&](const Range& range) { return ReadRange(fd, range); }) &&
           expected_.CheckUnchanged(fd, path_).ok();
  });
}

bool SpotFile::ReadRange(int fd, const Range& range) const {
  if (looks_first_ && !IsResident(fd, range.offset, range.length)) return false;
  const iovec to{range.to, range.length};
  return read_now_(fd, &to, 1, static_cast<off_t>(range.offset)) == static_cast<ssize_t>(range.length);
}

}  // namespace fst
