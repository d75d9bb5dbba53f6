// A device that counts its calls and fails those that the test chooses.
#pragma once
#include <atomic>
#include <memory>

#include "device/device.h"

namespace fst {

struct DeviceScript {
  int fail_allocate_at = 0, fail_staging_at = 0, fail_submit_at = 0;  // the nth; 0: none
  bool fail_stream = false;
  std::atomic<int> allocates{0}, stagings{0}, submits{0};
};

class ScriptedStream : public CopyStream {
 public:
  ScriptedStream(std::unique_ptr<CopyStream> inner, std::shared_ptr<DeviceScript> script)
      : inner_(std::move(inner)), script_(std::move(script)) {}
  Status Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) override {
    if (++script_->submits == script_->fail_submit_at) return Status(Code::CUDA_ERROR, "told to fail this copy");
    return inner_->Submit(pieces, count, from_device, tag);
  }

 private:
  std::unique_ptr<CopyStream> inner_;
  std::shared_ptr<DeviceScript> script_;
};

// Base: HostDevice or FakeDevice.
template <class Base>
class ScriptedDevice : public Base {
 public:
  template <class... Arguments>
  explicit ScriptedDevice(std::shared_ptr<DeviceScript> script, Arguments... arguments)
      : Base(std::move(arguments)...), script_(std::move(script)) {}

  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override {
    if (++script_->allocates == script_->fail_allocate_at)
      return Status(Code::OUT_OF_DEVICE_MEMORY, "told to fail this allocation");
    return Base::Allocate(bytes, out);
  }
  Status AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) override {
    if (++script_->stagings == script_->fail_staging_at)
      return Status(Code::OUT_OF_HOST_MEMORY, "told to fail this staging memory");
    return Base::AllocateStaging(bytes, out);
  }
  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override {
    if (script_->fail_stream) return Status(Code::CUDA_ERROR, "told to give no stream");
    std::unique_ptr<CopyStream> inner;
    FST_RETURN_IF_ERROR(Base::NewStream(std::move(queue), &inner));
    *out = std::make_unique<ScriptedStream>(std::move(inner), script_);
    return Status::Ok();
  }

 private:
  std::shared_ptr<DeviceScript> script_;
};

}  // namespace fst
