// A 3FS I/O ring and the thread that waits for its completions.
#pragma once
#include <memory>
#include <string>

#include "base/status.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {

// Called on the ring's waiting thread.
class RingEvents {
 public:
  virtual ~RingEvents() = default;
  virtual void Completed(const Cqe* completions, int count) = 0;
  // Ios are in flight and none has completed for half a second: is the mount alive, is the link still there?
  virtual void Silent() = 0;
  // The time that RetrySoon asked for has passed.
  virtual void Retry() = 0;
  // The library refuses to wait.
  virtual void Broken(int error) = 0;
};

class Ring {
 public:
  // On the mount's thread; used by one I/O thread, but for the waiting. THREEFS_DISCONNECTED, THREEFS_ERROR.
  static Status Create(const UsrbioApi& api, const std::string& mount, int entries, int io_depth, int numa,
                       std::shared_ptr<RingEvents> events, std::unique_ptr<Ring>* out);
  // Waits for the waiting thread (a tenth of a second at most), then destroys the ring. With ios in flight the link
  // goes first: the daemon lets go of the ring then, and what it still writes goes to memory that it mapped itself.
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Its target is "" when it could not be read: then it says nothing.
  const Link& link() const { return link_; }
  // Ios submitted and not yet taken by the waiting thread.
  int in_flight() const;

  // 0, -EAGAIN (the ring is full, or its oldest io is slow) or another -errno. Submit() must follow.
  int Prepare(const Iov& iov, uint8_t* to, int fd, uint64_t offset, uint64_t length, uint64_t userdata);
  // 0 or -errno.
  int Submit();
  // Retry() shall be called a millisecond from now.
  void RetrySoon();

 private:
  struct State;
  explicit Ring(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
  Link link_;
};

}  // namespace fst::usrbio
