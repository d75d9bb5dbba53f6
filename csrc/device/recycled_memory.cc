#include "device/recycled_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "device/host_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#define FST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FST_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef FST_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) static_cast<void>(0)
#endif

namespace fst {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kIdle = std::chrono::milliseconds(500);
constexpr uint64_t kShareOfMemory = 8;

void* At(uintptr_t address) {
  return reinterpret_cast<void*>(address);  // NOLINT(performance-no-int-to-ptr): pieces are cut by numbers
}

class Pool {
 public:
  // Of the process, never destroyed: threads that outlive main() free memory.
  static Pool& Get() {
    static auto* pool = new Pool;
    return *pool;
  }

  // The best of the pieces that are long enough; where there is none, so much is given back that what is allocated
  // instead does not add to it.
  void* Take(size_t bytes) {
    std::vector<Piece> dropped;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      used_ = Clock::now();
      auto best = pieces_.end();
      for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
        if (piece->second >= bytes && (best == pieces_.end() || piece->second < best->second)) best = piece;
      }
      if (best != pieces_.end()) {
        const auto [address, length] = *best;
        pieces_.erase(best);
        if (length > bytes) pieces_.emplace(address + bytes, length - bytes);
        bytes_ -= bytes;
        ASAN_UNPOISON_MEMORY_REGION(At(address), bytes);
        return At(address);
      }
      uint64_t more = bytes;
      while (more > 0 && !pieces_.empty()) {
        dropped.emplace_back(*pieces_.begin());
        bytes_ -= dropped.back().second;
        more -= std::min<uint64_t>(more, dropped.back().second);
        pieces_.erase(pieces_.begin());
      }
    }
    Unmap(dropped);
    return nullptr;
  }

  bool Keep(uintptr_t address, size_t bytes) {
    static const uint64_t most = TotalHostBytes() / kShareOfMemory;
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ + bytes > most || !WatchIdle()) return false;
    ASAN_POISON_MEMORY_REGION(At(address), bytes);
    used_ = Clock::now();
    bytes_ += bytes;
    auto piece = pieces_.emplace(address, bytes).first;
    auto next = std::next(piece);
    if (next != pieces_.end() && address + bytes == next->first) {
      piece->second += next->second;
      pieces_.erase(next);
    }
    if (piece == pieces_.begin()) return true;
    auto before = std::prev(piece);
    if (before->first + before->second == address) {
      before->second += piece->second;
      pieces_.erase(piece);
    }
    return true;
  }

  void Drop() {
    std::vector<Piece> dropped;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      dropped.assign(pieces_.begin(), pieces_.end());
      pieces_.clear();
      bytes_ = 0;
    }
    Unmap(dropped);
  }

  uint64_t bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  using Piece = std::pair<uintptr_t, size_t>;

  static void Unmap(const std::vector<Piece>& pieces) {
    for (const auto& [address, length] : pieces) {
      ASAN_UNPOISON_MEMORY_REGION(At(address), length);
      munmap(At(address), length);
    }
  }

  // With the lock held. The thread ends when it has given everything back.
  bool WatchIdle() {
    if (watched_) return true;
    used_ = Clock::now();
    watched_ = StartThread("fst-host-idle", [this] { GiveBackWhenIdle(); }).ok();
    return watched_;
  }

  void GiveBackWhenIdle() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (Clock::now() < used_ + kIdle) idle_.wait_until(lock, used_ + kIdle);
    std::vector<Piece> dropped(pieces_.begin(), pieces_.end());
    pieces_.clear();
    bytes_ = 0;
    watched_ = false;
    lock.unlock();
    Unmap(dropped);
  }

  std::mutex mutex_;
  std::condition_variable idle_;
  std::map<uintptr_t, size_t> pieces_;  // by address; no two touch
  uint64_t bytes_ = 0;
  Clock::time_point used_;
  bool watched_ = false;
};

}  // namespace

Status AllocateRecycled(size_t bytes, void** out) {
  if (bytes >= kHugePage && bytes <= std::numeric_limits<size_t>::max() / 4) {
    *out = Pool::Get().Take(MappedBytes(bytes));
    if (*out != nullptr) return Status::Ok();
  }
  Status allocated = AllocateHost(bytes, out);
  if (allocated.ok() || RecycledBytes() == 0) return allocated;
  DropRecycled();
  return AllocateHost(bytes, out);
}

bool Recycle(void* address, size_t bytes) {
  return bytes >= kHugePage && Pool::Get().Keep(reinterpret_cast<uintptr_t>(address), MappedBytes(bytes));
}

void DropRecycled() { Pool::Get().Drop(); }

uint64_t RecycledBytes() { return Pool::Get().bytes(); }

}  // namespace fst
