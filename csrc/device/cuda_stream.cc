#include "device/cuda_stream.h"

#include <condition_variable>
#include <deque>
#include <mutex>

#include "base/thread.h"

namespace fst {
namespace {

// CU_EVENT_BLOCKING_SYNC: the waiting thread sleeps. A spinning one would take a core from the readers.
constexpr unsigned kEventFlags = 1 | cuda::kEventDisableTiming;

}  // namespace

struct CudaStream::State {
  std::shared_ptr<CudaDevice> device;
  std::shared_ptr<CompletionQueue> queue;
  cuda::CUstream stream = nullptr;

  struct Recorded {
    cuda::CUevent event;
    uint64_t tag;
  };
  std::mutex mutex;  // guards what follows
  std::condition_variable wake, ended;
  std::deque<Recorded> recorded;
  std::vector<cuda::CUevent> free_events;
  bool stopping = false, stopped = false;

  const cuda::CudaApi& api() const { return device->api(); }

  // The thread. After a failed wait it drains the stream: no copy may touch the slot once its completion is put.
  void Run() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [this] { return stopping || !recorded.empty(); });
      if (recorded.empty()) break;
      Recorded next = recorded.front();
      recorded.pop_front();
      lock.unlock();
      Status arrived = device->MakeCurrent();
      if (arrived.ok()) arrived = FST_CUDA_CHECK(api(), EventSynchronize, next.event);
      if (!arrived.ok()) Drain();
      queue->Put({Completion::Kind::kCopy, next.tag, std::move(arrived)});
      lock.lock();
      free_events.push_back(next.event);
    }
    stopped = true;
    ended.notify_all();
  }

  // Any thread. Afterwards no copy of this stream is in progress: all have ended, or the device is lost.
  void Drain() {
    if (!device->MakeCurrent().ok() && !device->MakeCurrent().ok()) return;
    if (api().StreamSynchronize(stream) != cuda::kSuccess) api().StreamSynchronize(stream);
  }

  Status TakeEvent(cuda::CUevent* event) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      if (!free_events.empty()) {
        *event = free_events.back();
        free_events.pop_back();
        return Status::Ok();
      }
    }
    return FST_CUDA_CHECK(api(), EventCreate, event, kEventFlags);
  }
};

Status CudaStream::Create(std::shared_ptr<CudaDevice> device, std::shared_ptr<CompletionQueue> queue,
                          std::unique_ptr<CopyStream>* out) {
  auto state = std::make_shared<State>();
  state->device = std::move(device);
  state->queue = std::move(queue);
  FST_RETURN_IF_ERROR(state->device->MakeCurrent());
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(state->api(), StreamCreate, &state->stream, cuda::kStreamNonBlocking));
  Status started = StartThread("fst-cuda", [state] { state->Run(); });
  if (!started.ok()) {
    state->api().StreamDestroy(state->stream);
    return started;
  }
  out->reset(new CudaStream(std::move(state)));
  return Status::Ok();
}

// No copy is in progress when the thread has stopped: each was waited for or drained before its completion was put or
// its Submit returned an error.
CudaStream::~CudaStream() {
  {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_all();
    state_->ended.wait(lock, [this] { return state_->stopped; });
  }
  state_->device->MakeCurrentForRelease();
  for (cuda::CUevent event : state_->free_events) state_->api().EventDestroy(event);
  state_->api().StreamDestroy(state_->stream);
}

Status CudaStream::Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) {
  State& state = *state_;
  const cuda::CudaApi& api = state.api();
  FST_RETURN_IF_ERROR(state.device->MakeCurrent());
  cuda::CUevent event = nullptr;
  FST_RETURN_IF_ERROR(state.TakeEvent(&event));
  Status status;
  for (size_t i = 0; i < count && status.ok(); ++i) {
    const CopyPiece& piece = pieces[i];
    if (from_device) {
      status = FST_CUDA_CHECK(api, MemcpyDtoDAsync, piece.destination, piece.source, piece.length, state.stream);
    } else {
      auto* source = reinterpret_cast<const void*>(piece.source);  // NOLINT(performance-no-int-to-ptr)
      status = FST_CUDA_CHECK(api, MemcpyHtoDAsync, piece.destination, source, piece.length, state.stream);
    }
  }
  if (status.ok()) status = FST_CUDA_CHECK(api, EventRecord, event, state.stream);
  std::lock_guard<std::mutex> lock(state.mutex);
  if (!status.ok()) {
    // Pieces that were started still read the slot, which the caller reuses after this returns.
    state.Drain();
    state.free_events.push_back(event);
    return status;
  }
  state.recorded.push_back({event, tag});
  state.wake.notify_one();
  return Status::Ok();
}

}  // namespace fst
