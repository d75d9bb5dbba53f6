// What any thread may see and take of one transfer: progress, the first error, and the allocations. What only the I/O
// thread knows of it is in active_transfer.h.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"
#include "reader/mapped_file.h"
#include "transfer/memory_budget.h"
#include "transfer/plan.h"

namespace fst {

struct TransferOptions {
  uint32_t window = UINT32_MAX;  // batches below this number may be loaded; see Engine::SetWindow
  // Allocations that exist already, by index in the plan; may be shorter, with nulls. The transfer releases each when
  // its last item is ready or the transfer ends: TakeAllocation may find it gone.
  std::vector<std::shared_ptr<DeviceBuffer>> preallocated;
  // By file of the plan: those that mapped allocations are views of; may be shorter, with nulls.
  std::vector<std::shared_ptr<MappedFile>> mapped;
  uint32_t device = 0;  // where allocations go: the number of one of the engine's devices
  // What the tensors of all transfers that have it may take together; null: no limit. An allocation that has no room
  // yet waits until others were freed: Transfer::waits_for.
  std::shared_ptr<MemoryBudget> budget;
  bool collect_ready = false;                             // collect items for TakeReady
  bool whole = false;                                     // items that are ready are nothing to notify of
  Clock::time_point deadline = Clock::time_point::max();  // the transfer fails with TIMEOUT after it
  // Called on the I/O thread when there is something new to see. Must be short and must not call the engine.
  std::function<void()> notify;
};

// Safe on any thread: counters are atomics, and mutex_ guards the rest. Plan and options do not change.
class Transfer {
 public:
  Transfer(Plan plan, TransferOptions options);

  const Plan& plan() const { return plan_; }

  // Items [0, ready_prefix()) are complete in memory.
  size_t ready_prefix() const { return ready_prefix_.load(std::memory_order_acquire); }
  size_t ready_count() const { return ready_count_.load(std::memory_order_acquire); }
  uint64_t bytes_loaded() const { return bytes_loaded_.load(std::memory_order_relaxed); }
  // Bytes that the reader was asked for: wanted ones, holes that it reads along, and edges of aligned blocks.
  uint64_t bytes_read() const { return bytes_read_.load(std::memory_order_relaxed); }
  // Bytes of the next allocation while nothing of this transfer is in flight and the budget has no room for it; else 0.
  uint64_t waits_for() const { return waits_for_.load(std::memory_order_relaxed); }
  int max_in_flight() const { return max_in_flight_.load(std::memory_order_relaxed); }
  // The first error, or OK. An error may show before the I/O that it cancels has drained.
  Status status() const;
  // Nothing of this transfer is in flight, and nothing will be started.
  bool drained() const { return drained_.load(std::memory_order_acquire); }
  // Nothing of it is in flight now: it has ended, or waits for its window, a budget, or other transfers.
  bool idle() const { return idle_.load(std::memory_order_relaxed); }

  // Items that have completed since the last call, in the order of their completion. Needs collect_ready.
  std::vector<uint32_t> TakeReady();

  // An allocation of which at least one item is ready. The transfer keeps a reference of its own until the last item is
  // ready. Null after an error, for an allocation of size 0, and for a complete one that was taken or preallocated.
  std::shared_ptr<DeviceBuffer> TakeAllocation(uint32_t index);

  // ---- for the engine; those that publish are called on its I/O thread ----
  const TransferOptions& options() const { return options_; }  // preallocated and mapped are empty
  uint32_t window() const { return window_.load(std::memory_order_relaxed); }
  void set_window(uint32_t window) { window_.store(window, std::memory_order_relaxed); }
  // Bytes of the first window that are not allocated yet.
  uint64_t BytesToAllocate() const;
  bool IsAllocated(uint32_t allocation) const;
  // The buffer of an allocation, on first use a view of `mapped` (may be null) or, where that has none to give,
  // allocated, and then `grant` (may hold null) is the buffer's. The codes of Device::Allocate.
  Status BufferOf(uint32_t allocation, Device& device, MappedFile* mapped, std::shared_ptr<MemoryBudget::Grant>* grant,
                  std::shared_ptr<DeviceBuffer>* out);
  void AddBytesLoaded(uint64_t bytes) { bytes_loaded_.fetch_add(bytes, std::memory_order_relaxed); }
  void AddBytesRead(uint64_t bytes) { bytes_read_.fetch_add(bytes, std::memory_order_relaxed); }
  // Counts an item as ready. True when it was the last one of its allocation.
  bool CompleteItem(uint32_t item);
  void PublishReadyPrefix(size_t prefix) { ready_prefix_.store(prefix, std::memory_order_release); }
  void PublishInFlight(int reads);
  // True when it has begun to wait.
  bool PublishWaitsFor(uint64_t bytes) {
    return waits_for_.exchange(bytes, std::memory_order_relaxed) == 0 && bytes > 0;
  }
  // True when it has become so.
  bool PublishIdle(bool idle) { return !idle_.exchange(idle, std::memory_order_relaxed) && idle; }
  void PublishError(Status status);
  void PublishDrained() { drained_.store(true, std::memory_order_release); }
  // Drops the transfer's own references to all allocations.
  void ReleaseAllocations();

 private:
  struct Allocation {
    std::shared_ptr<DeviceBuffer> buffer;
    uint32_t items_left = 0;
    bool taken = false;
  };

  const Plan plan_;
  TransferOptions options_;

  std::atomic<size_t> ready_prefix_{0}, ready_count_{0};
  std::atomic<uint64_t> bytes_loaded_{0}, bytes_read_{0}, waits_for_{0};
  std::atomic<int> max_in_flight_{0};
  std::atomic<uint32_t> window_;
  std::atomic<bool> idle_{false};
  std::atomic<bool> drained_{false};

  mutable std::mutex mutex_;  // guards status_, allocations_ and ready_
  Status status_;
  std::vector<Allocation> allocations_;
  std::vector<uint32_t> ready_;
};

}  // namespace fst
