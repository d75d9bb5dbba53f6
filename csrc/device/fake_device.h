// A device for tests, asynchronous like a GPU. Readers cannot fill its tensor memory, and copies run late and in order
// on a thread of their own: a tensor handed out or a slot reused before its copy has completed shows as wrong bytes.
#pragma once
#include "device/host_device.h"

namespace fst {

class FakeDevice : public HostDevice {
 public:
  struct Options {
    int copy_delay_us = 300;    // each copy starts this long after it was submitted
    int fail_copy = 0;          // the nth copy fails with CUDA_ERROR; 0 for none
    uint64_t memory_limit = 0;  // bytes; 0 for no limit
  };
  FakeDevice(std::string name, Options options) : HostDevice(std::move(name)), options_(options) {}
  bool host_accessible() const override { return false; }
  bool maps_files() const override { return false; }
  // Its copies touch what is mapped: a file that becomes shorter meanwhile ends the process.
  Status CheckPinsReadOnly() const override { return Status::Ok(); }
  Status PinReadOnly(void* /*address*/, size_t /*bytes*/) override { return Status::Ok(); }
  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override;
  Status TotalMemory(uint64_t* bytes) override;
  Status CheckAvailable(uint64_t bytes) override;
  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override;

 private:
  const Options options_;
  std::shared_ptr<std::atomic<int64_t>> used_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace fst
