// The I/O thread's side of one transfer: what was started and what is left to do.
#pragma once
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "reader/reader.h"
#include "transfer/chunker.h"
#include "transfer/digest_task.h"
#include "transfer/memory_budget.h"
#include "transfer/transfer.h"

namespace fst {

// Made by Engine::Start on the caller's thread, because the items of a large plan take long to count. From then on the
// I/O thread's alone, without a lock. The loop destroys it when nothing of the transfer is in flight any more.
class ActiveTransfer {
 public:
  struct File {
    std::shared_ptr<ReaderFile> open;  // null before it was opened and after its last read was started
    size_t last_item = 0;              // the last one with bytes in this file
  };

  // `mapped_files`: TransferOptions::mapped. The transfer's budget wakes `queue`.
  explicit ActiveTransfer(std::shared_ptr<Transfer> shared, std::vector<std::shared_ptr<MappedFile>> mapped_files = {},
                          std::shared_ptr<CompletionQueue> queue = nullptr);

  // Allows the items that the window reaches by now and whose memory the budget has room for, and passes empty ones.
  void ApplyWindow();
  // An allowed item has bytes that no read covers.
  bool HasWork() const { return cursor.item < allowed; }
  uint32_t device() const { return transfer->options().device; }
  bool complete() const { return transfer->ready_count() == plan.items.size(); }
  // The next file to open: a few are opened ahead of the reads. False: none for now.
  bool NextFileToOpen(uint32_t* file);
  // A file that NextFileToOpen gave could not be opened yet: it gives that one again before any other.
  void PutOff(uint32_t file, const Status& why);
  // Why the file that is needed first was put off; OK when none is.
  Status WhyPutOff() const { return put_off_.empty() ? Status::Ok() : put_off_.begin()->second; }
  // Files are opened in any order: those that are open while an earlier one is put off are closed and put off as well.
  // With no op in flight. False when there is none.
  bool PutOffOpenFiles();
  // Moves the cursor forward. Empty items are complete when it passes them.
  void AdvanceTo(Cursor next);
  void PassEmptyItems();
  // Releases the file if the cursor has passed its last item. True: no further read of it follows.
  bool ReleaseIfDone(uint32_t file);
  void CompleteBytes(uint32_t item, uint64_t bytes);
  // Every read was started.
  bool AllStarted() const { return cursor.item == plan.items.size(); }
  // FILE_CHANGED when a writer may have changed a mapped file that allocations of this transfer are views of.
  Status CheckKept() const;
  // Bytes of the next allocation where that is all that it waits for: nothing of it is in flight.
  uint64_t WaitsFor() const { return !failed && ops == 0 && !HasWork() && cursor.item == allowed ? no_room_for_ : 0; }
  // Ends the transfer with this error unless it has one. Ops in flight keep their memory until they have drained, and
  // files that are open are left in `closing`.
  void Fail(Status status);

  const std::shared_ptr<Transfer> transfer;
  const Plan& plan;
  uint64_t bytes = 0;  // of all items in their files
  Cursor cursor;       // where the next read begins
  size_t allowed = 0;  // one past the last item that may be started
  std::vector<File> files;
  std::vector<std::shared_ptr<MappedFile>> mapped;   // by file; null: not mapped, or every read was started
  std::vector<std::shared_ptr<ReaderFile>> closing;  // to be closed, not by the I/O thread: a close may hang
  std::vector<std::shared_ptr<void>> registrations;  // by allocation, see Reader::RegisterBuffer
  std::unordered_map<uint32_t, std::shared_ptr<ItemDigest>> digests;  // by item: not ended
  std::vector<std::shared_ptr<MemoryBudget::Grant>> grants;           // by allocation, until that is made and has it
  int ops = 0;                                             // opens, reads, conversions, copies, closes in flight
  int opening = 0;                                         // of them, opens
  unsigned slot_reads = 0;                                 // begun
  Clock::duration starved_since = Clock::duration::max();  // since then, of running time, others have all slots
  bool scarce = false;                                     // no descriptor was left for the last open
  uint64_t scarce_at = 0;                                  // Loop::reads_done_ when that began
  bool failed = false;
  bool news = false;  // there is something to notify of

 private:
  void CompleteItem(uint32_t item);
  bool HasRoom(size_t item);

  std::vector<std::weak_ptr<MappedFile>> views_;  // of these files; tensors that were dropped need no file
  const std::shared_ptr<MemoryBudget> budget_;
  const std::shared_ptr<CompletionQueue> queue_;
  std::vector<bool> has_room_;                // by allocation: its bytes were taken from the budget, or it needs none
  uint64_t no_room_for_ = 0;                  // bytes of the next one, when the window was last applied
  std::vector<uint64_t> bytes_left_;          // by item
  std::vector<uint32_t> file_sequence_;       // files in the order of their first item that has bytes
  std::vector<size_t> file_first_;            // that item, by position in file_sequence_
  size_t files_opened_ = 0, files_done_ = 0;  // files being or been opened or put off; with every read started
  size_t files_reached_ = 0;                  // by the cursor, of those that were opened
  bool opens_ahead_ = true;  // several at a time, as each wakes a thread: those that copy lose a processor to it
  std::map<size_t, Status> put_off_;  // by position in file_sequence_
};

}  // namespace fst
