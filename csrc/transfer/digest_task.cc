#include "transfer/digest_task.h"

#include <algorithm>

namespace fst {
namespace {

constexpr uint64_t kReadBack = 1 << 20;  // bytes that are copied back from a device at a time

}  // namespace

bool DigestTask::HasTurn() const {
  return pieces_.empty() || pieces_.front().digest->done.load(std::memory_order_acquire) == pieces_.front().begin;
}

// Its turn does not end before the task does.
void DigestTask::Arrived(uint64_t arrived) {
  if (next_ == 0 && digested_ == 0 && !HasTurn()) return;
  while (!over()) {
    const DigestPiece& piece = pieces_[next_];
    if (arrived < piece.source) return;
    status_ = Update(piece, std::min(arrived - piece.source, piece.length));
    if (digested_ < piece.length) return;
    End(piece);
  }
}

void DigestTask::Run() { Arrived(UINT64_MAX); }

Status DigestTask::Update(const DigestPiece& piece, uint64_t to) {
  if (to <= digested_) return Status::Ok();
  Digester& digester = *piece.digest->digester;
  if (piece.buffer == nullptr) {
    digester.Update(reinterpret_cast<const void*>(piece.address + digested_), to - digested_);  // NOLINT
    digested_ = to;
    return Status::Ok();
  }
  std::vector<char> copy(std::min(to - digested_, kReadBack));
  while (digested_ < to) {
    const uint64_t some = std::min<uint64_t>(to - digested_, copy.size());
    Status read = piece.buffer->device().Read(*piece.buffer, piece.address + digested_, some, copy.data());
    const auto offset = static_cast<int64_t>(piece.item->offset);
    if (!read.ok()) return Status(read.code(), path_ + ": " + read.message()).At(path_, {}, offset);
    digester.Update(copy.data(), some);
    digested_ += some;
  }
  return Status::Ok();
}

void DigestTask::End(const DigestPiece& piece) {
  if (piece.expected != nullptr) {
    const Digest found = piece.digest->digester->Finish();
    if (!(found == *piece.expected))
      status_ = DigestMismatch(path_, piece.item->offset, piece.item->length, *piece.expected, found);
  }
  piece.digest->done.store(piece.begin + piece.length, std::memory_order_release);
  ++next_;
  digested_ = 0;
}

}  // namespace fst
