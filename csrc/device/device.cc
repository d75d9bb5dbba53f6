#include "device/device.h"

#include <condition_variable>
#include <mutex>

#include "base/task_pool.h"

namespace fst {
namespace {

// One thread for all devices: freeing takes milliseconds (unmapping, cuMemFree synchronises), and nobody waits for it.
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
        // The device outlives the freeing of its memory.
        auto task = [device = dead->shared_device(), free_memory] { free_memory(); };
        if (!FreeingThread().Post(task).ok()) task();
        delete dead;
      });
}

void WaitForFrees() {
  struct Reached {
    std::mutex mutex;
    std::condition_variable wake;
    bool reached = false;
  };
  auto here = std::make_shared<Reached>();
  auto task = [here] {
    std::lock_guard<std::mutex> lock(here->mutex);
    here->reached = true;
    here->wake.notify_all();
  };
  if (!FreeingThread().Post(task).ok()) return;
  std::unique_lock<std::mutex> lock(here->mutex);
  here->wake.wait(lock, [&] { return here->reached; });
}

}  // namespace fst
