// Digests of ranges of a file, through the page cache.
#pragma once
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "base/file_identity.h"

namespace fst {

struct FileRange {
  uint64_t offset, length;
};

// One for each range. `progress` counts bytes. Any thread; blocks. IO_ERROR, FILE_CHANGED where the file is not
// `expected` before or after, UNEXPECTED_EOF for a range that ends behind the file.
Status DigestFile(const std::string& path, const FileIdentity& expected, DigestKind kind,
                  const std::vector<FileRange>& ranges, std::atomic<uint64_t>* progress, std::vector<Digest>* out);

}  // namespace fst
