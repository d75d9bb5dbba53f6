#include "base/mapped_pages.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/page.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef PIDFD_SELF
#define PIDFD_SELF (-10000)
#endif

namespace fst {
namespace {

// Which pages are asked for: one in so many bytes. Each is a call that takes the lock of all mappings.
struct Sampling {
  uint64_t every, least, most;
};
constexpr Sampling kWhole = {128 << 10, 8, 64};
constexpr Sampling kBefore = {512 << 10, 2, 8};  // before pages are brought in: all are looked at then
constexpr uint64_t kAround = 64 << 10;           // a read fault maps what is in memory of the aligned 64 KiB around it
constexpr size_t kBroughtIn = 256;               // pages that are brought in at once, in 16 MiB
constexpr uint64_t kLookedAt = 4096;             // pages whose residency is asked for at once

int Advise(char* pages, uint64_t length, int advice) {
  for (;;) {
    if (madvise(pages, length, advice) == 0) return 0;
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
}

double ResidentPartOf(char* pages, uint64_t length, const Sampling& sampling) {
  const uint64_t count = length / PageSize();
  const uint64_t samples = std::min(count, std::clamp(length / sampling.every, sampling.least, sampling.most));
  int resident = 0;
  for (uint64_t i = 0; i < samples; ++i) {
    unsigned char in_memory = 0;
    const uint64_t page = samples == count ? i : i * (count - 1) / (samples - 1);
    if (mincore(pages + page * PageSize(), PageSize(), &in_memory) == 0) resident += in_memory & 1;
  }
  return samples == 0 ? 1 : static_cast<double>(resident) / static_cast<double>(samples);
}

// Has the kernel bring in these pages, all by one call where it can (Linux 6.15).
bool BringIn(const iovec* pages, size_t count) {
  const auto bytes = static_cast<long>(count * PageSize());
  if (syscall(SYS_process_madvise, PIDFD_SELF, pages, count, MADV_POPULATE_READ, 0) == bytes) return true;
  return std::all_of(pages, pages + count, [](const iovec& page) {
    return Advise(static_cast<char*>(page.iov_base), PageSize(), MADV_POPULATE_READ) == 0;
  });
}

// False: some were not in memory, or it cannot be known.
bool BringInResident(char* pages, uint64_t length, bool told) {
  if (!told || ResidentPartOf(pages, length, kBefore) < 1) return false;
  char* const end = pages + length;
  iovec some[kBroughtIn];
  size_t count = 0;
  for (char* at = pages; at < end; at += kAround - reinterpret_cast<uintptr_t>(at) % kAround) {
    some[count++] = {at, PageSize()};
    if (count == kBroughtIn && !BringIn(some, std::exchange(count, 0))) return false;
  }
  // The page cache may hold a page that a shorter file has no more, as part of a large folio.
  some[count++] = {end - PageSize(), PageSize()};
  return BringIn(some, count) && AllResident(pages, length, told);
}

}  // namespace

uint64_t PageSize() {
  static const uint64_t size = std::max<uint64_t>(kPage, static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  return size;
}

bool PopulatesMappings() {
  static const bool populates = [] {
    void* page = mmap(nullptr, PageSize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return false;
    auto* const pages = static_cast<char*>(page);
    const bool both =
        Advise(pages, PageSize(), MADV_POPULATE_READ) == 0 && Advise(pages, PageSize(), MADV_POPULATE_WRITE) == 0;
    munmap(page, PageSize());
    return both;
  }();
  return populates;
}

bool TellsWhatIsResident(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && info.st_uid == geteuid();
}

double ResidentPart(char* pages, uint64_t length) { return ResidentPartOf(pages, length, kWhole); }

bool AllResident(char* pages, uint64_t length, bool told) {
  unsigned char resident[kLookedAt];
  for (uint64_t done = 0; told && done < length;) {
    const uint64_t some = std::min(kLookedAt, (length - done) / PageSize());
    if (mincore(pages + done, some * PageSize(), resident) != 0) return false;
    if (!std::all_of(resident, resident + some, [](unsigned char page) { return (page & 1) != 0; })) return false;
    done += some * PageSize();
  }
  return told;
}

// MADV_POPULATE_READ looks up each page; the fault of one maps those around it at once. So one of each 64 KiB is asked
// for: four fifths of the time, and a third where the page cache has large folios. A page that is not there needs the
// slow way, which says what is wrong with it.
int PopulatePages(char* pages, uint64_t length, bool told) {
  return BringInResident(pages, length, told) ? 0 : Advise(pages, length, MADV_POPULATE_READ);
}

void DropPages(char* pages, uint64_t length) { (void)Advise(pages, length, MADV_DONTNEED); }

int PopulatePagesForWrites(char* pages, uint64_t length) { return Advise(pages, length, MADV_POPULATE_WRITE); }

}  // namespace fst
