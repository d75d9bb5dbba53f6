// The I/O thread of an engine: it opens files ahead, cuts plans into chunks, starts reads, starts the copy of each
// completed read and accounts for each completed copy. It never copies or converts a byte itself. It sleeps in its
// queue and waits for no open, read, copy or close; only memory, a 3FS ring and the engine's end may block it, and
// Engine::turn shows when one does.
#pragma once
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/running_clock.h"
#include "base/task_pool.h"
#include "reader/pinned_span.h"
#include "transfer/active_transfer.h"
#include "transfer/engine.h"
#include "transfer/pace.h"
#include "transfer/slot_pool.h"

namespace fst {

// What an engine's callers (any thread) and its loop (the I/O thread) share.
struct EngineShared {
  const std::shared_ptr<CompletionQueue> queue = std::make_shared<CompletionQueue>();  // any thread
  // Set before the thread starts, constant afterwards. The reader is the I/O thread's, except for Reader::Open.
  std::vector<std::shared_ptr<Device>> devices;
  std::unique_ptr<Reader> reader;
  EngineOptions options;
  ChunkRules rules;
  int slot_count = 0;
  int span_count = 0;  // at most, of pinned spans at a time

  // Moves on when the I/O thread begins and when it ends a turn, after which it sleeps; odd in a turn.
  std::atomic<uint64_t> turn{1};

  std::mutex mutex;  // guards what follows: requests to the loop, and its answers
  std::vector<std::unique_ptr<ActiveTransfer>> started;
  std::vector<std::pair<std::shared_ptr<Transfer>, Status>> cancelled;
  bool closing = false, ended = false;
  std::vector<std::function<void()>> closed;
  std::vector<Reader::Fallback> fallbacks;
};

// The I/O thread's alone.
class Loop {
 public:
  explicit Loop(std::shared_ptr<EngineShared> shared);
  // Returns when the engine was closed and nothing is in flight.
  void Run();

 private:
  // One open, one read with its digest, conversion and copy, or the closing of a failed transfer's file.
  struct Op {
    enum Stage : uint8_t {
      kFree,
      kOpening,
      kReading,
      kWaiting,
      kDigesting,
      kConverting,
      kCopying,
      kUnpinning,
      kClosing
    } stage = kFree;
    uint32_t index = 0, generation = 0;
    ActiveTransfer* transfer = nullptr;  // counts this op: the loop keeps it until the op is free
    uint32_t file = 0;
    int slot = -1;
    std::unique_ptr<char[]> aside;  // the slot's bytes, where the slot was given back
    std::shared_ptr<DigestTask> digest;
    bool pins = false;                 // a span takes the place of a slot
    std::shared_ptr<PinnedSpan> span;  // this and the next: written by the pinning thread
    std::string not_pinned;            // why there is no span: `opened` is to be read
    uint64_t offset = 0;
    bool converts = false;
    std::vector<ChunkPart> parts;
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;  // by part: memory under I/O stays when its transfer fails
    std::shared_ptr<void> registration;                  // the same for what Reader::RegisterBuffer returned
    std::shared_ptr<ReaderFile> opened;                  // written by the opening thread; to be closed, or read
    uint64_t reads_done = 0;                             // of an opening: the loop's when it began
    Clock::duration since = {};                          // when the stage began, of running_
  };

  void CollectFallbacks();
  void TakeRequests();
  void Handle(const Completion& completion);
  void HandleOpened(Op& op, const Status& status);
  void HandleRead(Op& op, const Status& status);
  void HandleDigested(Op& op, const Status& status);
  void HandleConverted(Op& op, const Status& status);
  void HandleCopied(Op& op, const Status& status);
  void StartClosing(ActiveTransfer& t);
  // loop_spans.cc
  void CheckPins();
  void StopPinning(const std::string& why);
  bool MayPin(const Plan& plan, const Chunk& chunk) const;
  Status StartPinning(Op& op, std::shared_ptr<ReaderFile> file, uint64_t length);
  void HandlePinned(Op& op, const Status& status);
  bool ReadUnpinned();  // true when something was started
  void StartUnpinning(Op& op);
  void HandleUnpinned(Op& op, const Status& status);
  void FreeUnpinned();  // ops of failed transfers that wait for a slot
  void TakeOutOfSlot(Op& op);
  bool HasDigests(const Op& op) const;
  std::shared_ptr<DigestTask> NewDigest(const Op& op) const;
  void DigestOnArrival(Op& op, const Chunk& chunk, ReadRequest* request);
  void StartDigest(Op& op);
  void GoOnWithDigest(Op& op);
  void PostDigest(Op& op);
  void EndDigest(Op& op);
  void WakeNext(const Op& op);
  bool InHostSlot(const Op& op) const { return op.slot >= 0 && (op.aside != nullptr || !slots_.on_device()); }
  uint64_t SlotOf(const Op& op) const;  // the address of its bytes
  void PollReader();
  void PutWaitingAside();
  void FreeWaiting();  // ops of failed transfers that wait to be digested
  void StartConversion(Op& op);
  bool IsScattered(const Op& op) const;
  void StartPacking(Op& op);
  void CopyOut(Op& op);
  bool IssueAll();  // true when something was started
  bool MayTakeSlot(uint32_t device) const;
  bool OpenAhead(ActiveTransfer& t);
  bool ResolvePutOff();
  static Status AddPlace(const Op& op, const Status& status);  // file and offset: a device knows of neither
  void FinishParts(Op& op);
  // loop_reads.cc
  bool IssueReads();
  // Of `count` slots or spans, of which devices have so many.
  bool MayTakeOne(int count, const std::vector<int>& had, uint32_t device) const;
  bool IssueRead(ActiveTransfer& t);
  Status StartRead(ActiveTransfer& t, Chunk chunk, int slot, bool pins);
  Status BufferOf(ActiveTransfer& t, const PlanItem& item, std::shared_ptr<DeviceBuffer>* out);
  Status StartPopulating(std::shared_ptr<MappedFile> file, const Chunk& chunk, uint64_t tag);
  // loop_clocks.cc
  void CheckClocks();
  Clock::duration LongestWait() const;
  bool IsOverdue(const Op& op, Clock::duration ran) const;  // `ran`: RunningNow()
  void FailStarved(ActiveTransfer& t, uint32_t file);       // which it waits to read
  Clock::time_point NextDeadline() const;
  void RetireFinished();  // publishes what has drained, and notifies
  Op& NewOp(Op::Stage stage, ActiveTransfer& t);
  void GiveSlot(const Op& op);
  void FreeOp(Op& op);
  Clock::duration RunningNow() const { return running_.At(Clock::now()); }
  static uint64_t TagOf(const Op& op) { return uint64_t{op.generation} << 32 | op.index; }

  const std::shared_ptr<EngineShared> shared_;
  Reader& reader_;
  const std::vector<std::shared_ptr<Device>>& devices_;
  const ChunkRules map_rules_;   // for reads of mapped allocations
  const ChunkRules span_rules_;  // for pinned spans
  Status broken_;                // why the reader or the stream could not be started
  SlotPool slots_;
  // By device; after the slots: they are drained before those are freed.
  std::vector<std::unique_ptr<CopyStream>> streams_;
  std::shared_ptr<TaskPool> openers_;
  TaskPool populaters_;  // an engine's own: pages of a store that hangs hold up no other load
  TaskPool pinners_;     // the same, and its driver
  bool pins_ = false;    // until something cannot be pinned
  std::deque<std::unique_ptr<ActiveTransfer>> transfers_;
  std::deque<Op> ops_;  // a deque: references stay valid while it grows
  std::vector<uint32_t> free_ops_;
  std::vector<Op*> waiting_;       // to be digested: the bytes before theirs, which are on their way, are not
  int in_flight_ = 0;              // ops that are not free
  std::vector<int> in_flight_to_;  // the same by device
  std::vector<int> slots_of_;      // by device: slots that its ops have
  std::vector<int> spans_of_;      // the same of spans
  std::vector<Op*> unpinned_;      // for want of a span they are to be read, and wait for a slot
  int reading_ = 0;                // of them, reads: limited by the reader's queue depth
  uint64_t reads_done_ = 0;        // ever
  int copying_ = 0;                // of them, digests, conversions and copies: they use a slot's bytes
  bool closing_ = false, throttled_ = false;  // throttled_: a read was put off until the pace allows it
  RunningClock running_;                      // for stalls: looked at in every round of the loop
  Clock::time_point next_stall_check_ = Clock::time_point::min();
};

}  // namespace fst
