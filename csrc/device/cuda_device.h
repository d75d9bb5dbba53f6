// A GPU, through the CUDA driver API. Its memory is filled from page-locked staging memory (from device memory for
// GPUDirect Storage) by asynchronous copies on a stream of each engine. All work happens in the device's primary
// context, which ONNX Runtime, TensorFlow and PyTorch use too; it is retained once and kept until the process ends.
// Calls that release something are made once and their code is ignored: the driver reports errors of earlier work
// there, and does not tell whether it has released. Not so where the memory would be freed or used again next: see
// kept_memory.h. Source of the rules: CUDA Driver API reference, "Primary Context Management", "Memory Management",
// "API synchronization behavior".
#pragma once
#include "device/cuda_api.h"
#include "device/device.h"

namespace fst {

class CudaDevice : public Device {
 public:
  // Any thread but the event loop's: takes up to a second. DEVICE_UNAVAILABLE without a driver or without that device,
  // CUDA_ERROR. `unified`: tensors are in memory that the host can fill, for GPUs that share the host's memory. That is
  // managed memory or, where the host may not touch it while the GPU works (Jetson), page-locked memory. Without `near`
  // staging lies wherever the system puts it, not on the GPU's NUMA node.
  static Status Open(int ordinal, bool unified, std::shared_ptr<Device>* out, bool near = true);

  const std::string& name() const override { return name_; }
  CudaDevice* cuda() override { return this; }
  bool host_accessible() const override { return unified_; }
  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override;
  Status TotalMemory(uint64_t* bytes) override;
  Status CheckAvailable(uint64_t bytes) override;
  bool staging_is_expensive() const override { return true; }
  Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) override;
  Status PinHostMemory(void* address, size_t bytes) override;
  bool UnpinHostMemory(void* address) override;
  Status KeepPinned(void* address, size_t bytes) override;
  Status CheckPinsReadOnly() const override;
  Status PinReadOnly(void* address, size_t bytes) override;
  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override;
  int numa_node() const override { return numa_node_; }
  Status Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) override;
  Status Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) override;
  Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
              size_t count) override;
  // cuda_sharing.cc
  Status ExportMemory(const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                      std::shared_ptr<ExportedMemory>* out) override;
  Status ImportMemory(int fd, size_t size, const std::string& seal, std::shared_ptr<DeviceBuffer>* out) override;
  DeviceInfo info() const override { return info_; }
  Status Synchronize() override;

  const cuda::CudaApi& api() const { return *api_; }
  int ordinal() const { return ordinal_; }
  // Makes the device's context current on the calling thread. Needed before every group of driver calls.
  Status MakeCurrent() const;
  // The same before calls that release something, which are made even if this fails.
  void MakeCurrentForRelease() const;
  // Tensor memory without a DeviceBuffer. The context is current. OUT_OF_DEVICE_MEMORY says requested, free and total.
  Status AllocateMemory(size_t bytes, cuda::CUdeviceptr* out);
  void FreeMemory(cuda::CUdeviceptr memory) const;

 private:
  CudaDevice(const cuda::CudaApi* api, int ordinal, bool unified, bool near)
      : api_(api), ordinal_(ordinal), unified_(unified), near_(near), name_("cuda:" + std::to_string(ordinal)) {}
  Status Init();
  Status SyncNullStream() const;
  Status OutOfMemory(uint64_t bytes) const;

  const cuda::CudaApi* const api_;
  const int ordinal_;
  const bool unified_;
  const bool near_;
  bool managed_ = false;   // unified memory is managed memory
  bool registers_ = true;  // the driver can page-lock memory that the process has allocated
  const std::string name_;
  cuda::CUcontext context_ = nullptr;
  int numa_node_ = -1;
  DeviceInfo info_;
};

}  // namespace fst
