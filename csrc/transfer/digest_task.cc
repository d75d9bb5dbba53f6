#include "transfer/digest_task.h"

#include <algorithm>

namespace fst {
namespace {

constexpr uint64_t kReadBack = 1 << 20;  // bytes that are copied back from a device at a time

}  // namespace

void DigestTask::Take(uint64_t arrived, bool may_take_first) {
  if (over()) return;
  const DigestPiece& first = pieces_.front();
  if (!first_over_ && may_take_first && first.digest->done.load(std::memory_order_acquire) == first.begin)
    first_over_ = TakePiece(first, arrived, &of_first_);
  while (next_ < pieces_.size() && TakePiece(pieces_[next_], arrived, &of_next_)) {
    ++next_;
    of_next_ = 0;
  }
}

// A later read of the tensor may have been the first to tell: it looked at the file after these bytes were read.
void DigestTask::Tell() {
  for (const DigestPiece& piece : pieces_) {
    const uint64_t end = piece.begin + piece.length;
    if (piece.digest->done.load(std::memory_order_acquire) >= end)
      piece.digest->told = std::max(piece.digest->told, end);
  }
}

void DigestTask::Move(uint64_t by) {
  for (DigestPiece& piece : pieces_) piece.address += by;
}

// Whether all of the piece was digested.
bool DigestTask::TakePiece(const DigestPiece& piece, uint64_t arrived, uint64_t* digested) {
  if (!status_.ok() || arrived < piece.source) return false;
  status_ = Update(piece, std::min(arrived - piece.source, piece.length), digested);
  if (!status_.ok() || *digested < piece.length) return false;
  if (piece.expected != nullptr) {
    const Digest found = piece.digest->digester->Finish();
    if (!(found == *piece.expected))
      status_ = DigestMismatch(path_, piece.item->offset, piece.item->length, *piece.expected, found);
  }
  piece.digest->done.store(piece.begin + piece.length, std::memory_order_release);
  return true;
}

Status DigestTask::Update(const DigestPiece& piece, uint64_t to, uint64_t* digested) {
  if (to <= *digested) return Status::Ok();
  Digester& digester = *piece.digest->digester;
  if (piece.buffer == nullptr) {
    digester.Update(reinterpret_cast<const void*>(piece.address + *digested), to - *digested);  // NOLINT
    *digested = to;
    return Status::Ok();
  }
  std::vector<char> copy(std::min(to - *digested, kReadBack));
  while (*digested < to) {
    const uint64_t some = std::min<uint64_t>(to - *digested, copy.size());
    Status read = piece.buffer->device().Read(*piece.buffer, piece.address + *digested, some, copy.data());
    const auto offset = static_cast<int64_t>(piece.item->offset);
    if (!read.ok()) return Status(read.code(), path_ + ": " + read.message()).At(path_, {}, offset);
    digester.Update(copy.data(), some);
    *digested += some;
  }
  return Status::Ok();
}

}  // namespace fst
