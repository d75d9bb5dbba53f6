#include "base/fd_table.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/thread.h"

namespace fst {

void ExpectDescriptors(uint32_t count) {
  constexpr rlim_t kMost = 64 * 1024;          // 8 bytes each, of the kernel's memory
  static std::atomic<rlim_t> longest{64};  // of a new process
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min({rlim_t{count}, kMost, limit.rlim_cur});
  if (wanted <= longest) return;
  longest = wanted;
  // Not counted in metrics: it is open for a moment, and is no file of a load.
  (void)StartThread("fst-fd-table", [last = static_cast<int>(wanted) - 1] {
    const int any = eventfd(0, EFD_CLOEXEC);
    if (any < 0) return;
    const int highest = fcntl(any, F_DUPFD_CLOEXEC, last);
    if (highest >= 0) close(highest);
    close(any);
  });
}

}  // namespace fst
