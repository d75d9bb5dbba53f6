// A reader, one or several devices, and one I/O thread between them. The transfers of an engine share its slots and its
// queue depth; the stream of reads runs on across files and transfers.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "reader/reader.h"
#include "transfer/pace.h"
#include "transfer/transfer.h"

namespace fst {

struct EngineShared;

struct EngineOptions {
  bool always_stage = false;   // use slots even where the reader could fill tensor memory
  std::shared_ptr<Pace> pace;  // null: no limit
  std::chrono::milliseconds stall_timeout{90000};
  uint64_t chunk_bytes = 0;                    // of one read; 0: what suits the reader
  uint64_t staging_limit = uint64_t{1} << 30;  // bytes of all slots together; one slot there is in any case
  // Transfers convert: slots also get room for converted elements where needed, so that reads stay as long.
  bool converts = false;
  // Devices copy from the page cache by themselves (PinnedSpan) what need not pass through a slot: what is neither
  // converted nor compared with a digest nor a part of a tensor. Where that cannot be, and from the first span on that
  // cannot be locked, all passes through slots, and TakeFallbacks says why. Slots and spans share staging_limit.
  bool pins_files = false;
  // Slots are allocated when the engine starts, beside whatever its first transfer waits for. What goes wrong there the
  // first read tries again and tells.
  bool slots_at_once = false;
};

// All methods: any thread, never block.
class Engine {
 public:
  // Starts the thread. An error of Reader::Start or Device::NewStream fails every transfer. With several devices, of
  // which each transfer has one, any of them copies from the slots: INVALID_ARGUMENT for one whose memory the host
  // fills, and for a reader that needs slots in device memory or fills it.
  static Status Create(std::vector<std::shared_ptr<Device>> devices, std::unique_ptr<Reader> reader,
                       const EngineOptions& options, std::shared_ptr<Engine>* out);
  static Status Create(std::shared_ptr<Device> device, std::unique_ptr<Reader> reader, const EngineOptions& options,
                       std::shared_ptr<Engine>* out) {
    return Create(std::vector<std::shared_ptr<Device>>{std::move(device)}, std::move(reader), options, out);
  }
  // Closes unless Close was called.
  ~Engine();

  // Starts a transfer. The plan is valid. CLOSED after Close, UNSUPPORTED_DTYPE for a plan that converts when the
  // reader's slots are device memory, INVALID_ARGUMENT for mapped allocations without their mapped files, and for a
  // device that the engine does not have.
  Status Start(Plan plan, TransferOptions options, std::shared_ptr<Transfer>* out);
  // Allows batches below `window`.
  void SetWindow(const std::shared_ptr<Transfer>& transfer, uint32_t window);
  // Ends a transfer with this status unless it has ended. Allocations that nobody has taken are released when their
  // last read and copy have completed.
  void Cancel(const std::shared_ptr<Transfer>& transfer, Status status);
  // Cancels every transfer with CLOSED, drains, and frees slots and reader. Then calls `closed` once, on the I/O thread
  // or, if the engine has closed before, on this one. A read that never completes delays it for ever: limit the wait.
  void Close(std::function<void()> closed);

  // Whether plans may have mapped allocations.
  bool maps_files() const;
  // Moves on when the I/O thread begins a turn and when it ends it; odd in a turn. One that stays odd hangs, and tells
  // nobody of stalls and deadlines.
  uint64_t turn() const;
  // Files that were read in another way than requested, since the last call.
  std::vector<Reader::Fallback> TakeFallbacks();
  // Bytes of the slots and spans that a transfer with or without conversion needs; 0 if it needs none.
  uint64_t StagingBytes(bool converts = false) const;

 private:
  explicit Engine(std::shared_ptr<EngineShared> shared) : shared_(std::move(shared)) {}
  const std::shared_ptr<EngineShared> shared_;
};

}  // namespace fst
