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
  bytes_counter->fetch_add(static_cast<int64_t>(size), std::memory_order_relaxed);
  auto* buffer = new DeviceBuffer(std::move(device), address, size);
  return std::shared_ptr<DeviceBuffer>(
      buffer, [bytes_counter, free_memory = std::move(free_memory)](DeviceBuffer* dead) {
        bytes_counter->fetch_sub(static_cast<int64_t>(dead->size()), std::memory_order_relaxed);
        // Keeps the device until its memory has been freed.
        auto task = [device = dead->shared_device(), free_memory] { free_memory(); };
        if (!FreeingThread().Post(task).ok()) task();
        delete dead;
      });
}

void WaitForFrees() {
  auto reached = std::make_shared<std::promise<void>>();
  if (FreeingThread().Post([reached] { reached->set_value(); }).ok()) reached->get_future().wait();
}

}  // namespace fst
