#include "reader/ring_reads.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/thread.h"
#include "reader/open_file.h"

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif
#endif

namespace fst {

#if defined(IORING_FEAT_RW_CUR_POS) && defined(SYS_io_uring_setup) && defined(SYS_io_uring_enter)

namespace {

// A part of the memory that a ring shares with the kernel.
class SharedMap {
 public:
  SharedMap() = default;
  SharedMap(const SharedMap&) = delete;
  SharedMap& operator=(const SharedMap&) = delete;
  ~SharedMap() {
    if (memory_ != MAP_FAILED) munmap(memory_, bytes_);
  }
  int Map(int fd, size_t bytes, off_t offset) {
    bytes_ = bytes;
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    return memory_ == MAP_FAILED ? errno : 0;
  }
  template <class T>
  T* At(uint32_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset);
  }

 private:
  void* memory_ = MAP_FAILED;
  size_t bytes_ = 0;
};

int SetUp(unsigned entries, void* params) { return static_cast<int>(syscall(SYS_io_uring_setup, entries, params)); }

constexpr uint64_t kWakes = UINT64_MAX;  // user_data of a request that only ends the wait

}  // namespace

struct RingReads::State {
  struct Slot {
    ReadRequest request;
    uint64_t tag = 0;
    bool used = false;
  };

  UniqueFd fd;
  SharedMap submissions, entries, completions;
  io_uring_params params = {};
  std::shared_ptr<CompletionQueue> queue;

  std::mutex mutex;
  std::condition_variable ended;
  std::vector<Slot> slots;  // of reads in flight, by user_data
  size_t in_flight = 0;
  NotRead not_read;
  bool closing = false, has_ended = false;

  int Map() {
    if ((params.features & IORING_FEAT_RW_CUR_POS) == 0) return ENOSYS;  // IORING_OP_READ came with it, in Linux 5.6
    if (int error =
            submissions.Map(fd.get(), params.sq_off.array + params.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING))
      return error;
    if (int error = entries.Map(fd.get(), params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES)) return error;
    return completions.Map(fd.get(), params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING);
  }

  int Enter(unsigned submitted, unsigned awaited) const {
    const unsigned flags = awaited > 0 ? IORING_ENTER_GETEVENTS : 0;
    return static_cast<int>(syscall(SYS_io_uring_enter, fd.get(), submitted, awaited, flags, nullptr, 0));
  }

  // With the lock held, so that there is one submission at a time and the ring is never full.
  bool Start(const io_uring_sqe& entry) const {
    auto* tail = submissions.At<uint32_t>(params.sq_off.tail);
    const uint32_t index = *tail & (params.sq_entries - 1);
    entries.At<io_uring_sqe>(0)[index] = entry;
    submissions.At<uint32_t>(params.sq_off.array)[index] = index;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    int taken;
    do {
      taken = Enter(1, 0);
    } while (taken < 0 && errno == EINTR);
    if (taken == 1) return true;
    __atomic_store_n(tail, *tail - 1, __ATOMIC_RELEASE);  // nobody else moves it, and the kernel reads it in Enter only
    return false;
  }

  void Run() {
    auto* head = completions.At<uint32_t>(params.cq_off.head);
    const auto* tail = completions.At<uint32_t>(params.cq_off.tail);
    for (;;) {
      if (*head == __atomic_load_n(tail, __ATOMIC_ACQUIRE)) {
        // What goes wrong (EINTR, EAGAIN) shows in the next look; what lasts must not take a whole processor.
        if (Enter(0, 1) < 0 && errno != EINTR) usleep(1000);
        continue;
      }
      const io_uring_cqe done = completions.At<io_uring_cqe>(params.cq_off.cqes)[*head & (params.cq_entries - 1)];
      __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
      if (done.user_data != kWakes) Finish(static_cast<size_t>(done.user_data), done.res);
      std::lock_guard<std::mutex> lock(mutex);
      if (!closing || in_flight > 0) continue;
      fd = UniqueFd();  // before its owner goes on, who may count open files
      has_ended = true;
      ended.notify_all();
      return;
    }
  }

  void Finish(size_t index, int result) {
    ReadRequest request;
    uint64_t tag = 0;
    {
      std::lock_guard<std::mutex> lock(mutex);
      request = std::move(slots[index].request);
      tag = slots[index].tag;
      slots[index] = Slot();
      --in_flight;
    }
    if (result < 0 || static_cast<size_t>(result) < request.required) return not_read(std::move(request), tag);
    Status status = static_cast<const FdFile&>(*request.file).CheckUnchanged();
    request = ReadRequest();  // before the completion, as its receiver may count open files
    queue->Put({Completion::Kind::kRead, tag, std::move(status)});
  }
};

int RingReads::Open(unsigned depth, std::shared_ptr<CompletionQueue> queue, NotRead not_read,
                    std::unique_ptr<RingReads>* out, RingSetup setup) {
  auto state = std::make_shared<State>();
  const int fd = (setup != nullptr ? setup : SetUp)(depth, &state->params);
  if (fd < 0) return errno;
  state->fd = UniqueFd(fd);
  if (int error = state->Map()) return error;
  state->queue = std::move(queue);
  state->not_read = std::move(not_read);
  state->slots.resize(depth);
  // The thread may outlive this: its reads are what the kernel writes to.
  if (!StartThread("fst-uring", [state]() mutable {
         state->Run();
         state.reset();
       }).ok())
    return EAGAIN;
  out->reset(new RingReads(std::move(state)));
  return 0;
}

RingReads::~RingReads() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->closing = true;
  io_uring_sqe wakes = {};
  wakes.opcode = IORING_OP_NOP;
  wakes.user_data = kWakes;
  const bool awake = state_->Start(wakes);
  // Without room for the wake-up the thread sleeps on, and the descriptor stays: memory is all that is lost.
  if (awake && state_->in_flight == 0) state_->ended.wait(lock, [this] { return state_->has_ended; });
}

bool RingReads::Read(ReadRequest* request, uint64_t tag) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (request->pieces.size() != 1 || request->pieces.front().runs > 1) return false;
  size_t index = 0;
  while (index < state_->slots.size() && state_->slots[index].used) ++index;
  if (index == state_->slots.size()) return false;
  io_uring_sqe entry = {};
  entry.opcode = IORING_OP_READ;
  entry.fd = static_cast<const FdFile&>(*request->file).fd();
  entry.off = request->offset;
  entry.addr = request->pieces[0].address;
  entry.len = static_cast<uint32_t>(request->pieces[0].length);
  entry.user_data = index;
  // Before it starts: its completion may be there before Start returns.
  state_->slots[index] = {std::move(*request), tag, true};
  ++state_->in_flight;
  if (state_->Start(entry)) return true;
  *request = std::move(state_->slots[index].request);
  state_->slots[index] = State::Slot();
  --state_->in_flight;
  return false;
}

#else  // headers of a kernel before Linux 5.6

struct RingReads::State {};

int RingReads::Open(unsigned, std::shared_ptr<CompletionQueue>, NotRead, std::unique_ptr<RingReads>*, RingSetup) {
  return ENOSYS;
}
RingReads::~RingReads() = default;
bool RingReads::Read(ReadRequest*, uint64_t) { return false; }

#endif

}  // namespace fst
