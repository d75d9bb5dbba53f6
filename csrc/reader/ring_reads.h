// Direct reads by io_uring: one system call starts a read, and one thread for all of them waits. By raw system calls:
// liburing is a library that machines need not have, and what is used of it here are three calls and two ring buffers.
#pragma once
#include <functional>
#include <memory>

#include "reader/reader.h"

namespace fst {

// What a kernel, or a test in its place, does for io_uring_setup(2): a descriptor, or -1 with errno.
using RingSetup = int (*)(unsigned entries, void* params);

class RingReads {
 public:
  // Takes a read that the ring has not brought whole, to read it in another way and to complete it. On the ring's
  // thread; must not block, and owns what it refers to.
  using NotRead = std::function<void(ReadRequest request, uint64_t tag)>;

  // A ring for `depth` reads at a time. 0, or the errno of what failed: ENOSYS before Linux 5.6, EPERM in a sandbox,
  // EMFILE. `setup` replaces the system call in tests.
  static int Open(unsigned depth, std::shared_ptr<CompletionQueue> queue, NotRead not_read,
                  std::unique_ptr<RingReads>* out, RingSetup setup = nullptr);
  // Waits for the ring's thread, which takes microseconds; but not while reads are in flight.
  ~RingReads();

  // Starts a read of one piece of an FdFile on a disk of this machine (a look at the file must not block). Any thread.
  // Its completion, OK or FILE_CHANGED, is put, or it goes to `not_read`. Returns false where the ring cannot take it;
  // `request` is unchanged then.
  bool Read(ReadRequest* request, uint64_t tag);

 private:
  struct State;
  explicit RingReads(std::shared_ptr<State> state) : state_(std::move(state)) {}

  const std::shared_ptr<State> state_;
};

}  // namespace fst
