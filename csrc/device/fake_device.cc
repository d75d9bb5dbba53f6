#include "device/fake_device.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

#include "base/metrics.h"
#include "base/thread.h"
#include "device/host_memory.h"

namespace fst {
namespace {

class FakeStream : public CopyStream {
 public:
  FakeStream(std::shared_ptr<CompletionQueue> queue, FakeDevice::Options options) : state_(std::make_shared<State>()) {
    state_->queue = std::move(queue);
    state_->options = options;
  }

  Status Start() {
    return StartThread("fst-fake-dev", [state = state_] { state->Run(); });
  }

  ~FakeStream() override {
    std::unique_lock<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    state_->wake.notify_all();
    state_->idle.wait(lock, [this] { return state_->copies.empty() && !state_->busy; });
  }

  Status Submit(const CopyPiece* pieces, size_t count, bool /*from_device*/, uint64_t tag) override {
    std::lock_guard<std::mutex> lock(state_->mutex);
    auto due = Clock::now() + std::chrono::microseconds(state_->options.copy_delay_us);
    state_->copies.push_back({due, std::vector<CopyPiece>(pieces, pieces + count), tag});
    state_->wake.notify_all();
    return Status::Ok();
  }

 private:
  struct Copy {
    Clock::time_point due;
    std::vector<CopyPiece> pieces;
    uint64_t tag;
  };
  struct State {
    std::shared_ptr<CompletionQueue> queue;
    FakeDevice::Options options;
    std::mutex mutex;
    std::condition_variable wake, idle;
    std::deque<Copy> copies;
    bool busy = false, stopping = false;
    int done = 0;

    void Run() {
      std::unique_lock<std::mutex> lock(mutex);
      for (;;) {
        wake.wait(lock, [this] { return stopping || !copies.empty(); });
        if (copies.empty()) return;
        Copy copy = std::move(copies.front());
        copies.pop_front();
        busy = true;
        bool fails = ++done == options.fail_copy;
        wake.wait_until(lock, copy.due, [] { return false; });
        lock.unlock();
        Status status;
        if (fails) {
          status = Status(Code::CUDA_ERROR, Format("the fake device was told to fail its copy %d", options.fail_copy));
        } else {
          for (const CopyPiece& piece : copy.pieces) {
            memcpy(reinterpret_cast<void*>(piece.destination), reinterpret_cast<const void*>(piece.source),
                   piece.length);
          }
        }
        queue->Put({Completion::Kind::kCopy, copy.tag, status});
        lock.lock();
        busy = false;
        idle.notify_all();
      }
    }
  };
  std::shared_ptr<State> state_;
};

}  // namespace

Status FakeDevice::TotalMemory(uint64_t* bytes) {
  *bytes = options_.memory_limit > 0 ? options_.memory_limit : TotalHostBytes();
  return Status::Ok();
}

Status FakeDevice::CheckAvailable(uint64_t bytes) {
  if (options_.memory_limit == 0) return Status::Ok();
  uint64_t used = static_cast<uint64_t>(used_->load());
  if (used + bytes > options_.memory_limit) {
    WaitForFrees();  // buffers that are being freed count as free
    used = static_cast<uint64_t>(used_->load());
  }
  if (used + bytes <= options_.memory_limit) return Status::Ok();
  return Status(Code::OUT_OF_DEVICE_MEMORY,
                Format("asked for %llu bytes on %s, %llu of %llu are free", static_cast<unsigned long long>(bytes),
                       name().c_str(), static_cast<unsigned long long>(options_.memory_limit - used),
                       static_cast<unsigned long long>(options_.memory_limit)));
}

Status FakeDevice::Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) {
  FST_RETURN_IF_ERROR(CheckAvailable(bytes));
  void* memory = nullptr;
  FST_RETURN_IF_ERROR(AllocateHost(bytes, &memory));
  // Poison, to show bytes that no copy wrote. Only in small buffers, to keep tests quick.
  if (bytes <= (size_t{1} << 20)) memset(memory, 0xA5, bytes);
  used_->fetch_add(static_cast<int64_t>(bytes));
  *out = MakeBuffer(shared_from_this(), reinterpret_cast<uint64_t>(memory), bytes, &Metrics::Get().device_bytes,
                    [memory, bytes, used = used_] {
                      FreeHost(memory, bytes);
                      used->fetch_sub(static_cast<int64_t>(bytes));
                    });
  return Status::Ok();
}

Status FakeDevice::NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) {
  auto stream = std::make_unique<FakeStream>(std::move(queue), options_);
  FST_RETURN_IF_ERROR(stream->Start());
  *out = std::move(stream);
  return Status::Ok();
}

}  // namespace fst
