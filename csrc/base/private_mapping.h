// A private mapping of a file: its pages are the page cache's, and what is written to them is this process's alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/status.h"

namespace fst {

// All methods: any thread.
class PrivateMapping {
 public:
  // Bytes [begin, end) of the file.
  using Range = std::pair<uint64_t, uint64_t>;

  // Maps all pages that a range, which is not empty, touches. Touches nothing. The errno of mmap(2), 0 on success.
  // Populate and Detach want a kernel that PopulatesMappings().
  static int Create(int fd, Range range, std::unique_ptr<PrivateMapping>* out);
  ~PrivateMapping();
  PrivateMapping(const PrivateMapping&) = delete;
  PrivateMapping& operator=(const PrivateMapping&) = delete;

  // Where a byte of the file lies. Ranges, here and below, are inside of the mapped pages.
  char* At(uint64_t offset) const { return address_ + (offset - pages_.first); }
  // The mapped pages.
  Range pages() const { return pages_; }
  // All pages that a range touches.
  static Range PagesAround(Range range);

  // See ResidentPart.
  double Resident(Range range) const;

  // Whether each page of a range is known to be in memory: false where the kernel does not say.
  bool AllResident(Range range) const;

  // See PopulatePages.
  int Populate(Range range) const;

  // Puts memory of this process's own in the place of all pages that the ranges touch: same addresses, same bytes, also
  // of what was written to them. From then on nothing that happens to the file reaches them. Blocks; several such calls
  // of the process take turns. 0, or an errno; *ranges then holds the pages that could not be kept: EFAULT, where the
  // file does not have them any more, EIO and so on; ENOMEM before any other, where there was no memory for more.
  //
  // A write to such a page at the very time when it is exchanged is kept. Until it is (below a millisecond) reads may
  // see what was there before. What a driver has pinned for its own writes is not seen to.
  int Detach(std::vector<Range>* ranges) const;

  // Gives back what this process has of its own in whole pages of the range, which nobody may be using: later they show
  // the file again, those that were detached zeros.
  void Discard(Range range) const;

 private:
  PrivateMapping(char* address, Range pages, bool told) : address_(address), pages_(pages), told_(told) {}
  char* const address_;
  const Range pages_;
  const bool told_;  // the kernel says of this file what is in memory
};

}  // namespace fst
