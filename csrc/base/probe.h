// What the kernel lets this process do: tried, since containers refuse what a kernel of that version has.
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

// Each is 0 where it works, else the errno that says why not.
struct SystemProbe {
  int io_uring = 0;          // io_uring_setup
  int memory_placement = 0;  // mbind: memory on the NUMA node of a device
};
struct FileProbe {
  int lease = 0;          // a read lease: F_SETLEASE
  int resident_read = 0;  // a read that takes only what is in the page cache: preadv2 with RWF_NOWAIT
  int resident_map = 0;   // which pages of a mapping are in the page cache: mincore
  int cache_counts = 0;   // how many of a file's pages are: cachestat, since Linux 6.5
  int direct = 0;         // a read past the page cache: O_DIRECT
};

// Leaves nothing behind. Blocks for as long as a system call takes.
SystemProbe ProbeSystem();

// Tries these on a regular file of at least 4096 bytes, which stays as it is. IO_ERROR where it cannot be opened.
Status ProbeFile(const std::string& path, FileProbe* out);

}  // namespace fst
