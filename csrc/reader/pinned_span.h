// A range of a file's page cache that a device copies from by itself: mapped, brought in and page-locked. It takes the
// place of a staging slot, and no processor copies the bytes. Nothing of this process ever touches the mapping: a file
// that becomes shorter is FILE_CHANGED and no SIGBUS.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "device/device.h"
#include "reader/open_file.h"

namespace fst {

class PinnedSpan {
 public:
  // Of a kernel that PopulatesMappings(). Locks all pages that `length` > 0 bytes at `offset` touch, for all devices of
  // the driver. OK with a null `*out`: the bytes have to be read, since they cannot be mapped or locked; `*why_not`
  // says why. IO_ERROR for a page that cannot be brought in, FILE_CHANGED. Any thread; blocks on the store and the
  // driver.
  static Status Pin(std::shared_ptr<const FdFile> file, uint64_t offset, uint64_t length,
                    const std::shared_ptr<Device>& device, std::unique_ptr<PinnedSpan>* out, std::string* why_not);

  // Unlocks and unmaps the pages, on any thread; blocks. No copy from them may be in flight. Pages that the driver does
  // not unlock stay mapped, and counted, until it does: see device/kept_memory.h.
  ~PinnedSpan();
  PinnedSpan(const PinnedSpan&) = delete;
  PinnedSpan& operator=(const PinnedSpan&) = delete;

  // The address of a byte of the file, which is one of `length` at `offset`. For copies by the device only.
  uint64_t At(uint64_t offset) const { return reinterpret_cast<uint64_t>(memory_) + (offset - begin_); }

  // FILE_CHANGED where copies that have ended may have read other bytes than those of the file that was opened. Any
  // thread; blocks.
  Status CheckUnchanged() const { return file_->CheckUnchanged(); }

 private:
  PinnedSpan(std::shared_ptr<const FdFile> file, std::shared_ptr<Device> device, void* memory, size_t size,
             uint64_t begin);

  const std::shared_ptr<const FdFile> file_;
  const std::shared_ptr<Device> device_;
  void* const memory_;
  const size_t size_;     // bytes of whole pages
  const uint64_t begin_;  // of the first page in the file
};

}  // namespace fst
