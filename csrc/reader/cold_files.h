// Whether files are better read past the page cache (O_DIRECT).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace fst {

struct WantedFile {
  std::string path;
  uint64_t begin = 0, end = 0;  // the bytes of it that are wanted
};

// True when hardly any of the wanted pages are in memory, and the file systems read from disks of this machine: direct
// reads take a fifth less time there, and a third of the CPU's. Looks at some files, at some places of each. False
// where that cannot be told: the kernel tells it of files that the caller owns or may write to. Any thread; blocks.
bool AreCold(const std::vector<WantedFile>& files);

}  // namespace fst
