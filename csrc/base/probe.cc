#include "base/probe.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "base/fd.h"
#include "base/io_error.h"
#include "base/page.h"

namespace fst {
namespace {

// The same number on every architecture; not in the headers of older systems.
constexpr int kCachestat = 451;

int ErrnoUnless(bool worked) { return worked ? 0 : errno; }

// One page of memory, at a multiple of its size.
class Page {
 public:
  Page() : data_(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Page() {
    if (valid()) munmap(data_, kPage);
  }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  bool valid() const { return data_ != MAP_FAILED; }
  void* data() const { return data_; }

 private:
  void* data_;
};

int ProbeIoUring() {
  alignas(8) uint8_t params[120] = {};                       // struct io_uring_params
  const long made = syscall(SYS_io_uring_setup, 1, params);  // NOLINT(google-runtime-int)
  const int error = ErrnoUnless(made >= 0);
  UniqueFd fd(static_cast<int>(made));
  return error;
}

int ProbeLease(int fd) {
  if (fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return errno;
  return ErrnoUnless(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
}

int ProbeResidentRead(int fd) {
  char byte;
  iovec part = {&byte, 1};
  const long got = syscall(SYS_preadv2, fd, &part, 1, 0, 0, RWF_NOWAIT);  // NOLINT(google-runtime-int)
  return got < 0 && errno != EAGAIN ? errno : 0;                          // EAGAIN: it works, and the page is not there
}

int ProbeResidentMap(int fd) {
  void* map = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return errno;
  unsigned char resident;
  const int error = ErrnoUnless(mincore(map, kPage, &resident) == 0);
  munmap(map, kPage);
  return error;
}

int ProbeCacheCounts(int fd) {
  struct {
    uint64_t offset, length;
  } range = {0, 0};
  uint64_t counts[5];
  return ErrnoUnless(syscall(kCachestat, fd, &range, counts, 0) == 0);
}

int ProbeDirect(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  Page page;
  if (!fd.valid() || !page.valid()) return errno;
  return ErrnoUnless(pread(fd.get(), page.data(), kPage, 0) >= 0);
}

}  // namespace

SystemProbe ProbeSystem() {
  SystemProbe found;
  found.io_uring = ProbeIoUring();
  Page page;
  found.memory_placement =
      ErrnoUnless(page.valid() && syscall(SYS_mbind, page.data(), kPage, MPOL_DEFAULT, nullptr, 0, 0) == 0);
  return found;
}

Status ProbeFile(const std::string& path, FileProbe* out) {
  *out = {};
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return IoError(path, "open " + path, errno);
  out->lease = ProbeLease(fd.get());
  out->resident_read = ProbeResidentRead(fd.get());
  out->resident_map = ProbeResidentMap(fd.get());
  out->cache_counts = ProbeCacheCounts(fd.get());
  out->direct = ProbeDirect(path);
  return Status::Ok();
}

}  // namespace fst
