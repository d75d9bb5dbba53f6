#include "device/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <limits>
#include <memory>
#include <vector>

#include "base/page.h"
#include "base/thread.h"

namespace fst {
namespace {

constexpr size_t kTouchedByOne = size_t{16} << 20, kMaxTouchers = 4;

Status Refused(size_t bytes, int error) {
  return Status(Code::OUT_OF_HOST_MEMORY,
                Format("asked for %zu bytes of host memory, %llu are available: %s; load fewer tensors at a time "
                       "(maxBatchBytes, filter)",
                       bytes, static_cast<unsigned long long>(AvailableHostBytes()), ErrnoText(error).c_str()));
}

// The first number in a file; the maximum if there is none, or the word "max".
uint64_t NumberIn(const char* path) {
  uint64_t value = std::numeric_limits<uint64_t>::max();
  if (FILE* file = fopen(path, "re")) {
    unsigned long long number;
    if (fscanf(file, "%llu", &number) == 1) value = number;
    fclose(file);
  }
  return value;
}

// A figure of /proc/meminfo, in bytes; the maximum if there is none.
uint64_t FromMeminfo(const char* format) {
  uint64_t value = std::numeric_limits<uint64_t>::max();
  if (FILE* file = fopen("/proc/meminfo", "re")) {
    char line[128];
    unsigned long long kib;
    while (fgets(line, sizeof line, file)) {
      if (sscanf(line, format, &kib) == 1) value = kib * 1024;
    }
    fclose(file);
  }
  return value;
}

// In a container the group's own limit is at the mount's root (cgroup v2, then v1).
uint64_t GroupLimit() {
  return std::min(NumberIn("/sys/fs/cgroup/memory.max"), NumberIn("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
}

}  // namespace

Status AllocateHost(size_t bytes, void** out) {
  if (bytes < kHugePage) {
    int error = posix_memalign(out, bytes < kPage ? 256 : kPage, bytes);
    return error == 0 ? Status::Ok() : Refused(bytes, error);
  }
  if (bytes > std::numeric_limits<size_t>::max() / 4) return Refused(bytes, ENOMEM);
  size_t length = MappedBytes(bytes);
  void* reserved =
      mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return Refused(bytes, errno);
  uintptr_t start = reinterpret_cast<uintptr_t>(reserved);
  uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(reserved, aligned - start);
  uintptr_t end = start + length + kHugePage;
  if (end > aligned + length) munmap(reinterpret_cast<void*>(aligned + length), end - aligned - length);
  *out = reinterpret_cast<void*>(aligned);
  madvise(*out, length, MADV_HUGEPAGE);  // a hint: a kernel without huge pages faults small ones
  return Status::Ok();
}

void TouchHost(void* address, size_t bytes) {
  const size_t parts = std::clamp<size_t>(bytes / kTouchedByOne, 1, kMaxTouchers);
  const size_t part = (bytes / parts + kHugePage - 1) / kHugePage * kHugePage;
  auto touch = [=](size_t from) {
    auto* memory = static_cast<volatile char*>(address);
    for (size_t at = from; at < std::min(from + part, bytes); at += kPage) memory[at] = 0;
  };
  std::vector<std::future<void>> touched;
  for (size_t from = part; from < bytes; from += part) {
    auto task = std::make_shared<std::packaged_task<void()>>([=] { touch(from); });
    touched.push_back(task->get_future());
    if (!StartThread("fst-touch", [task] { (*task)(); }).ok()) (*task)();
  }
  touch(0);
  for (const std::future<void>& other : touched) other.wait();
}

void FreeHost(void* address, size_t bytes) {
  if (bytes < kHugePage) {
    free(address);
  } else {
    munmap(address, MappedBytes(bytes));
  }
}

uint64_t AvailableHostBytes() {
  // What the control group uses now is not subtracted: most of it is page cache, which the kernel reclaims.
  return std::min(FromMeminfo("MemAvailable: %llu kB"), GroupLimit());
}

uint64_t TotalHostBytes() { return std::min(FromMeminfo("MemTotal: %llu kB"), GroupLimit()); }

}  // namespace fst
