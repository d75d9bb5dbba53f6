#include "reader/usrbio/usrbio_ring.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>

#include "base/io_error.h"
#include "base/mapped_pages.h"
#include "base/thread.h"
#include "reader/usrbio/usrbio_iov.h"
#include "reader/usrbio/usrbio_semaphore.h"

namespace fst::usrbio {
namespace {

constexpr int kWaitMs = 100;     // bounds a wait, and so how long ~Ring blocks
constexpr int kSilentWaits = 5;  // waits without a completion before the mount is probed
constexpr int kMaxCompletions = 64;

// hf3fs_wait_for_ios takes a time of day.
timespec In(int ms) {
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  at.tv_nsec += ms * 1000000L;
  at.tv_sec += at.tv_nsec / 1000000000;
  at.tv_nsec %= 1000000000;
  return at;
}

// Touches the pages of new shared memory: false where a plain write would be a SIGBUS.
bool Populate(void* memory, size_t bytes) {
  const uint64_t length = (bytes + PageSize() - 1) / PageSize() * PageSize();
  const int error = PopulatePagesForWrites(static_cast<char*>(memory), length);
  return error == 0 || error == EINVAL;  // an older kernel: there was room a moment ago
}

Status RingFailed(const std::string& mount, int entries, int error) {
  if (error == ENOSPC) return NoRoomInShm("the I/O ring", Ring::BytesOf(entries), error);
  FST_RETURN_IF_ERROR(ProbeMount(mount));
  std::string remedy;
  if (OutOfDescriptors(error)) {
    remedy = DescriptorRemedy(error) + "; or end other processes that load through this mount";
  } else if (error == ENOENT) {
    remedy =
        "; the semaphores of the hf3fs_fuse daemon are not in this process's /dev/shm: share it with the container "
        "(docker run --ipc=host, or -v /dev/shm:/dev/shm)";
  } else if (error == EIO) {
    remedy = "; the hf3fs_fuse daemon refused the ring, its log says why";
  }
  return MountError(mount, error,
                    Format("a ring of %d entries cannot be made on the 3FS mount %s", entries, mount.c_str()),
                    remedy.c_str());
}

}  // namespace

struct Ring::State {
  const UsrbioApi* api;
  Ior ior = {};

  mutable std::mutex mutex;  // guards what follows
  std::condition_variable wake, rest;
  std::shared_ptr<RingEvents> events;
  int in_flight = 0, prepared = 0;
  bool retry = false, failed = false, stopping = false;
  bool resting = true, stopped = false;  // the waiting thread

  void Run() {
    Cqe completions[kMaxCompletions];
    int silent = 0;
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      resting = true;
      rest.notify_all();
      wake.wait(lock, [this] { return stopping || retry || in_flight > 0; });
      resting = false;
      if (stopping) break;
      std::shared_ptr<RingEvents> to = events;
      if (retry) {
        retry = false;
        lock.unlock();
        usleep(1000);
        to->Retry();
        to.reset();
        lock.lock();
        continue;
      }
      lock.unlock();
      timespec deadline = In(kWaitMs);
      int count = api->wait_for_ios(&ior, completions, kMaxCompletions, 1, &deadline);
      silent = count == 0 ? silent + 1 : 0;
      if (count > 0) {
        {
          std::lock_guard<std::mutex> counting(mutex);
          in_flight -= count;
        }
        to->Completed(completions, count);
      } else if (count < 0) {
        to->Broken(-count);
        usleep(kWaitMs * 1000);
      } else if (silent % kSilentWaits == 0) {
        to->Silent();
      }
      to.reset();
      lock.lock();
      failed |= count < 0;
    }
    stopped = true;
    rest.notify_all();
  }
};

Status Ring::Create(const UsrbioApi& api, const std::string& mount, int entries, int io_depth, int numa,
                    std::unique_ptr<Ring>* out) {
  auto state = std::make_shared<State>();
  state->api = &api;
  std::shared_ptr<SubmitSemaphore> semaphore = SubmitSemaphore::Of(mount);
  // timeout 0 and flags 0 always: with others the library hangs, or leaks the link.
  int made = api.iorcreate4(&state->ior, mount.c_str(), entries, /*for_read=*/true, io_depth, /*timeout=*/0, numa,
                            /*flags=*/0);
  // The library always writes the time into the name of the link.
  std::string link = mount + "/3fs-virt/iovs/" + UuidText(state->ior.iov.id) + ".r" + std::to_string(io_depth) + ".t0";
  if (made != 0) {
    unlink(link.c_str());  // a library that fails after it made the link looks for it by another name and leaves it
    return RingFailed(mount, entries, -made);
  }
  if (semaphore != nullptr) semaphore->CountOpening();
  if (!Populate(state->ior.iov.base, state->ior.iov.size)) {
    api.iordestroy(&state->ior);
    return RingFailed(mount, entries, ENOSPC);
  }
  // ~Ring waits for this thread, so a ring whose thread cannot start must not exist.
  Status started = StartThread("fst-3fs-wait", [state] { state->Run(); });
  if (!started.ok()) {
    api.iordestroy(&state->ior);
    return started;
  }
  out->reset(new Ring(state, std::move(semaphore)));
  if (ReadLink(link, &(*out)->link_) != 0) (*out)->link_ = {link, ""};
  CloseLinkFolderOnExec(mount);
  return Status::Ok();
}

Ring::~Ring() {
  bool busy;
  {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_all();
    state_->rest.wait(lock, [this] { return state_->stopped; });
    busy = state_->in_flight > 0 || state_->prepared > 0;
  }
  if (busy) unlink(link_.path.c_str());
  state_->api->iordestroy(&state_->ior);
}

int Ring::in_flight() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->in_flight;
}

void Ring::Attach(std::shared_ptr<RingEvents> events) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->events = std::move(events);
}

bool Ring::Detach() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  if (state_->in_flight != 0 || state_->prepared != 0) return false;
  state_->retry = false;
  state_->rest.wait(lock, [this] { return state_->resting; });
  state_->events.reset();
  return !state_->failed;
}

int Ring::Prepare(const Iov& iov, uint8_t* to, int fd, uint64_t offset, uint64_t length, uint64_t userdata) {
  auto* tag = reinterpret_cast<const void*>(userdata);  // NOLINT(performance-no-int-to-ptr)
  int slot = state_->api->prep_io(&state_->ior, &iov, /*read=*/true, to, fd, offset, length, tag);
  if (slot < 0) return slot;
  std::lock_guard<std::mutex> lock(state_->mutex);
  ++state_->prepared;
  return 0;
}

int Ring::Submit() {
  {
    // Before submit_ios: the waiting thread may take completions before that returns.
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->in_flight += state_->prepared;
    state_->prepared = 0;
    state_->wake.notify_one();
  }
  int result = state_->api->submit_ios(&state_->ior);
  if (result == 0) return 0;
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->failed = true;
  return result;
}

void Ring::RetrySoon() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->retry = true;
  state_->wake.notify_one();
}

}  // namespace fst::usrbio
