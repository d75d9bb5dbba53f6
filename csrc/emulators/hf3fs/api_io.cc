// The exported half of the API that moves data: prepare, submit, wait.
#include <fcntl.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <set>

#include "emulators/hf3fs/engine.h"
#include "reader/usrbio/usrbio_api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using emu::Engine;
using emu::Io;
using emu::Ring;
using fst::usrbio::Cqe;
using fst::usrbio::Ior;
using fst::usrbio::Iov;
using Lock = std::unique_lock<std::mutex>;

namespace {

std::shared_ptr<Ring> FindRing(Engine& engine, const Ior* ior) {
  if (ior == nullptr || ior->handle == nullptr) return nullptr;
  for (const auto& ring : engine.rings) {
    if (ring.get() == ior->handle) return ring;
  }
  engine.Misuse("a ring is used after iordestroy");
  return nullptr;
}

// One thread waits for a ring: the first that did.
void CheckWaiter(Engine& engine, Ring* ring) {
  if (!ring->has_waiter) {
    ring->has_waiter = true;
    ring->waiter = pthread_self();
  } else if (!pthread_equal(ring->waiter, pthread_self())) {
    engine.Misuse("wait_for_ios from another thread than the ring's first one");
  }
}

// One thread at a time prepares and submits. Another one may take the ring over while nothing is prepared or in flight.
void CheckPreparer(Engine& engine, const char* what, Ring* ring) {
  if (ring->has_preparer && pthread_equal(ring->preparer, pthread_self())) return;
  if (std::any_of(ring->slots.begin(), ring->slots.end(), [](const auto& io) { return io != nullptr; })) {
    engine.Misuse(std::string(what) + " from another thread than the one whose ios are prepared or in flight");
  }
  ring->has_preparer = true;
  ring->preparer = pthread_self();
}

// A call on a ring that no other thread may be inside at the same time. Without the engine's lock, behind which the
// calls would only follow each other.
class Alone {
 public:
  Alone(const char* what, const Ior* ior) : ior_(ior) {
    std::lock_guard<std::mutex> lock(mutex);
    if (Inside().insert(ior_).second) return;
    twice_ = true;
    what_ = what;
  }
  ~Alone() {
    if (twice_) return;
    std::lock_guard<std::mutex> lock(mutex);
    Inside().erase(ior_);
  }
  void Check(Engine& engine) const {
    if (twice_) engine.Misuse(std::string(what_) + " while another thread prepares or submits on the same ring");
  }

 private:
  static std::set<const Ior*>& Inside() {
    static auto* inside = new std::set<const Ior*>;
    return *inside;
  }
  static std::mutex mutex;
  const Ior* ior_;
  const char* what_ = nullptr;
  bool twice_ = false;
};

std::mutex Alone::mutex;

// The lowest free index, as the library takes it; -1 when the ring is full or its order queue is (slots retire in
// order, so one slow io can fill it alone).
int FreeSlot(const Ring& ring) {
  if (ring.head - ring.tail >= static_cast<uint64_t>(ring.entries)) return -1;
  auto free = std::find(ring.slots.begin(), ring.slots.end(), nullptr);
  return free == ring.slots.end() ? -1 : static_cast<int>(free - ring.slots.begin());
}

void CheckBuffer(Engine& engine, const Iov* iov, Io* io) {
  if (iov->base != io->iov->base || iov->size != io->iov->size)
    engine.Misuse("prep_io with an iov whose struct was changed");
  if (!io->iov->verified) {
    std::string why = emu::WhyNotShared(*io->iov);
    // Without a link the daemon answers for itself: the buffer is unknown to it.
    if (!why.empty() && why.find("absent") == std::string::npos) engine.Misuse("prep_io on a wrapped iov: " + why);
    io->iov->verified = why.empty();
  }
  uint64_t at = static_cast<uint64_t>(io->to - io->iov->base), block = io->iov->block_size;
  if (block != 0 && at / block != (at + io->length - 1) / block) {
    engine.Misuse("an io of " + std::to_string(io->length) + " bytes at " + std::to_string(at) +
                  " crosses a block of " + std::to_string(block) + " bytes of its iov");
    io->invalid = true;
  }
  if (auto other = engine.FindOverlap(io->to, io->length)) {
    engine.Misuse("the buffer of a new io overlaps that of io " + std::to_string(other->number) +
                  ", which is in flight or whose completion was not taken");
    io->overlaps = true;
  }
}

void CheckWait(Engine& engine, const Ring& ring, int min_results, const timespec* deadline) {
  // Only the thread that prepares can say that what it prepared was not submitted.
  bool same = ring.has_preparer && pthread_equal(ring.preparer, pthread_self());
  if (same && ring.submitted != ring.head) {
    engine.Misuse(std::to_string(ring.head - ring.submitted) +
                  " ios were prepared and not submitted before wait_for_ios");
  }
  if (min_results <= 0) return;
  if (deadline == nullptr)
    engine.Misuse("wait_for_ios without a deadline waits for ever; give an absolute CLOCK_REALTIME time");
  if (deadline != nullptr) {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    // A deadline that has just gone by is bad luck, one from long ago is a relative time or another clock.
    bool past = deadline->tv_sec < now.tv_sec - 1;
    if (past || deadline->tv_nsec < 0 || deadline->tv_nsec >= 1000000000) {
      engine.Misuse("wait_for_ios with a deadline that is past or no time; expected an absolute CLOCK_REALTIME time");
    }
  }
  if (ring.depth > 0) {
    int rest = static_cast<int>(ring.head - ring.cut);
    int coming = static_cast<int>(ring.completions.size()) + ring.processing + rest - rest % ring.depth;
    if (rest % ring.depth != 0 && coming < min_results) {
      engine.Misuse("wait_for_ios would hang: io_depth " + std::to_string(ring.depth) +
                    " runs exact batches only, and " + std::to_string(rest % ring.depth) + " ios remain");
    }
  }
}

bool IsPast(const timespec& deadline) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return deadline.tv_sec < now.tv_sec || (deadline.tv_sec == now.tv_sec && deadline.tv_nsec <= now.tv_nsec);
}

}  // namespace

EXPORT int hf3fs_io_entries(const Ior* ior) { return static_cast<int>((ior->iov.size - 4096 - 16 - 32) / 96) - 1; }

EXPORT int hf3fs_prep_io(const Ior* ior, const Iov* iov, bool read, void* ptr, int fd, size_t off, uint64_t len,
                         const void* userdata) {
  Engine& engine = Engine::Get();
  Alone alone("prep_io", ior);
  Lock lock(engine.mutex);
  alone.Check(engine);
  int result;
  if (engine.ShallFail("prep_io", &result)) return result;
  uint8_t* to = static_cast<uint8_t*>(ptr);
  std::shared_ptr<Ring> ring = FindRing(engine, ior);
  if (ring == nullptr || read != ior->for_read || iov == nullptr || len == 0 || iov->base == nullptr ||
      to < iov->base || len > iov->size || to + len > iov->base + iov->size) {
    return -EINVAL;
  }
  CheckPreparer(engine, "prep_io", ring.get());
  std::string misuse;
  auto file = engine.files.Find(fd, &misuse);
  if (!misuse.empty()) engine.Misuse(misuse);
  if (file == nullptr) return -EBADF;
  if (!read || (file->flags & O_ACCMODE) == O_WRONLY) return -EACCES;  // this emulator reads only
  auto io = std::make_shared<Io>();
  io->iov = engine.iovs.Find(std::string(iov->id, sizeof iov->id));
  if (io->iov == nullptr) {
    engine.Misuse("prep_io with an iov that was neither created nor wrapped, or that is gone");
    return -EINVAL;
  }
  io->file = std::move(file);
  io->to = to;
  io->offset = off;
  io->length = len;
  io->userdata = userdata;
  CheckBuffer(engine, iov, io.get());
  uint64_t every = engine.settings.eagain_every;
  io->slot = every != 0 && engine.counters.calls["prep_io"] % every == 0 ? -1 : FreeSlot(*ring);
  if (io->slot < 0) {
    engine.counters.eagain++;
    return -EAGAIN;
  }
  int slot = io->slot;
  engine.Prepare(ring, std::move(io));
  const uint64_t early = engine.settings.early;
  if (early != 0 && engine.counters.calls["prep_io"] % early == 0) engine.Wake();
  return slot;
}

EXPORT int hf3fs_submit_ios(const Ior* ior) {
  Engine& engine = Engine::Get();
  Alone alone("submit_ios", ior);
  Lock lock(engine.mutex);
  alone.Check(engine);
  int result;
  if (engine.ShallFail("submit_ios", &result)) return result;
  std::shared_ptr<Ring> ring = FindRing(engine, ior);
  if (ring == nullptr) return -EINVAL;
  CheckPreparer(engine, "submit_ios", ring.get());
  engine.counters.submits++;
  engine.Submit(ring);
  return 0;
}

EXPORT int hf3fs_wait_for_ios(const Ior* ior, Cqe* cqes, int capacity, int min_results, const timespec* deadline) {
  Engine& engine = Engine::Get();
  Lock lock(engine.mutex);
  int result;
  if (engine.ShallFail("wait_for_ios", &result)) return result;
  if (capacity <= 0) return -EINVAL;
  std::shared_ptr<Ring> ring = FindRing(engine, ior);
  if (ring == nullptr) return -EINVAL;
  CheckWaiter(engine, ring.get());
  min_results = std::min(min_results, capacity);
  CheckWait(engine, *ring, min_results, deadline);
  engine.counters.waits++;
  engine.waiters++;
  int filled = 0;
  while (filled < capacity && !ring->destroyed) {
    if (!ring->completions.empty()) {
      while (filled < capacity && !ring->completions.empty()) {
        std::shared_ptr<Io> io = ring->completions.front();
        ring->completions.pop_front();
        cqes[filled].index = io->slot;
        cqes[filled].result = io->result;
        cqes[filled].userdata = io->userdata;
        filled++;
        engine.Retire(ring.get(), io, lock);
      }
      engine.Wake();  // the library posts here too: there is room for results again
      continue;
    }
    if (filled >= min_results) break;
    if (deadline == nullptr) {
      ring->completed.wait(lock);
      continue;
    }
    if (IsPast(*deadline)) break;
    auto at = std::chrono::seconds(deadline->tv_sec) + std::chrono::nanoseconds(deadline->tv_nsec);
    using Time = std::chrono::time_point<std::chrono::system_clock, std::chrono::nanoseconds>;  // libc++ counts in µs
    ring->completed.wait_until(lock, Time(at));
  }
  engine.waiters--;
  return filled;
}
