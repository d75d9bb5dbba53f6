#include "device/kept_memory.h"

#include <mutex>
#include <utility>
#include <vector>

namespace fst {
namespace {

struct Kept {
  std::function<bool()> release;
  std::function<void()> free;
  size_t bytes;
  std::atomic<int64_t>* bytes_counter;

  void Count(int64_t sign) const {
    if (bytes_counter != nullptr)
      bytes_counter->fetch_add(sign * static_cast<int64_t>(bytes), std::memory_order_relaxed);
  }
};

struct Keeper {
  std::mutex mutex;
  std::vector<Kept> kept;
};

Keeper& TheKeeper() {
  static auto* keeper = new Keeper;
  return *keeper;
}

}  // namespace

void ReleaseMemory(std::function<bool()> release, std::function<void()> free, size_t bytes,
                   std::atomic<int64_t>* bytes_counter) {
  RetryReleases();
  bool released = release();
  if (!released) released = release();  // the failure may have passed
  if (released) return free();
  Kept kept{std::move(release), std::move(free), bytes, bytes_counter};
  kept.Count(+1);
  std::lock_guard<std::mutex> lock(TheKeeper().mutex);
  TheKeeper().kept.push_back(std::move(kept));
}

void RetryReleases() {
  std::vector<Kept> tried;
  {
    std::lock_guard<std::mutex> lock(TheKeeper().mutex);
    tried.swap(TheKeeper().kept);
  }
  for (Kept& kept : tried) {
    if (kept.release()) {
      kept.Count(-1);
      kept.free();
      continue;
    }
    std::lock_guard<std::mutex> lock(TheKeeper().mutex);
    TheKeeper().kept.push_back(std::move(kept));
  }
}

}  // namespace fst
