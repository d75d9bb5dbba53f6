#include "device/host_device.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/metrics.h"
#include "base/page.h"
#include "base/task_pool.h"
#include "device/host_memory.h"
#include "device/recycled_memory.h"
#include "device/sealed_memory.h"

namespace fst {
namespace {

// Bytes that malloc takes back in less time than it takes to wake a thread for it.
constexpr size_t kFreedAtOnce = 64 << 10;

template <class T>
T* At(uint64_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): an address may be a device's
}

// Shared by all streams of the process: memcpy is limited by memory bandwidth, not by the number of loaders.
TaskPool& CopyThreads() {
  static TaskPool* pool =
      new TaskPool("fst-copy", static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)));
  return *pool;
}

class HostStaging : public StagingMemory {
 public:
  HostStaging(void* memory, size_t size)
      : StagingMemory(reinterpret_cast<uint64_t>(memory), size, /*on_device=*/false) {}
  ~HostStaging() override {
    if (!Recycle(At<void>(address()), size())) FreeHost(At<void>(address()), size());
  }
};

class HostStream : public CopyStream {
 public:
  explicit HostStream(std::shared_ptr<CompletionQueue> queue) : queue_(std::move(queue)) {}

  ~HostStream() override {
    std::unique_lock<std::mutex> lock(pending_->mutex);
    pending_->drained.wait(lock, [this] { return pending_->count == 0; });
  }

  Status Submit(const CopyPiece* pieces, size_t count, bool /*from_device*/, uint64_t tag) override {
    {
      std::lock_guard<std::mutex> lock(pending_->mutex);
      ++pending_->count;
    }
    auto task = [pending = pending_, queue = queue_, list = std::vector<CopyPiece>(pieces, pieces + count), tag] {
      for (const CopyPiece& piece : list) memcpy(At<void>(piece.destination), At<void>(piece.source), piece.length);
      queue->Put({Completion::Kind::kCopy, tag, Status::Ok()});
      pending->Finish();
    };
    Status posted = CopyThreads().Post(std::move(task));
    if (!posted.ok()) pending_->Finish();
    return posted;
  }

 private:
  struct Pending {
    std::mutex mutex;
    std::condition_variable drained;
    int count = 0;
    void Finish() {
      std::lock_guard<std::mutex> lock(mutex);
      if (--count == 0) drained.notify_all();
    }
  };
  std::shared_ptr<CompletionQueue> queue_;
  std::shared_ptr<Pending> pending_ = std::make_shared<Pending>();
};

}  // namespace

Status HostDevice::Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) {
  void* memory = nullptr;
  FST_RETURN_IF_ERROR(AllocateRecycled(bytes, &memory));
  Metrics::Get().host_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  auto free_memory = [memory, bytes](DeviceBuffer* dead) {
    Metrics::Get().host_bytes.fetch_sub(static_cast<int64_t>(bytes), std::memory_order_relaxed);
    delete dead;
    if (bytes <= kFreedAtOnce) return FreeHost(memory, bytes);
    if (!Recycle(memory, bytes)) AfterFrees([memory, bytes] { FreeHost(memory, bytes); });
  };
  out->reset(new DeviceBuffer(shared_from_this(), reinterpret_cast<uint64_t>(memory), bytes), free_memory);
  return Status::Ok();
}

Status HostDevice::TotalMemory(uint64_t* bytes) {
  *bytes = TotalHostBytes();
  return Status::Ok();
}

Status HostDevice::CheckAvailable(uint64_t bytes) {
  uint64_t available = AvailableHostBytes();
  if (bytes > available) {
    WaitForFrees();  // buffers that are being freed count as free, and so does what is kept
    DropRecycled();
    available = AvailableHostBytes();
  }
  if (bytes <= available) return Status::Ok();
  return Status(Code::OUT_OF_HOST_MEMORY,
                Format("this load needs %llu bytes of host memory and %llu are available; load fewer tensors at a time "
                       "(filter, maxBatchBytes)",
                       static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(available)));
}

Status HostDevice::AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) {
  bytes = std::max(bytes, kPage);
  void* memory = nullptr;
  FST_RETURN_IF_ERROR(AllocateRecycled(bytes, &memory));
  *out = std::make_unique<HostStaging>(memory, bytes);
  return Status::Ok();
}

Status HostDevice::NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) {
  *out = std::make_unique<HostStream>(std::move(queue));
  return Status::Ok();
}

Status HostDevice::Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) {
  if (length > 0) memcpy(host, At<char>(source.address()) + offset, length);
  return Status::Ok();
}

Status HostDevice::Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) {
  if (length > 0) memcpy(At<char>(destination.address()) + offset, host, length);
  return Status::Ok();
}

Status HostDevice::Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
                        size_t count) {
  for (size_t i = 0; i < count; ++i) {
    memmove(At<char>(destination.address()) + regions[i].destination_offset,
            At<char>(source.address()) + regions[i].source_offset, regions[i].length);
  }
  return Status::Ok();
}

Status HostDevice::ExportMemory(const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                                std::shared_ptr<ExportedMemory>* out) {
  return SealMemory(*this, parts, size, seal, out);
}

Status HostDevice::ImportMemory(int fd, size_t size, const std::string& seal, std::shared_ptr<DeviceBuffer>* out) {
  return MapSealed(shared_from_this(), fd, size, seal, out);
}

}  // namespace fst
