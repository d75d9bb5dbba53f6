// A GPU by its driver. Its memory is filled from page-locked staging memory (or from device memory, for GPUDirect
// Storage) by asynchronous copies on a stream of the engine that asks for one. All work happens in the device's primary
// context, the one that ONNX Runtime, TensorFlow and PyTorch use; it is retained once and kept until the process ends.
// A call that gives something back is made once and its code is not acted on: the driver reports errors of earlier work
// there, and whether it has released cannot be known.
// Source of the rules: CUDA Driver API reference, "Primary Context Management", "Memory Management", "API
// synchronization behavior".
#pragma once
#include "device/cuda_api.h"
#include "device/device.h"

namespace fst {

class CudaDevice : public Device {
 public:
  // Any thread, takes up to a second. DEVICE_UNAVAILABLE without a driver or without that device, CUDA_ERROR.
  // `unified`: tensors are in memory that the host can fill, for GPUs that share their memory with the host: managed
  // memory; where the host may not touch that while the GPU works (Jetson), page-locked memory that the GPU maps.
  static Status Open(int ordinal, bool unified, std::shared_ptr<Device>* out);

  const std::string& name() const override { return name_; }
  bool host_accessible() const override { return unified_; }
  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override;
  Status CheckAvailable(uint64_t bytes) override;
  bool staging_is_expensive() const override { return true; }
  Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) override;
  Status PinHostMemory(void* address, size_t bytes) override;
  Status UnpinHostMemory(void* address) override;
  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override;
  int numa_node() const override { return numa_node_; }
  Status Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) override;
  Status Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) override;
  Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
              size_t count) override;
  DeviceInfo info() const override { return info_; }
  Status Synchronize() override;

  const cuda::CudaApi& api() const { return *api_; }
  // Makes the device's context current on the calling thread: a new thread has none. Before every group of driver
  // calls.
  Status MakeCurrent() const;
  // The same before something is given back, which has to be tried whatever the driver says.
  void MakeCurrentForRelease() const;
  // Memory of the device that no DeviceBuffer owns; the context is current. OUT_OF_DEVICE_MEMORY says asked, free and
  // total.
  Status AllocateMemory(size_t bytes, cuda::CUdeviceptr* out);
  void FreeMemory(cuda::CUdeviceptr memory) const;

 private:
  CudaDevice(const cuda::CudaApi* api, int ordinal, bool unified)
      : api_(api), ordinal_(ordinal), unified_(unified), name_("cuda:" + std::to_string(ordinal)) {}
  Status Init();
  Status SyncNullStream() const;
  Status OutOfMemory(uint64_t bytes) const;

  const cuda::CudaApi* const api_;
  const int ordinal_;
  const bool unified_;
  bool managed_ = false;   // unified memory is
  bool registers_ = true;  // memory of the process's own can be page-locked
  const std::string name_;
  cuda::CUcontext context_ = nullptr;
  int numa_node_ = -1;
  DeviceInfo info_;
};

}  // namespace fst
