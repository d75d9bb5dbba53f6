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

// One thread at a time: the one that reads, and where that was too early for it another one.
class DigestTask {
 public:
  // `path` of the file, for errors. It and what the pieces point to outlive the task.
  DigestTask(std::vector<DigestPiece> pieces, const std::string& path) : pieces_(std::move(pieces)), path_(path) {}

  // Whether the bytes before the first piece, of its tensor, were digested.
  bool HasTurn() const;
  // Digests what there is of the read's first `arrived` bytes, which the host can read. Nothing before its turn.
  void Arrived(uint64_t arrived);
  // Digests what is left, all of which is there; in its turn.
  void Run();
  // With all its bytes, or with an error.
  bool over() const { return next_ == pieces_.size() || !status_.ok(); }
  // CHECKSUM_MISMATCH, or what reading back from a device failed with.
  const Status& status() const { return status_; }

 private:
  Status Update(const DigestPiece& piece, uint64_t to);
  void End(const DigestPiece& piece);

  const std::vector<DigestPiece> pieces_;
  const std::string& path_;
  size_t next_ = 0;        // piece
  uint64_t digested_ = 0;  // bytes of it
  Status status_;
};

}  // namespace fst
