#include "base/fd_table.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace fst {

void GrowFdTable(size_t count) {
  constexpr size_t kMost = 64 * 1024;  // 8 bytes each, of the kernel's memory
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto length = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, std::min(count, kMost)));
  // Not counted in metrics: they are open for a moment, and are no files of a load.
  const int any = eventfd(0, EFD_CLOEXEC);
  const int last = any < 0 ? -1 : fcntl(any, F_DUPFD_CLOEXEC, length - 1);
  for (int fd : {any, last})
    if (fd >= 0) close(fd);
}

}  // namespace fst
