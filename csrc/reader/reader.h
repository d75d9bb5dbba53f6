// The contract of a reader: it fills memory with ranges of files, many at a time, and says what it needs and what it
// can fill. To add one: derive Reader. The transfer loop knows nothing else of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/completion_queue.h"
#include "base/file_identity.h"
#include "base/status.h"
#include "device/device.h"

namespace fst {

// An open file of a reader. Closed with its last reference, which may go on any thread.
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

// Where the bytes of a read go, in the order of the file. One piece unless the reader scatters.
struct ReadPiece {
  uint64_t address;  // in host memory, in a slot, or (readers that fill devices) in device memory
  size_t length;
  uint64_t
      base;  // the start of the DeviceBuffer or StagingMemory that holds `address`: what is registered with a driver
};

struct ReadRequest {
  std::shared_ptr<ReaderFile> file;
  uint64_t offset = 0;  // a multiple of needs().offset_alignment
  size_t length = 0;  // a multiple of needs().length_alignment, in all pieces together; may pass the end of the file by
                      // the alignment only
  size_t required = 0;  // bytes that must arrive, <= length: fewer is an error, never data
  bool last = false;    // no further read of this file follows: the file must still be the same version after it
  std::vector<ReadPiece> pieces;
  std::shared_ptr<void> target;  // what Reader::RegisterBuffer gave for the allocation of a read straight into place
};

struct ReaderNeeds {
  size_t offset_alignment = 1, length_alignment = 1, memory_alignment = 1;  // powers of two
  uint64_t boundary = 0;      // no read crosses a multiple of this offset in the file; 0: no such rule. But one that is
                              // converted (`dtype`) holds whole elements: it may begin up to 7 bytes before a multiple
  size_t chunk = 4 << 20;     // the length of a read that suits this reader best
  int in_flight = 4;          // reads that it takes at a time
  int slots = 8;              // slots to cycle when reads go through slots
  int slots_at_first = 0;     // of them, where memory for them is dear, for loads that need no more; 0: all at once
  bool fills_host = true;     // straight into host tensors
  bool fills_device = false;  // straight into device tensors (GDS)
  bool scatters = false;      // a read may have many pieces (at most 1024)
  bool device_slots = false;  // AllocateSlots gives device memory (GDS): loads that convert are refused
};

// Used by one I/O thread, but for Open.
class Reader {
 public:
  // Nothing is in flight any more when it runs, but for reads that never came back.
  virtual ~Reader() = default;

  virtual const ReaderNeeds& needs() const = 0;

  // Called once on the I/O thread, before anything else: what must be made on that thread is made here.
  virtual Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) = 0;

  // Any thread but the event loop's, may block, several at a time. Compares with `expected`, as it was when the header
  // was read: FILE_CHANGED, IO_ERROR, NOT_3FS …
  virtual Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) = 0;

  // The memory of all slots (or of the first, then of the others): the device's staging memory unless the reader brings
  // its own (an iov, a registered device ring).
  virtual Status AllocateSlots(Device& device, size_t bytes, std::unique_ptr<StagingMemory>* out) {
    return device.AllocateStaging(bytes, out);
  }

  // What the reader keeps of an allocation that it will read straight into (its registration with a driver). Asked for
  // before the first such read of a load, let go of after the last one, when none is in flight; it may keep the memory.
  // I/O thread. Null: nothing.
  virtual std::shared_ptr<void> RegisterBuffer(const std::shared_ptr<DeviceBuffer>&) { return nullptr; }

  // Starts one read. A failure is returned, or completes with a status (Kind::kRead, this tag), never both. An OK
  // completion means: `required` bytes are in place and, as far as this reader can tell without delay, the file is
  // still the same version; for the last read of a file it has been compared.
  virtual Status Submit(ReadRequest request, uint64_t tag) = 0;

  // Called each time the I/O thread wakes: what has to be done on that thread but was noticed on another (which called
  // queue->Wake()) is done here. Completions put before a call have been handled when the next one comes;
  // `copies_idle`: no copy reads from a slot.
  virtual void Poll(bool /*copies_idle*/) {}

  // The read with this tag has been in flight for longer than the engine waits. A reader that can make sure that
  // nothing is written into the read's pieces any more completes it with STALLED; others leave it.
  virtual void Abandon(uint64_t /*tag*/) {}

  // After a load: {path, to, reason} of files that were read in another way than asked.
  struct Fallback {
    std::string path, from, to, reason;
  };
  virtual std::vector<Fallback> TakeFallbacks() { return {}; }
};

}  // namespace fst
