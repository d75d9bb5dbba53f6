// The contract of a device: memory for tensors, staging memory to copy from, and streams that copy. To add a device:
// derive Device and name it in device/devices.cc. The transfer loop knows nothing else about it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/completion_queue.h"
#include "base/fd.h"
#include "base/metrics.h"
#include "base/status.h"

namespace fst {

class CudaDevice;
class Device;

// One allocation of tensor memory. Shared pointers to it are its reference count. The last one may be dropped on any
// thread: the memory is freed on the process's freeing thread; on the caller's only where that takes no time (a few KiB
// of host memory).
class DeviceBuffer {
 public:
  DeviceBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size)
      : device_(std::move(device)), address_(address), size_(size) {}
  uint64_t address() const { return address_; }  // a multiple of 256, in the device's address space
  size_t size() const { return size_; }          // bytes, > 0
  Device& device() const { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  uint64_t address_;
  size_t size_;
};

// Memory that data passes through on its way to the device: slots are cut from it. Its destructor frees it, on any
// thread, and must not run while a read or copy may touch the memory.
class StagingMemory {
 public:
  virtual ~StagingMemory() { Count(-static_cast<int64_t>(size_)); }
  uint64_t address() const { return address_; }
  size_t size() const { return size_; }
  bool on_device() const { return on_device_; }  // device memory (for GDS), which the host cannot address

 protected:
  StagingMemory(uint64_t address, size_t size, bool on_device) : address_(address), size_(size), on_device_(on_device) {
    Count(static_cast<int64_t>(size));
  }

 private:
  static void Count(int64_t bytes) { Metrics::Get().staging_bytes.fetch_add(bytes, std::memory_order_relaxed); }

  uint64_t address_;
  size_t size_;
  bool on_device_;
};

struct CopyPiece {
  uint64_t source;       // inside staging memory
  uint64_t destination;  // inside a DeviceBuffer
  size_t length;
};

// Copies out of staging memory, in any order. Used by one I/O thread. Each Submit puts one completion (Kind::kCopy)
// into the queue that the stream was created with: until then the slot must not be reused nor the tensor be handed out.
class CopyStream {
 public:
  // Waits until no copy of this stream can touch memory any more, failed ones included.
  virtual ~CopyStream() = default;
  // `pieces` need not outlive the call; source and destination memory must, until the completion. A failure is returned
  // or completes with a status, never both.
  virtual Status Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) = 0;
};

struct CopyRegion {
  size_t source_offset, destination_offset, length;
};

struct DeviceInfo {
  std::string model;    // "NVIDIA H100 80GB HBM3"; empty for the host
  std::string bus_id;   // "0000:3B:00.0"
  std::string library;  // path of the driver that was loaded
  int compute_major = 0, compute_minor = 0;
  int driver_version = 0;   // 12040 is 12.4
  bool integrated = false;  // shares its memory with the host
};

// Bytes of a buffer, and where a copy of them goes.
struct ExportPart {
  std::shared_ptr<DeviceBuffer> buffer;
  size_t offset, length;  // inside the buffer, length > 0
  uint64_t at;
};

// Memory for other processes, which a descriptor stands for: Device::ExportMemory. Counts until it is closed here; it
// lives on in processes that have it.
class ExportedMemory {
 public:
  ExportedMemory(UniqueFd fd, size_t size, std::atomic<int64_t>* bytes_counter)
      : fd_(std::move(fd)), size_(static_cast<int64_t>(size)), bytes_counter_(bytes_counter) {
    bytes_counter_->fetch_add(size_, std::memory_order_relaxed);
  }
  ~ExportedMemory() { bytes_counter_->fetch_sub(size_, std::memory_order_relaxed); }
  ExportedMemory(const ExportedMemory&) = delete;
  ExportedMemory& operator=(const ExportedMemory&) = delete;
  int fd() const { return fd_.get(); }

 private:
  const UniqueFd fd_;
  const int64_t size_;
  std::atomic<int64_t>* const bytes_counter_;
};

class Device : public std::enable_shared_from_this<Device> {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual const std::string& name() const = 0;
  // Itself where it is a GPU through the CUDA driver, else null.
  virtual CudaDevice* cuda() { return nullptr; }
  // The host may read and write tensor memory: readers then fill it directly.
  virtual bool host_accessible() const = 0;

  // Tensor memory may as well be a mapping of the file that they come from: ordinary host memory.
  virtual bool maps_files() const { return false; }

  // Any thread, may block. OK: 256-aligned memory of `bytes` > 0, uninitialized. OUT_OF_HOST_MEMORY,
  // OUT_OF_DEVICE_MEMORY, CUDA_ERROR.
  virtual Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) = 0;
  // Bytes of all memory that this device has for tensors, used or not; of the host, what the control group of this
  // process allows. Any thread but the event loop's. CUDA_ERROR.
  virtual Status TotalMemory(uint64_t* bytes) = 0;
  // Fails early if the allocation of `bytes` more cannot succeed. The codes of Allocate; OK promises nothing.
  virtual Status CheckAvailable(uint64_t bytes) = 0;
  // Staging is page-locked: allocating it takes long, so small loads should do with few slots.
  virtual bool staging_is_expensive() const { return false; }
  // Host memory that this device copies from fastest (page-locked for CUDA), 4096-aligned.
  virtual Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) = 0;
  // Page-locks existing host memory (a 3FS iov), so that copying from it is as fast as from AllocateStaging's; and
  // undoes it. Does nothing on the host.
  virtual Status PinHostMemory(void* address, size_t bytes) = 0;
  // False where the memory may still be page-locked: it must not be unmapped then, see kept_memory.h.
  virtual bool UnpinHostMemory(void* address) = 0;
  // Makes sure that memory of PinHostMemory still is page-locked: a reset of the GPU undoes it.
  virtual Status KeepPinned(void* /*address*/, size_t /*bytes*/) { return Status::Ok(); }
  // Whether this device copies from page-locked memory that is mapped read-only: pages of a file. DEVICE_UNAVAILABLE
  // says why not. Any thread but the event loop's.
  virtual Status CheckPinsReadOnly() const;
  // PinHostMemory for whole pages that are mapped read-only, where CheckPinsReadOnly is OK; UnpinHostMemory undoes it.
  // Any thread; brings in pages that are not there.
  virtual Status PinReadOnly(void* address, size_t bytes);
  virtual Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) = 0;
  // The NUMA node nearest to this device; -1 if unknown or if all are equally near.
  virtual int numa_node() const { return -1; }

  // Blocking copies for single tensors, from any thread but the event loop's. Ranges are inside the buffers.
  virtual Status Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) = 0;
  virtual Status Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) = 0;
  virtual Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
                      size_t count) = 0;

  // Copies `parts`, which lie on this device and do not overlap, into new memory of `size` bytes that other processes
  // can have by a descriptor, and puts `seal` at its end. Blocks. DEVICE_UNAVAILABLE where this device has none of
  // that, and the codes of Allocate and Copy.
  virtual Status ExportMemory(const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                              std::shared_ptr<ExportedMemory>* out);
  // A buffer over such memory, which lives as long as the buffer, whatever becomes of the process that made it. Nothing
  // of `fd`, `size` and `seal` is believed: INVALID_ARGUMENT, METADATA_INCOMPLETE_BUFFER. The descriptor stays the
  // caller's. Blocks.
  virtual Status ImportMemory(int fd, size_t size, const std::string& seal, std::shared_ptr<DeviceBuffer>* out);

  virtual DeviceInfo info() const { return {}; }
  // Waits for all work that this process has queued on the device, other libraries' included. Any thread but the event
  // loop's. Does nothing on the host.
  virtual Status Synchronize() { return Status::Ok(); }
};

// Wraps memory into a counted buffer. When the last reference is dropped, `bytes_counter` (of Metrics) falls at once
// and `free_memory` runs on the freeing thread.
std::shared_ptr<DeviceBuffer> MakeBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size,
                                         std::atomic<int64_t>* bytes_counter, std::function<void()> free_memory);

// The same where the memory counts in another way: `dropped` runs at once when the last reference is dropped.
std::shared_ptr<DeviceBuffer> MakeBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size,
                                         std::function<void()> dropped, std::function<void()> free_memory);

// Waits until all buffers that were dropped so far have been freed. Not on the event loop.
void WaitForFrees();

// Calls `then` when all buffers that were dropped so far have been freed, on the thread that frees.
void AfterFrees(const std::function<void()>& then);

}  // namespace fst
