// Copies ranges of a file to another one, through the page cache.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/file_identity.h"
#include "device/save_bytes.h"

namespace fst {

struct CopyRange {
  uint64_t offset, length;  // in the source
  uint64_t position;        // in the target
};

// `target.position` is not used. `progress` counts bytes. Any thread; blocks. IO_ERROR; FILE_CHANGED where the source
// is not `expected` before or after; UNEXPECTED_EOF for a range that ends behind it.
Status CopyRanges(const std::string& path, const FileIdentity& expected, const std::vector<CopyRange>& ranges,
                  FilePlace target, std::atomic<uint64_t>* progress);

}  // namespace fst
