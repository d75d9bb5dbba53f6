// A 3FS I/O ring and the thread that waits for its completions.
#pragma once
#include <memory>
#include <string>

#include "base/status.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_mount.h"
#include "reader/usrbio/usrbio_semaphore.h"

namespace fst::usrbio {

// What a ring reports to its user, on its waiting thread.
class RingEvents {
 public:
  virtual ~RingEvents() = default;
  virtual void Completed(const Cqe* completions, int count) = 0;
  // Reads are in flight and none has completed for half a second: is the mount alive, do the links still exist?
  virtual void Silent() = 0;
  // A millisecond has passed since RetrySoon.
  virtual void Retry() = 0;
  // hf3fs_wait_for_ios failed.
  virtual void Broken(int error) = 0;
};

class Ring {
 public:
  // Bytes of /dev/shm that a ring takes.
  static size_t BytesOf(int entries) { return 16 + 32 + 96 * (static_cast<size_t>(entries) + 1) + 4096; }

  // Call on the mount's thread; all other methods on the I/O thread that uses it. The
  // library and the daemon touch the ring's memory without reserving it, which kills with SIGBUS where /dev/shm is
  // full: see ReserveShm. OUT_OF_HOST_MEMORY, THREEFS_DISCONNECTED, THREEFS_ERROR.
  static Status Create(const UsrbioApi& api, const std::string& mount, int entries, int io_depth, int numa,
                       std::unique_ptr<Ring>* out);
  // Waits for the waiting thread (a tenth of a second at most), then destroys the ring. With reads in flight, removes
  // the link first: the daemon then releases the ring, and still writes to its own mapping, never to ours.
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // The target is "" when it could not be read.
  const Link& link() const { return link_; }
  // Reads submitted whose completions the waiting thread has not taken yet.
  int in_flight() const;

  // From here on it reports to `events`. Before the first read.
  void Attach(std::shared_ptr<RingEvents> events);
  // Ends that: on true nothing is in flight, all completions have been reported, and another I/O thread may Attach.
  // False where reads are in flight, or the library failed. Waits until the waiting thread has reported.
  bool Detach();

  // 0, -EAGAIN (the ring is full, or its oldest read is slow) or another -errno. Submit() must follow.
  int Prepare(const Iov& iov, uint8_t* to, int fd, uint64_t offset, uint64_t length, uint64_t userdata);
  // 0 or -errno.
  int Submit();
  // Calls RingEvents::Retry a millisecond from now.
  void RetrySoon();

 private:
  struct State;
  Ring(std::shared_ptr<State> state, std::shared_ptr<SubmitSemaphore> semaphore)
      : semaphore_(std::move(semaphore)), state_(std::move(state)) {}
  std::shared_ptr<SubmitSemaphore> semaphore_;  // closed after the ring is destroyed
  std::shared_ptr<State> state_;
  Link link_;
};

}  // namespace fst::usrbio
