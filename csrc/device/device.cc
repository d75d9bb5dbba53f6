#include "device/device.h"

#include <future>

#include "base/task_pool.h"

namespace fst {
namespace {

// One thread for all devices: freeing takes milliseconds (munmap; cuMemFree synchronizes), which no caller should pay.
TaskPool& FreeingThread() {
  static TaskPool* pool = new TaskPool("fst-free", 1);
  return *pool;
}

}  // namespace

std::shared_ptr<DeviceBuffer> MakeBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size,
                                         std::atomic<int64_t>* bytes_counter, std::function<void()> free_memory) {
  const auto bytes = static_cast<int64_t>(size);
  bytes_counter->fetch_add(bytes, std::memory_order_relaxed);
  auto dropped = [bytes_counter, bytes] { bytes_counter->fetch_sub(bytes, std::memory_order_relaxed); };
  return MakeBuffer(std::move(device), address, size, dropped, std::move(free_memory));
}

std::shared_ptr<DeviceBuffer> MakeBuffer(std::shared_ptr<Device> device, uint64_t address, size_t size,
                                         std::function<void()> dropped, std::function<void()> free_memory) {
  auto* buffer = new DeviceBuffer(std::move(device), address, size);
  return std::shared_ptr<DeviceBuffer>(
      buffer, [dropped = std::move(dropped), free_memory = std::move(free_memory)](DeviceBuffer* dead) mutable {
        dropped();
        dropped = nullptr;
        // Keeps the device until its memory has been freed. Moved: the last copy of what they hold goes there.
        auto task = [device = dead->shared_device(), free_memory = std::move(free_memory)] { free_memory(); };
        if (!FreeingThread().Post(task).ok()) task();
        delete dead;
      });
}

Status Device::CheckPinsReadOnly() const {
  return Status(Code::DEVICE_UNAVAILABLE, name() + " does not copy from page-locked memory");
}

Status Device::PinReadOnly(void* /*address*/, size_t /*bytes*/) { return CheckPinsReadOnly(); }

Status Device::ExportMemory(const std::vector<ExportPart>& /*parts*/, size_t /*size*/, const std::string& /*seal*/,
                            std::shared_ptr<ExportedMemory>* /*out*/) {
  return Status(Code::DEVICE_UNAVAILABLE, name() +
                                              " has no memory that other processes can have; copy the tensors to "
                                              "the host, or load them in each process");
}

Status Device::ImportMemory(int /*fd*/, size_t /*size*/, const std::string& /*seal*/,
                            std::shared_ptr<DeviceBuffer>* /*out*/) {
  return Status(Code::DEVICE_UNAVAILABLE, name() + " takes no memory of other processes; load the tensors here");
}

void AfterFrees(const std::function<void()>& then) {
  if (!FreeingThread().Post(then).ok()) then();
}

void WaitForFrees() {
  auto reached = std::make_shared<std::promise<void>>();
  if (FreeingThread().Post([reached] { reached->set_value(); }).ok()) reached->get_future().wait();
}

}  // namespace fst
