// What the I/O thread of an engine does: open ahead, cut chunks, start reads, start the copy of each completed read,
// account for each completed copy. It never copies or converts a byte itself and sleeps in one place only.
#pragma once
#include <deque>
#include <memory>
#include <mutex>

#include "base/task_pool.h"
#include "transfer/chunker.h"
#include "transfer/engine.h"
#include "transfer/slots.h"

namespace fst {

// What other threads ask of the loop.
struct Engine::Shared {
  std::shared_ptr<CompletionQueue> queue = std::make_shared<CompletionQueue>();
  std::shared_ptr<Device> device;
  std::unique_ptr<Reader> reader;
  EngineOptions options;
  ChunkRules rules;
  uint64_t slot_bytes = 0;
  int slot_count = 0;

  std::mutex mutex;  // guards what follows
  std::vector<std::shared_ptr<Transfer>> started;
  std::vector<std::pair<std::shared_ptr<Transfer>, Status>> cancelled;
  bool closing = false, ended = false;
  std::vector<std::function<void()>> closed;
  std::vector<Reader::Fallback> fallbacks;
};

class Loop {
 public:
  explicit Loop(std::shared_ptr<Engine::Shared> shared);
  // Returns when the engine was closed and nothing is in flight.
  void Run();

 private:
  using TransferPtr = std::shared_ptr<Transfer>;
  struct Op {
    enum Stage : uint8_t { kFree, kOpening, kReading, kConverting, kCopying } stage = kFree;
    uint32_t index = 0, generation = 0;
    TransferPtr transfer;
    uint32_t file = 0;
    int slot = -1;
    uint64_t offset = 0;
    bool converts = false;
    std::vector<ChunkPart> parts;
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;  // keeps memory under I/O alive, whatever else lets go
    std::shared_ptr<void> target;                        // the reader's, see Reader::RegisterBuffer
    std::shared_ptr<ReaderFile> opened;                  // filled by the opening thread
    Clock::time_point since;
  };

  void CollectFallbacks();
  void TakeRequests();
  Status CheckAvailable(const Transfer& transfer);
  void Handle(const Completion& completion);
  void HandleOpened(Op& op, const Status& status);
  void HandleRead(Op& op, const Status& status);
  void HandleConverted(Op& op, const Status& status);
  void HandleCopied(Op& op, const Status& status);
  void StartConversion(Op& op);
  void CopyOut(Op& op);
  bool IssueAll();  // true when something was started
  bool OpenAhead(const TransferPtr& transfer);
  bool IssueRead(const TransferPtr& transfer);
  Status StartRead(const TransferPtr& transfer, Chunk chunk, int slot);
  Status BufferOf(Transfer& transfer, uint32_t allocation, std::shared_ptr<DeviceBuffer>* out);
  std::shared_ptr<void> TargetOf(Transfer& t, uint32_t allocation, const std::shared_ptr<DeviceBuffer>& buffer);
  void PassEmptyItems(Transfer& transfer);
  static Status PlaceOf(const Op& op, const Status& status);  // a device knows of no file
  void FinishParts(Op& op);
  void Fail(Transfer& transfer, Status status);
  void CheckClocks();
  Clock::time_point NextDeadline() const;
  void RetireFinished();  // ends transfers that are done and tells those who wait
  Op& NewOp(Op::Stage stage, const TransferPtr& transfer);
  void FreeOp(Op& op);
  static uint64_t TagOf(const Op& op) { return uint64_t{op.generation} << 32 | op.index; }

  const std::shared_ptr<Engine::Shared> shared_;
  Reader& reader_;
  Device& device_;
  Status broken_;  // the reader or the stream could not be started
  Slots slots_;
  std::unique_ptr<CopyStream> stream_;  // after the slots: it is drained before they go
  std::shared_ptr<TaskPool> openers_;
  std::deque<TransferPtr> transfers_;
  std::deque<Op> ops_;  // a deque: references stay valid while it grows
  std::vector<uint32_t> free_ops_;
  int reading_ = 0, working_ = 0;
  int copying_ = 0;                           // ops that use what was read into their slot
  bool closing_ = false, throttled_ = false;  // throttled_: a read was put off until throttled_until_
  Clock::time_point throttled_until_ = Clock::time_point::min();
  Clock::time_point next_stall_check_ = Clock::time_point::min();
};

}  // namespace fst
