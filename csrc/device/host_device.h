// The host as a device ("cpu"): tensors in huge pages, and a pool of copy threads as its stream.
#pragma once
#include "device/device.h"

namespace fst {

class HostDevice : public Device {
 public:
  explicit HostDevice(std::string name = "cpu") : name_(std::move(name)) {}
  const std::string& name() const override { return name_; }
  bool host_accessible() const override { return true; }
  bool maps_files() const override { return true; }
  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override;
  Status TotalMemory(uint64_t* bytes) override;
  Status CheckAvailable(uint64_t bytes) override;
  Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) override;
  Status PinHostMemory(void*, size_t) override { return Status::Ok(); }
  bool UnpinHostMemory(void*) override { return true; }
  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override;
  Status Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) override;
  Status Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) override;
  Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
              size_t count) override;
  Status ExportMemory(const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                      std::shared_ptr<ExportedMemory>* out) override;
  Status ImportMemory(int fd, size_t size, const std::string& seal, std::shared_ptr<DeviceBuffer>* out) override;

 private:
  const std::string name_;
};

}  // namespace fst
