// Read leases on files (fcntl(2), F_SETLEASE F_RDLCK): who opens such a file for writing, or truncates it, waits in
// the kernel until the lease is given back, at most /proc/sys/fs/lease-break-time seconds (45). Renaming and unlinking
// break no lease, nor does open(2) with O_RDONLY | O_TRUNC, whose effect POSIX leaves open.
#pragma once
#include <memory>

namespace fst {

// Who holds a lease. The thread fst-lease notices breaks; it lives while there are leases, and has its own signals, so
// that it needs no handler of the process. Holders are called on other threads, MostLeasesServed() at a time and each
// by one: who is slow holds up no other until so many are.
class LeaseHolder {
 public:
  virtual ~LeaseHolder() = default;
  // Somebody waits. True: may go on, the lease is over. False: not yet; called again soon.
  virtual bool OnBreak() = 0;
  // The kernel let the writer go on before OnBreak() had returned true: this process was stopped or too slow.
  virtual void OnLost() = 0;
};

// As many as there are processors, but 2 at least and 8 at most.
int MostLeasesServed();

// Takes a lease on a file that is open for reading only. 0, or the errno of the step that failed: EAGAIN where somebody
// has the file open for writing, EACCES for a file of another user without CAP_LEASE, EINVAL for a file system without
// leases. Any thread, blocks for a moment.
int TakeReadLease(int fd, std::weak_ptr<LeaseHolder> holder);

// Whether it is still held and nobody waits for its end. Any thread.
bool HoldsReadLease(int fd);

// Gives it back. To be called before the descriptor is closed; does nothing for one without a lease. Any thread.
void EndReadLease(int fd);

}  // namespace fst
