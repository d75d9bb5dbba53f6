// A reader, a device and the one thread between them. Loads of an engine share its slots and its depth; the stream of
// reads runs on across files and loads.
#pragma once
#include <functional>
#include <memory>

#include "transfer/transfer.h"

namespace fst {

struct EngineOptions {
  bool always_stage = false;          // slots even where the reader could fill tensor memory
  uint64_t max_bytes_per_second = 0;  // 0: no limit
  std::chrono::milliseconds stall_timeout{90000};
  uint64_t chunk_bytes = 0;                    // of one read; 0: what suits the reader
  uint64_t staging_limit = uint64_t{1} << 30;  // all slots together
  // Loads convert: where converted elements need room in their slot it is made larger by that, so that reads need not
  // be shorter than others.
  bool converts = false;
};

class Engine {
 public:
  // Starts the thread; never blocks. What goes wrong in the reader's own start fails every load.
  static Status Create(std::shared_ptr<Device> device, std::unique_ptr<Reader> reader, EngineOptions options,
                       std::shared_ptr<Engine>* out);
  // Closes, if Close has not been called. Never waits.
  ~Engine();

  // Any thread, never blocks. The plan has been validated. CLOSED after Close, UNSUPPORTED_DTYPE for a plan that
  // converts when the reader's slots are device memory.
  Status Start(Plan plan, TransferOptions options, std::shared_ptr<Transfer>* out);
  // Allows batches below `window`.
  void SetWindow(const std::shared_ptr<Transfer>& transfer, uint32_t window);
  // Ends a load with this status unless it has ended. Memory that nobody has taken goes when its last read and copy
  // have been reaped.
  void Cancel(const std::shared_ptr<Transfer>& transfer, Status status);
  // Cancels every load with CLOSED, drains, gives slots and reader back; then `closed` is called on the I/O thread,
  // once. A read that never comes back delays it for ever: wait with a limit.
  void Close(std::function<void()> closed);

  // Files that were read in another way than asked, since the last call.
  std::vector<Reader::Fallback> TakeFallbacks();
  // What the slots take in a load that converts, or in one that does not.
  uint64_t StagingBytes(bool converts = false) const;

 private:
  struct Shared;
  explicit Engine(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}
  std::shared_ptr<Shared> shared_;
  friend class Loop;
};

}  // namespace fst
