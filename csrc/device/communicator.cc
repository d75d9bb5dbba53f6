#include "device/communicator.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "base/running_clock.h"
#include "base/thread.h"

namespace fst {
namespace {

using std::chrono::milliseconds;
using Clock = RunningClock::Clock;

// A group is one launch. What arrives with one counts as progress.
constexpr size_t kGroupPieces = 256, kGroupBytes = size_t{1} << 30;
// How often the thread looks, at first and at last: NCCL tells nobody.
constexpr auto kFirstPause = std::chrono::microseconds(20), kLongestPause = std::chrono::microseconds(500);
constexpr auto kTick = milliseconds(50);
constexpr auto kLongestEnd = milliseconds(5000);
constexpr size_t kStackBytes = 8 << 20;  // NCCL's calls want more than ours

void* PointerTo(const DeviceBuffer& buffer, size_t offset) {
  return reinterpret_cast<void*>(buffer.address() + offset);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

class Communicator::State {
 public:
  explicit State(Options options) : options_(std::move(options)), device_(*options_.device->cuda()) {}

  void Post(std::vector<BroadcastPiece> pieces, milliseconds stall, Done done) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!ended_) {
        Metrics::Get().in_flight.fetch_add(1, std::memory_order_relaxed);
        queue_.push_back({std::move(pieces), stall, std::move(done)});
        wake_.notify_all();
        return;
      }
    }
    done(over_);
  }

  void Close(std::function<void()> closed) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      if (over_.ok()) over_ = Status(Code::CLOSED, "the communicator of this rank was closed");
      wake_.notify_all();
      if (!ended_) {
        if (closed) closed_.push_back(std::move(closed));
        return;
      }
    }
    if (closed) closed();
  }

  void Abandon() {
    std::lock_guard<std::mutex> lock(mutex_);
    abandoned_ = true;
    if (over_.ok()) over_ = Status(Code::CLOSED, "this rank has left the others in the middle of a call");
    wake_.notify_all();
  }

  // The thread.
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) break;
      Operation next = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      CarryOut(std::move(next));
      lock.lock();
    }
    const bool abandoned = abandoned_;
    lock.unlock();
    abandoned ? Drop() : End();
    lock.lock();
    ended_ = true;
    auto closed = std::move(closed_);
    lock.unlock();
    for (const auto& each : closed) each();
  }

 private:
  struct Operation {
    std::vector<BroadcastPiece> pieces;
    milliseconds stall;
    Done done;
  };

  Status Over() {
    std::lock_guard<std::mutex> lock(mutex_);
    return over_;
  }

  void CarryOut(Operation operation) {
    Status status = Over();
    if (status.ok()) status = Connect(operation.stall);
    auto& pieces = operation.pieces;
    for (size_t begin = 0; begin < pieces.size() && status.ok();) {
      size_t end = begin, bytes = 0;
      do {
        bytes += pieces[end++].length;
      } while (end < pieces.size() && end - begin < kGroupPieces && bytes + pieces[end].length <= kGroupBytes);
      status = BroadcastGroup(&pieces[begin], end - begin, operation.stall);
      begin = end;
    }
    if (status.ok()) {
      pieces.clear();
      Metrics::Get().in_flight.fetch_sub(1, std::memory_order_relaxed);
      std::exchange(operation.done, nullptr)(Status::Ok());
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (over_.ok()) over_ = status;
    }
    // Who waits is told first: what follows may take long. Buffers are dropped when no kernel can touch them any more.
    std::exchange(operation.done, nullptr)(status);
    Drop();
    pieces.clear();
    Metrics::Get().in_flight.fetch_sub(1, std::memory_order_relaxed);
  }

  Status Check(nccl::ncclResult_t result, const char* call) const { return api_->Check(result, call, comm_); }

  Status Connect(milliseconds stall) {
    FST_RETURN_IF_ERROR(device_.MakeCurrent());
    if (comm_ != nullptr) return Status::Ok();
    FST_RETURN_IF_ERROR(nccl::LoadNccl(&api_));
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(device_.api(), StreamCreate, &stream_, cuda::kStreamNonBlocking));
    nccl::ncclConfig_t config = {sizeof config, nccl::kApiMagic, nccl::kLeastVersion, /*blocking=*/0, nccl::kUndefined};
    const auto& [device, id, rank, ranks] = options_;
    FST_RETURN_IF_ERROR(Check(api_->CommInitRankConfig(&comm_, ranks, id, rank, &config), "ncclCommInitRankConfig"));
    return Await("connect with the other ranks", stall, /*unless_over=*/true,
                 [&](bool* ended) { return Settled("ncclCommInitRankConfig", ended); });
  }

  Status BroadcastGroup(const BroadcastPiece* pieces, size_t count, milliseconds stall) {
    FST_RETURN_IF_ERROR(Check(api_->GroupStart(), "ncclGroupStart"));
    Status status;
    for (size_t i = 0; i < count && status.ok(); ++i) {
      const BroadcastPiece& piece = pieces[i];
      void* to = PointerTo(*piece.to, piece.to_offset);
      const void* from = piece.from != nullptr ? PointerTo(*piece.from, piece.from_offset) : to;
      status =
          Check(api_->Broadcast(from, to, piece.length, nccl::kUint8, piece.root, comm_, stream_), "ncclBroadcast");
    }
    Status ended = Check(api_->GroupEnd(), "ncclGroupEnd");  // also after an error: groups are the thread's
    FST_RETURN_IF_ERROR(status);
    FST_RETURN_IF_ERROR(ended);
    FST_RETURN_IF_ERROR(Await("begin a broadcast with the other ranks", stall, /*unless_over=*/true,
                              [&](bool* done) { return Settled("ncclGroupEnd", done); }));
    return Await("get the bytes of other ranks", stall, /*unless_over=*/true, [&](bool* done) -> Status {
      bool settled = false;
      FST_RETURN_IF_ERROR(Settled("ncclBroadcast", &settled));
      cuda::CUresult result = device_.api().StreamQuery(stream_);
      *done = result == cuda::kSuccess;
      return result == cuda::kNotReady ? Status::Ok() : device_.api().Check(result, "cuStreamQuery");
    });
  }

  // *ended: what was begun by `call` is no longer in progress.
  Status Settled(const char* call, bool* ended) const {
    nccl::ncclResult_t state = nccl::kSuccess;
    FST_RETURN_IF_ERROR(Check(api_->CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
    *ended = state != nccl::kInProgress;
    return Check(state, call);
  }

  // Looks until it has ended. STALLED after `stall` in which the process ran; what Close() says, where it counts.
  template <class Look>
  Status Await(const char* what, milliseconds stall, bool unless_over, const Look& look) {
    RunningClock running(kTick);
    Clock::duration pause = kFirstPause;
    for (;;) {
      bool ended = false;
      FST_RETURN_IF_ERROR(look(&ended));
      if (ended) return Status::Ok();
      {
        std::unique_lock<std::mutex> lock(mutex_);
        auto over = [&] { return unless_over && !over_.ok(); };
        wake_.wait_for(lock, pause, over);
        if (over()) return over_;
      }
      pause = std::min<Clock::duration>(2 * pause, kLongestPause);
      running.Look(Clock::now());
      if (running.At(Clock::now()) < stall + kTick) continue;
      return Status(Code::STALLED,
                    Format("rank %d of %d waited %lld ms (stallTimeoutMs) to %s: is each of them alive, with the same "
                           "uniqueId, and does it make the same calls?",
                           options_.rank, options_.ranks, static_cast<long long>(stall.count()), what));
    }
  }

  // Aborts the communicator: kernels end, then nothing of the stream touches memory any more.
  void Drop() {
    device_.MakeCurrentForRelease();
    if (comm_ != nullptr) api_->CommAbort(std::exchange(comm_, nullptr));
    DropStream();
  }

  void DropStream() {
    if (stream_ == nullptr) return;
    if (device_.api().StreamSynchronize(stream_) != cuda::kSuccess) device_.api().StreamSynchronize(stream_);
    device_.api().StreamDestroy(std::exchange(stream_, nullptr));
  }

  // Ends a communicator that nothing is wrong with. Another rank may still read what this one's kernels have left in
  // NCCL's buffers, so that is waited for.
  void End() {
    if (comm_ == nullptr) return DropStream();
    device_.MakeCurrentForRelease();
    Status ended = Check(api_->CommFinalize(comm_), "ncclCommFinalize");
    if (ended.ok()) {
      ended = Await("end", kLongestEnd, /*unless_over=*/false,
                    [&](bool* done) { return Settled("ncclCommFinalize", done); });
    }
    if (!ended.ok()) return Drop();
    api_->CommDestroy(std::exchange(comm_, nullptr));
    DropStream();
  }

  const Options options_;
  CudaDevice& device_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<Operation> queue_;
  Status over_;  // why nothing goes on
  bool closing_ = false, ended_ = false, abandoned_ = false;
  std::vector<std::function<void()>> closed_;

  // The thread's.
  const nccl::NcclApi* api_ = nullptr;
  nccl::ncclComm_t comm_ = nullptr;
  cuda::CUstream stream_ = nullptr;
};

Status Communicator::Open(Options options, std::shared_ptr<Communicator>* out) {
  const Device& device = *options.device;
  if (options.device->cuda() == nullptr || device.host_accessible()) {
    return Status(Code::DEVICE_UNAVAILABLE, "NCCL broadcasts between GPUs with memory of their own, and this is " +
                                                device.name() + (device.host_accessible() ? ", unified" : ""));
  }
  auto state = std::make_shared<State>(std::move(options));
  FST_RETURN_IF_ERROR(StartThread(
      "fst-nccl", [state] { state->Run(); }, kStackBytes));
  out->reset(new Communicator(std::move(state)));
  return Status::Ok();
}

Communicator::~Communicator() { state_->Close(nullptr); }

void Communicator::Broadcast(std::vector<BroadcastPiece> pieces, milliseconds stall, Done done) {
  state_->Post(std::move(pieces), stall, std::move(done));
}

void Communicator::Abandon() { state_->Abandon(); }

void Communicator::Close(std::function<void()> closed) { state_->Close(std::move(closed)); }

}  // namespace fst
