// One load in progress: what has arrived, what went wrong, and who holds the memory. The I/O thread writes it, any
// thread reads it.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"
#include "reader/reader.h"
#include "transfer/chunker.h"
#include "transfer/plan.h"

namespace fst {

struct TransferOptions {
  uint32_t window = UINT32_MAX;  // batches below this number may be loaded; see Engine::SetWindow
  // Memory that is there already, by allocation; may be shorter, with nulls. Let go of when its last item is
  // ready or the load ends: TakeAllocation may find it gone.
  std::vector<std::shared_ptr<DeviceBuffer>> memory;
  bool collect_ready = false;  // TakeReady is used: tensors in the order in which they arrive
  Clock::time_point deadline = Clock::time_point::max();  // TIMEOUT after it
  // Called on the I/O thread when there is something new to see. Short, and never calls the engine.
  std::function<void()> notify;
};

class Transfer {
 public:
  Transfer(Plan plan, TransferOptions options);

  const Plan& plan() const { return plan_; }

  // Items [0, ready_prefix()) are complete in memory.
  size_t ready_prefix() const { return ready_prefix_.load(std::memory_order_acquire); }
  size_t ready_count() const { return ready_count_.load(std::memory_order_acquire); }
  uint64_t bytes_loaded() const { return bytes_loaded_.load(std::memory_order_relaxed); }
  int max_in_flight() const { return max_in_flight_.load(std::memory_order_relaxed); }
  // The first error, or OK. An error may be seen before the I/O that it cancelled has drained.
  Status status() const;
  // Nothing of this load is in flight any more and nothing will be started.
  bool drained() const { return drained_.load(std::memory_order_acquire); }

  // Items that have completed since the last call. For collect_ready.
  std::vector<uint32_t> TakeReady();

  // The memory of an allocation of which at least one item is ready; the transfer itself lets go of it when its last
  // item is ready. Null after an error, or for an allocation of size 0.
  std::shared_ptr<DeviceBuffer> TakeAllocation(uint32_t index);

 private:
  friend class Loop;

  struct Memory {
    std::shared_ptr<DeviceBuffer> buffer;
    std::shared_ptr<void> target;  // the reader's, while reads go straight into the buffer; the I/O thread's alone
    uint32_t items_left = 0;
    bool taken = false;
  };
  struct File {
    enum State : uint8_t { kClosed, kOpening, kOpen, kDone } state = kClosed;
    std::shared_ptr<ReaderFile> file;
    size_t last_item = 0;  // that has bytes in it
  };

  friend class Engine;

  void DropMemory();                                  // lets go of what nobody has taken; any thread, when drained
  void CompleteBytes(uint32_t item, uint64_t bytes);  // I/O thread
  void CompleteItem(uint32_t item);                   // I/O thread

  const Plan plan_;
  const TransferOptions options_;

  std::atomic<size_t> ready_prefix_{0}, ready_count_{0};
  std::atomic<uint64_t> bytes_loaded_{0};
  std::atomic<int> max_in_flight_{0};
  std::atomic<uint32_t> window_;
  std::atomic<bool> drained_{false};

  mutable std::mutex mutex_;  // guards status_, memory_ and ready_
  Status status_;
  std::vector<Memory> memory_;
  std::vector<uint32_t> ready_;

  // The I/O thread's alone.
  std::vector<uint64_t> bytes_left_;     // by item
  std::vector<uint32_t> file_sequence_;  // files in the order of their first item that has bytes
  std::vector<size_t> file_first_;       // that item, by position in file_sequence_
  std::vector<File> files_;
  Cursor cursor_;                                               // what was started
  size_t allowed_ = 0;                                          // one past the last item that the window allows
  size_t files_opened_ = 0, files_started_ = 0;                 // positions in file_sequence_
  int ops_ = 0;                                                 // opens, reads and copies in flight
  Clock::time_point starved_since_ = Clock::time_point::max();  // for depth or slots that other loads have
  bool failed_ = false, news_ = false;
};

}  // namespace fst
