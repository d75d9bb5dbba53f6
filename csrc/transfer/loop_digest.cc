// Compares tensors' bytes, as they are in their file, with their digests, on threads of their own and before the tensor
// counts as complete: bytes in a slot before they leave it, others where they were read to. What only the device can
// read is copied back for that.
//
// Tensors are digested beside each other, each from its first byte on: an op whose tensor's earlier bytes are still
// missing waits. The op that brings them was started before it, so that it needs no slot that a waiting one holds; a
// reader that makes its slots' memory anew waits for ops that have bytes there, which are put aside then.
#include <algorithm>
#include <cstring>
#include <new>
#include <thread>

#include "base/digest.h"
#include "base/task_pool.h"
#include "transfer/loop.h"

namespace fst {
namespace {

// Shared by all engines of the process, as those that convert.
TaskPool& DigestThreads() {
  static TaskPool* pool =
      new TaskPool("fst-digest", static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)));
  return *pool;
}

constexpr uint64_t kReadBack = 1 << 20;  // bytes that are copied back from a device at a time

struct DigestPiece {
  std::shared_ptr<Digester> digester;
  std::shared_ptr<DeviceBuffer> buffer;  // null where the host can read `address`
  uint64_t address, length;              // in `buffer`: an offset
  const PlanItem* item;
  const Digest* expected;  // null but for the last piece of a tensor
};

Status Update(const DigestPiece& piece) {
  if (piece.buffer == nullptr) {
    piece.digester->Update(reinterpret_cast<const void*>(piece.address), piece.length);  // NOLINT
    return Status::Ok();
  }
  std::vector<char> copy(std::min(piece.length, kReadBack));
  for (uint64_t done = 0; done < piece.length;) {
    const uint64_t some = std::min<uint64_t>(piece.length - done, copy.size());
    FST_RETURN_IF_ERROR(piece.buffer->device().Read(*piece.buffer, piece.address + done, some, copy.data()));
    piece.digester->Update(copy.data(), some);
    done += some;
  }
  return Status::Ok();
}

Status Compare(const std::vector<DigestPiece>& pieces, const std::string& path) {
  for (const DigestPiece& piece : pieces) {
    Status updated = Update(piece);
    const auto offset = static_cast<int64_t>(piece.item->offset);
    if (!updated.ok()) return Status(updated.code(), path + ": " + updated.message()).At(path, {}, offset);
    if (piece.expected == nullptr) continue;
    const Digest found = piece.digester->Finish();
    if (!(found == *piece.expected))
      return DigestMismatch(path, piece.item->offset, piece.item->length, *piece.expected, found);
  }
  return Status::Ok();
}

}  // namespace

bool Loop::HasDigests(const Op& op) const {
  const Plan& plan = op.transfer->plan;
  return !plan.digests.empty() && std::any_of(op.parts.begin(), op.parts.end(), [&](const ChunkPart& part) {
    return plan.DigestOf(part.item) != nullptr;
  });
}

void Loop::StartDigest(Op& op) {
  if (op.stage == Op::kCopying) --copying_;
  op.stage = Op::kWaiting;
  if (ContinuesDigest(op)) return PostDigest(op);
  waiting_.push_back(&op);
}

uint64_t Loop::SlotOf(const Op& op) const {
  return op.aside != nullptr ? reinterpret_cast<uint64_t>(op.aside.get()) : slots_.Address(op.slot);
}

void Loop::PollReader() {
  const auto in_slot = [&](const Op* op) { return InHostSlot(*op) && op->aside == nullptr; };
  const bool held = std::any_of(waiting_.begin(), waiting_.end(), in_slot);
  if (!reader_.Poll(copying_ == 0 && !held) || copying_ > 0 || !held) return;
  PutWaitingAside();
  reader_.Poll(true);
}

// Copied by this thread: it happens when a ring of 3FS was lost, and takes some milliseconds.
void Loop::PutWaitingAside() {
  for (Op* op : waiting_) {
    if (!InHostSlot(*op) || op->aside != nullptr) continue;
    std::unique_ptr<char[]> copy(new (std::nothrow) char[shared_->rules.slot_bytes]);
    if (copy == nullptr) {
      op->transfer->Fail(Status(Code::OUT_OF_HOST_MEMORY, "no memory for bytes that wait to be verified"));
      continue;
    }
    for (const ChunkPart& part : op->parts)
      memcpy(copy.get() + part.source, reinterpret_cast<const char*>(SlotOf(*op)) + part.source,
             part.length);  // NOLINT
    GiveSlot(*op);
    op->aside = std::move(copy);
  }
  FreeWaiting();
}

// Only the first part of a read may be the rest of a tensor.
bool Loop::ContinuesDigest(const Op& op) const {
  const ActiveTransfer& t = *op.transfer;
  const ChunkPart& first = op.parts.front();
  const uint64_t begin = first.file_offset - t.plan.items[first.item].offset;
  if (begin == 0 || t.plan.DigestOf(first.item) == nullptr) return true;
  auto found = t.digests.find(first.item);
  return found != t.digests.end() && found->second.done == begin;
}

void Loop::PostDigest(Op& op) {
  ActiveTransfer& t = *op.transfer;
  ++copying_;
  op.stage = Op::kDigesting;
  op.since = RunningNow();
  const bool in_slot = InHostSlot(op);
  const bool read_back = !in_slot && !devices_[t.device()]->host_accessible();
  std::vector<DigestPiece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const Digest* expected = t.plan.DigestOf(part.item);
    if (expected == nullptr) continue;
    const PlanItem& item = t.plan.items[part.item];
    std::shared_ptr<Digester>& digester = t.digests[part.item].digester;
    if (digester == nullptr) digester = Digester::New(expected->kind);
    const bool last = part.file_offset + part.length == item.offset + item.length;
    const uint64_t address = in_slot     ? SlotOf(op) + part.source
                             : read_back ? part.destination
                                         : op.buffers[i]->address() + part.destination;
    pieces.push_back(
        {digester, read_back ? op.buffers[i] : nullptr, address, part.length, &item, last ? expected : nullptr});
  }
  // The op holds slot, memory and plan until the completion has been handled.
  const std::string& path = t.plan.files[op.file].path;
  Status posted = DigestThreads().Post([pieces = std::move(pieces), &path, queue = shared_->queue, tag = TagOf(op)] {
    queue->Put({Completion::Kind::kDigest, tag, Compare(pieces, path)});
  });
  if (posted.ok()) return;
  t.Fail(AddPlace(op, posted));
  FreeOp(op);
}

void Loop::HandleDigested(Op& op, const Status& status) {
  --copying_;
  op.stage = Op::kReading;  // what comes next counts by itself
  ActiveTransfer& t = *op.transfer;
  if (!status.ok()) t.Fail(status);
  if (t.failed) return FreeOp(op);
  for (const ChunkPart& part : op.parts) {
    if (t.plan.DigestOf(part.item) == nullptr) continue;
    const PlanItem& item = t.plan.items[part.item];
    const uint64_t done = part.file_offset + part.length - item.offset;
    if (done == item.length)
      t.digests.erase(part.item);
    else
      t.digests[part.item].done = done;
  }
  const uint32_t last = op.parts.back().item;
  auto next = std::find_if(waiting_.begin(), waiting_.end(), [&](const Op* other) {
    return other->transfer == &t && other->parts.front().item == last && ContinuesDigest(*other);
  });
  if (next != waiting_.end()) {
    Op& continued = **next;
    waiting_.erase(next);
    PostDigest(continued);
    if (t.failed) return FreeOp(op);
  }
  if (InHostSlot(op)) return TakeOutOfSlot(op);
  FinishParts(op);
  FreeOp(op);
}

void Loop::FreeWaiting() {
  auto kept =
      std::stable_partition(waiting_.begin(), waiting_.end(), [](const Op* op) { return !op->transfer->failed; });
  const std::vector<Op*> freed(kept, waiting_.end());
  waiting_.erase(kept, waiting_.end());
  for (Op* op : freed) FreeOp(*op);
}

}  // namespace fst
