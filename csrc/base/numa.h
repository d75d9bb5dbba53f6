// Memory near a device, without libnuma: one system call each.
#pragma once
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

namespace fst {

// During its lifetime, pages that this thread faults (or allocates in shared memory) come from `node` where that has
// room. Does nothing for -1 and on a system without NUMA.
class PreferNode {
 public:
  explicit PreferNode(int node) : active_(node >= 0 && node < 64) {
    unsigned long mask = active_ ? 1UL << node : 0;  // NOLINT(google-runtime-int): the system call's type
    if (active_) active_ = syscall(SYS_set_mempolicy, MPOL_PREFERRED, &mask, sizeof mask * 8 + 1) == 0;
  }
  ~PreferNode() {
    if (active_) syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0);
  }
  PreferNode(const PreferNode&) = delete;
  PreferNode& operator=(const PreferNode&) = delete;

 private:
  bool active_;
};

// The pages of [address, address + bytes) come from `node` where that has room, whichever thread faults them. For whole
// pages that no thread has faulted yet. A preference only: without it, memory is slower.
inline void PreferNodeFor(void* address, size_t bytes, int node) {
  if (node < 0 || node >= 64) return;
  unsigned long mask = 1UL << node;  // NOLINT(google-runtime-int): the system call's type
  (void)syscall(SYS_mbind, address, bytes, MPOL_PREFERRED, &mask, sizeof mask * 8 + 1, 0);
}

}  // namespace fst
