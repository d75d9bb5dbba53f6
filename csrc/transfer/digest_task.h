// Of one read: the bytes that are compared with digests, on whichever thread has them.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "device/device.h"
#include "transfer/plan.h"

namespace fst {

// A tensor's digest so far. The task that has the next bytes may use the digester: it belongs to one thread at a time.
struct ItemDigest {
  explicit ItemDigest(DigestKind kind) : digester(Digester::New(kind)) {}
  const std::unique_ptr<Digester> digester;
  std::atomic<uint64_t> done{0};  // bytes of the tensor that it has had
  uint64_t told = 0;              // the I/O thread's: of them, those of reads that have ended, with the file unchanged
};

struct DigestPiece {
  std::shared_ptr<ItemDigest> digest;
  std::shared_ptr<DeviceBuffer> buffer;  // null where the host can read `address`
  uint64_t address, length;              // in `buffer`: an offset
  uint64_t source;                       // its first byte in the read
  uint64_t begin;                        // in the tensor
  const PlanItem* item;
  const Digest* expected;  // null but for the last piece of a tensor
};

// One thread at a time: the one that reads, and where that was too early for it another one. Only the first piece may
// be the rest of a tensor, which waits for its turn: until the bytes before it were digested. The others do not wait.
class DigestTask {
 public:
  // `path` of the file, for errors. It and what the pieces point to outlive the task. At least one piece.
  DigestTask(std::vector<DigestPiece> pieces, const std::string& path) : pieces_(std::move(pieces)), path_(path) {}

  // The thread that reads: digests what there is of the first `arrived` bytes, which the host can read, and may be. It
  // looks at the file afterwards: a changed one is that, and no other error.
  void Arrived(uint64_t arrived) { Take(arrived, true); }

  // The following: once the read has ended, with the file unchanged. The I/O thread lets others know what was digested.
  void Tell();
  // Whether the bytes before the first piece were, by reads that have ended as well.
  bool HasTurn() const { return pieces_.front().digest->told == pieces_.front().begin; }
  // Whether there is something to digest now.
  bool CanGoOn() const { return !over() && (next_ < pieces_.size() || HasTurn()); }
  // Digests what is left, or all but the first piece.
  void Run(bool has_turn) { Take(UINT64_MAX, has_turn); }
  // The bytes lie so much further on now, modulo 2^64; with nothing under way.
  void Move(uint64_t by);
  // With all its bytes, or with an error.
  bool over() const { return !status_.ok() || (first_over_ && next_ == pieces_.size()); }
  // CHECKSUM_MISMATCH, or what reading back from a device failed with.
  const Status& status() const { return status_; }

 private:
  void Take(uint64_t arrived, bool may_take_first);
  bool TakePiece(const DigestPiece& piece, uint64_t arrived, uint64_t* digested);
  Status Update(const DigestPiece& piece, uint64_t to, uint64_t* digested);

  std::vector<DigestPiece> pieces_;
  const std::string& path_;
  bool first_over_ = false;
  uint64_t of_first_ = 0;  // bytes that were digested
  size_t next_ = 1;        // of the other pieces
  uint64_t of_next_ = 0;
  Status status_;
};

}  // namespace fst
