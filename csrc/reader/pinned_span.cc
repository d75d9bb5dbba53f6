#include "reader/pinned_span.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "base/io_error.h"
#include "base/mapped_pages.h"
#include "base/metrics.h"
#include "device/kept_memory.h"

namespace fst {
namespace {

void CountStaging(int64_t bytes) { Metrics::Get().staging_bytes.fetch_add(bytes, std::memory_order_relaxed); }

}  // namespace

Status PinnedSpan::Pin(std::shared_ptr<const FdFile> file, uint64_t offset, uint64_t length,
                       const std::shared_ptr<Device>& device, std::unique_ptr<PinnedSpan>* out, std::string* why_not) {
  const uint64_t begin = offset / PageSize() * PageSize();
  const uint64_t end = (offset + length + PageSize() - 1) / PageSize() * PageSize();
  const size_t size = end - begin;
  // Shared: of a private mapping, the kernel locks copies for a driver that asks for a long time (FOLL_LONGTERM;
  // gup_must_unshare of Linux's mm/gup.c), and nothing would be gained. Each span has a mapping of its own, since
  // registrations must not overlap, and neighbours may have a page in common.
  void* memory = mmap(nullptr, size, PROT_READ, MAP_SHARED, file->fd(), static_cast<off_t>(begin));
  if (memory == MAP_FAILED) {
    *why_not = file->path() + " cannot be mapped: " + ErrnoText(errno);
    return Status::Ok();
  }
  Status pinned;
  if (int error = PopulatePages(static_cast<char*>(memory), size, TellsWhatIsResident(file->fd()))) {
    pinned = file->CheckUnchanged();
    if (pinned.ok()) pinned = ReadFailed(*file, offset, length, error);
  } else if (Status locked = device->PinReadOnly(memory, size); !locked.ok()) {
    *why_not = locked.message();
    pinned = file->CheckUnchanged();  // a file that is shorter by now has no such pages
  } else {
    out->reset(new PinnedSpan(std::move(file), device, memory, size, begin));
    return Status::Ok();
  }
  munmap(memory, size);
  return pinned;
}

PinnedSpan::PinnedSpan(std::shared_ptr<const FdFile> file, std::shared_ptr<Device> device, void* memory, size_t size,
                       uint64_t begin)
    : file_(std::move(file)), device_(std::move(device)), memory_(memory), size_(size), begin_(begin) {
  CountStaging(static_cast<int64_t>(size_));
}

PinnedSpan::~PinnedSpan() {
  CountStaging(-static_cast<int64_t>(size_));
  ReleaseMemory([device = device_, memory = memory_] { return device->UnpinHostMemory(memory); },
                [memory = memory_, size = size_] { munmap(memory, size); }, size_, &Metrics::Get().staging_bytes);
}

}  // namespace fst
