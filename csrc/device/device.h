// The contract of a device: memory for tensors, staging memory to copy from, and streams that copy.
// To add one: derive Device, and name it in device/devices.cc. The transfer loop knows nothing else of it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/completion_queue.h"
#include "base/status.h"

namespace fst {

class Device;

// One allocation of tensor memory. Shared pointers to it are its reference count; the last one may go on any thread:
// the memory is then given back on a thread of the device, never on the caller's.
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

// Memory that data passes through on its way to the device: slots are cut from it. Freed by its destructor (any
// thread), which must not run while a read or copy may touch it.
class StagingMemory {
 public:
  virtual ~StagingMemory() = default;
  uint64_t address() const { return address_; }
  size_t size() const { return size_; }
  bool on_device() const { return on_device_; }  // device memory (a GDS ring), not addressable by the host

 protected:
  StagingMemory(uint64_t address, size_t size, bool on_device)
      : address_(address), size_(size), on_device_(on_device) {}

 private:
  uint64_t address_;
  size_t size_;
  bool on_device_;
};

struct CopyPiece {
  uint64_t source;       // inside staging memory
  uint64_t destination;  // inside a DeviceBuffer
  size_t length;
};

// Copies out of staging memory, in order or not. Used by one I/O thread. Completions go to the queue given at its
// creation, one for each Submit, with Kind::kCopy: only when it has arrived may the slot be reused or the tensor be
// handed out.
class CopyStream {
 public:
  // Waits until no copy of this stream can touch memory any more (errors included).
  virtual ~CopyStream() = default;
  // The pieces are read before this returns or kept alive by the stream; source and destination memory stays valid
  // until the completion. A failure is returned or completes with a status, never both.
  virtual Status Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) = 0;
};

struct CopyRegion {
  size_t source_offset, destination_offset, length;
};

struct DeviceInfo {
  std::string model;    // "NVIDIA H100 80GB HBM3"; empty for the host
  std::string bus_id;   // "0000:3B:00.0"
  std::string library;  // the driver that was loaded
  int compute_major = 0, compute_minor = 0;
  int driver_version = 0;   // 12040 is 12.4
  bool integrated = false;  // shares its memory with the host
};

class Device : public std::enable_shared_from_this<Device> {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual const std::string& name() const = 0;
  // True when the host may read and write tensor memory: readers then fill it directly.
  virtual bool host_accessible() const = 0;

  // Any thread, may block. OK: 256-aligned memory of `bytes` > 0 with any content. OUT_OF_HOST_MEMORY,
  // OUT_OF_DEVICE_MEMORY, CUDA_ERROR.
  virtual Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) = 0;
  // Fails where `bytes` more can surely not be had, before anything is allocated.
  virtual Status CheckAvailable(uint64_t bytes) = 0;
  // AllocateStaging takes long: small loads better do with a part of their slots.
  virtual bool staging_is_expensive() const { return false; }
  // Host memory that this device copies from fastest (page-locked on CUDA), 4096-aligned.
  virtual Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) = 0;
  // Makes existing host memory (an iov in shared memory) as fast to copy from as AllocateStaging's, and back. Nothing
  // to do on the host.
  virtual Status PinHostMemory(void* address, size_t bytes) = 0;
  virtual Status UnpinHostMemory(void* address) = 0;
  virtual Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) = 0;
  // The NUMA node nearest to this device, -1 when unknown or all the same.
  virtual int numa_node() const { return -1; }

  // Blocking copies for single tensors, from any thread but the event loop's. Ranges are inside the buffers.
  virtual Status Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) = 0;
  virtual Status Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) = 0;
  virtual Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
                      size_t count) = 0;

  virtual DeviceInfo info() const { return {}; }
  // Waits until everything that this process has queued on the device, by whomever, is done. Nothing to wait for on the
  // host. Any thread but the event loop's.
  virtual Status Synchronize() { return Status::Ok(); }
};

// Wraps memory into a counted buffer: `free_memory` runs on the process's freeing thread when the last reference has
// gone. `bytes_counter` of nativeMetrics() falls at once, with the last reference.
std::shared_ptr<DeviceBuffer> MakeBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size,
                                         std::atomic<int64_t>* bytes_counter, std::function<void()> free_memory);

// Waits until memory that was let go of so far has been freed. Not on the event loop.
void WaitForFrees();

}  // namespace fst
