// The contract of a reader: it fills memory with ranges of files, many reads at a time.
//
// To add one: derive Reader, say in needs() what it requires and what it can fill, and construct it in
// napi/engine_bindings.cc. The transfer loop knows nothing else of it. file_reader.cc is the shortest example,
// open_file.h holds what readers of ordinary descriptors share, and test/native/support/scripted_reader.h checks every
// promise that the loop makes here.
//
// Calls. An engine owns one reader and serves any number of loads with it:
//   needs           first, when the engine is created; the answer never changes
//   Start           once
//   Open            for each file, shortly before its first read
//   AllocateSlots   before the first read that goes through a staging slot; at most twice
//   RegisterBuffer  before the first read straight into an allocation
//   Submit          for each chunk, with at most needs().in_flight reads in flight
//   Poll            each time the I/O thread wakes
//   TakeFallbacks   each time completions have arrived, before they are handled
//   Abandon         for a read that takes longer than the engine waits
//   ~Reader         after the slots were freed
//
// Threads. All of that runs on the engine's one I/O thread, but Open (several pool threads at once) and needs (any
// thread). What runs on the I/O thread must not block on storage, since it serves all loads: leave such work to threads
// or a ring of your own, and report with CompletionQueue::Put and Wake, which any thread may call. No call may throw.
//
// Ownership. The memory of a read's pieces stays valid until its completion was put; afterwards nothing may write to
// it. A ReadRequest shares ownership of its file and target: release both before you put the completion, as its
// receiver may count open files and registrations.
//
// Errors are statuses with the path and, for a read, the file offset in bytes (Status::At). Fewer bytes than required
// are SHORT_READ or UNEXPECTED_EOF, never data. A file that is no longer the one whose header was checked is
// FILE_CHANGED (FileIdentity::CheckUnchanged): say so before any error that this explains. What can be read in another
// way than asked is read so, and reported by TakeFallbacks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/completion_queue.h"
#include "base/file_identity.h"
#include "base/status.h"
#include "device/device.h"

namespace fst {

// An open file of a reader. Closed with its last reference, which any thread may drop.
class ReaderFile {
 public:
  virtual ~ReaderFile() = default;
  const std::string& path() const { return path_; }
  uint64_t size() const { return identity_.size; }
  const FileIdentity& identity() const { return identity_; }

 protected:
  ReaderFile(std::string path, FileIdentity identity) : path_(std::move(path)), identity_(identity) {}

 private:
  const std::string path_;
  const FileIdentity identity_;
};

// Where a part of a read's bytes goes.
struct ReadPiece {
  uint64_t address;   // in host memory, in a slot, or (with fills_device) in device memory
  size_t length;      // bytes that arrive there
  uint64_t base;      // of the DeviceBuffer or StagingMemory that holds `address`: what a driver has registered
  uint64_t skip = 0;  // bytes of the file before it that are not wanted; with `skips` only
  // With `runs` > 1, only where holes are shorter than picks_holes: so many runs of equal length, one behind the other
  // in memory, in the file `stride` bytes from one's first byte to the next one's. The holes may be read as well.
  size_t runs = 1;
  size_t stride = 0;

  size_t run() const { return length / runs; }
  // Bytes of the file from its first one to its last one.
  size_t file_length() const { return (runs - 1) * stride + run(); }
};

struct ReadRequest {
  std::shared_ptr<ReaderFile> file;
  uint64_t offset = 0;  // in the file; a multiple of offset_alignment
  // Bytes of all pieces together, with what they skip and the holes between their runs; a multiple of length_alignment.
  // Passes the end of the file by less than that.
  size_t length = 0;
  size_t required = 0;            // of `length`, up to where bytes must arrive: 0 < required <= length
  bool last = false;              // no read of this file follows: compare the file's identity after it
  std::vector<ReadPiece> pieces;  // in the order of the file; one, or with `scatters` at most 1024, with `skips` 6144
  std::shared_ptr<void> target;   // RegisterBuffer's result for a read straight into place; null through a slot
  // Where bytes come out of memory, one thread that reads them may say how many of `required` have arrived, a cache's
  // worth at a time, and all of them at last. May be null.
  std::function<void(size_t arrived)> on_arrival;
};

// What a reader requires of a read, and what suits it. A read goes straight into place where the reader can fill that
// memory and where file offset and address are congruent modulo the alignment; any other goes through a slot.
struct ReaderNeeds {
  size_t offset_alignment = 1, length_alignment = 1, memory_alignment = 1;  // bytes; powers of two
  // No read crosses a multiple of this file offset; 0: no such rule. A read that is converted (`dtype`) holds whole
  // elements and may begin up to 7 bytes before a multiple.
  uint64_t boundary = 0;
  size_t chunk = 4 << 20;     // bytes per read that suit this reader best
  size_t first_chunk = 0;     // of a load's first read through a slot, up to twice as long for each next; 0: of none
  int in_flight = 4;          // queue depth: reads that it takes at a time
  int slots = 8;              // staging slots to cycle; more than in_flight, since some are being copied from
  int slots_at_first = 0;     // allocate only so many until a load needs more, where staging is expensive; 0: all
  bool fills_host = true;     // can read straight into host tensors
  bool fills_device = false;  // can read straight into device tensors (GDS)
  bool scatters = false;      // a read may have many pieces
  // A read may skip bytes between its pieces; only without alignment or boundary, and with `scatters`.
  bool skips = false;
  // Bytes between two wanted parts that take less time to read than another part of a read (with `skips`), or than
  // another read: an estimate; docs/ranks.md has what whole loads take.
  size_t largest_gap = 32 << 10;
  // With `skips`: short runs with shorter holes between them are picked out of larger reads.
  size_t picks_holes = 0;
  // What it reads through the page cache may as well be mapped (MappedFile, PinnedSpan): Open gives FdFiles.
  bool maps = false;
  bool device_slots = false;  // AllocateSlots returns device memory (GDS): loads that convert are refused
};

class Reader {
 public:
  // Reads may still be in flight only if they never completed: those must not touch the reader any more.
  virtual ~Reader() = default;

  virtual const ReaderNeeds& needs() const = 0;

  // Completions go to `queue`; `device` is the one that loads end on. What must be created on the I/O thread is created
  // here. A failure fails every load.
  virtual Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) = 0;

  // Opens a file and compares it with `expected`, its identity when the header was read. May block. FILE_CHANGED,
  // IO_ERROR, NOT_3FS and so on.
  virtual Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) = 0;

  // Allocates memory for slots: all of them, or the first slots_at_first and later the others. The device's own staging
  // memory, unless the reader brings its own (a shared iov, a registered device ring). May block.
  virtual Status AllocateSlots(Device& device, size_t bytes, std::unique_ptr<StagingMemory>* out) {
    return device.AllocateStaging(bytes, out);
  }

  // What the reader keeps of an allocation that it reads straight into: its registration with a driver, which may own a
  // reference to the memory. Released after the last such read of the load. Null: nothing.
  virtual std::shared_ptr<void> RegisterBuffer(const std::shared_ptr<DeviceBuffer>&) { return nullptr; }

  // Starts one read. Its failure is either returned or put as a completion (Kind::kRead, this tag), never both. An OK
  // completion means that `required` bytes are in place and that the file is unchanged as far as the reader can tell
  // without delay; with `last` it has compared the file.
  virtual Status Submit(ReadRequest request, uint64_t tag) = 0;

  // For work that another thread noticed but that the I/O thread must do: the other thread calls queue->Wake(). All
  // completions put before one Poll have been handled by the next. `copies_idle`: nothing has bytes in a slot.
  // True when reads wait for that and for nothing else.
  virtual bool Poll(bool /*copies_idle*/) { return false; }

  // The read `tag` has been in flight longer than stallTimeoutMs; called again while it stays so. A reader that can
  // make sure that nothing writes to its pieces any more completes it with STALLED; others leave it, with its memory.
  virtual void Abandon(uint64_t /*tag*/) {}

  // Files that were read in another way than asked, since the last call: "direct" → "buffered", "gds" → "nogds".
  struct Fallback {
    std::string path, from, to, reason;
  };
  virtual std::vector<Fallback> TakeFallbacks() { return {}; }
};

}  // namespace fst
