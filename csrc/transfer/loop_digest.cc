// Compares tensors' bytes, as they are in their file, with their digests before the tensor counts as complete: by the
// thread that reads them, out of its cache, where that comes to them in their order; else on threads of their own, in a
// slot before they leave it, others where they were read to. What only the device can read is copied back for that.
//
// Tensors are digested beside each other, each from its first byte on: an op whose tensor's earlier bytes are still
// missing waits. The op that brings them was started before it, so that it needs no slot that a waiting one holds; a
// reader that makes its slots' memory anew waits for ops that have bytes there, which are put aside then.
#include <algorithm>
#include <cstring>
#include <new>
#include <thread>

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

}  // namespace

bool Loop::HasDigests(const Op& op) const {
  const Plan& plan = op.transfer->plan;
  return !plan.digests.empty() && std::any_of(op.parts.begin(), op.parts.end(), [&](const ChunkPart& part) {
    return plan.DigestOf(part.item) != nullptr;
  });
}

std::shared_ptr<DigestTask> Loop::NewDigest(const Op& op) const {
  ActiveTransfer& t = *op.transfer;
  const bool in_slot = InHostSlot(op);
  const bool read_back = !in_slot && !devices_[t.device()]->host_accessible();
  std::vector<DigestPiece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const Digest* expected = t.plan.DigestOf(part.item);
    if (expected == nullptr) continue;
    const PlanItem& item = t.plan.items[part.item];
    std::shared_ptr<ItemDigest>& digest = t.digests[part.item];
    if (digest == nullptr) digest = std::make_shared<ItemDigest>(expected->kind);
    const bool last = part.file_offset + part.length == item.offset + item.length;
    const uint64_t address = in_slot     ? SlotOf(op) + part.source
                             : read_back ? part.destination
                                         : op.buffers[i]->address() + part.destination;
    pieces.push_back({digest, read_back ? op.buffers[i] : nullptr, address, part.length, part.file_offset - op.offset,
                      part.file_offset - item.offset, &item, last ? expected : nullptr});
  }
  return std::make_shared<DigestTask>(std::move(pieces), t.plan.files[op.file].path);
}

// XXH3 alone: SHA-256 takes longer than the read, and has threads of its own. What the host cannot read has to be there
// as a whole, and so has what skips holes.
void Loop::DigestOnArrival(Op& op, const Chunk& chunk, ReadRequest* request) {
  const bool on_host = op.slot >= 0 ? !slots_.on_device() : devices_[op.transfer->device()]->host_accessible();
  if (!on_host || chunk.skipped > 0 || !HasDigests(op)) return;
  for (const ChunkPart& part : op.parts) {
    const Digest* expected = op.transfer->plan.DigestOf(part.item);
    if (expected != nullptr && expected->kind != DigestKind::kXxh3) return;
  }
  op.digest = NewDigest(op);
  request->on_arrival = [task = op.digest](size_t arrived) { task->Arrived(arrived); };
}

void Loop::StartDigest(Op& op) {
  if (op.stage == Op::kCopying) --copying_;
  if (op.digest == nullptr) op.digest = NewDigest(op);
  GoOnWithDigest(op);
}

void Loop::GoOnWithDigest(Op& op) {
  op.stage = Op::kWaiting;
  op.digest->Tell();
  if (op.digest->over()) return EndDigest(op);
  if (op.digest->CanGoOn()) return PostDigest(op);
  waiting_.push_back(&op);
  WakeNext(op);
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
    op->digest->Move(reinterpret_cast<uint64_t>(copy.get()) - SlotOf(*op));
    GiveSlot(*op);
    op->aside = std::move(copy);
  }
  FreeWaiting();
}

void Loop::PostDigest(Op& op) {
  ++copying_;
  op.stage = Op::kDigesting;
  op.since = RunningNow();
  // The op holds slot, memory and plan until the completion has been handled.
  Status posted = DigestThreads().Post(
      [task = op.digest, has_turn = op.digest->HasTurn(), queue = shared_->queue, tag = TagOf(op)] {
        task->Run(has_turn);
        queue->Put({Completion::Kind::kDigest, tag, Status::Ok()});
      });
  if (posted.ok()) return;
  op.transfer->Fail(AddPlace(op, posted));
  FreeOp(op);
}

void Loop::HandleDigested(Op& op, const Status& status) {
  --copying_;
  op.stage = Op::kWaiting;
  if (!status.ok()) op.transfer->Fail(status);
  if (op.transfer->failed) return FreeOp(op);
  GoOnWithDigest(op);
}

void Loop::EndDigest(Op& op) {
  op.stage = Op::kReading;  // what comes next counts by itself
  ActiveTransfer& t = *op.transfer;
  if (!op.digest->status().ok()) t.Fail(op.digest->status());
  if (t.failed) return FreeOp(op);
  for (const ChunkPart& part : op.parts) {
    if (t.plan.DigestOf(part.item) == nullptr) continue;
    const PlanItem& item = t.plan.items[part.item];
    if (part.file_offset + part.length == item.offset + item.length) t.digests.erase(part.item);
  }
  WakeNext(op);
  if (t.failed) return FreeOp(op);
  if (InHostSlot(op)) return TakeOutOfSlot(op);
  FinishParts(op);
  FreeOp(op);
}

// The op that goes on with the tensor which ends this one's read, if it waits for that.
void Loop::WakeNext(const Op& op) {
  const uint32_t last = op.parts.back().item;
  auto next = std::find_if(waiting_.begin(), waiting_.end(), [&](const Op* other) {
    return other->transfer == op.transfer && other->parts.front().item == last && other->digest->HasTurn();
  });
  if (next == waiting_.end()) return;
  Op& continued = **next;
  waiting_.erase(next);
  PostDigest(continued);
}

void Loop::FreeWaiting() {
  auto kept =
      std::stable_partition(waiting_.begin(), waiting_.end(), [](const Op* op) { return !op->transfer->failed; });
  const std::vector<Op*> freed(kept, waiting_.end());
  waiting_.erase(kept, waiting_.end());
  for (Op* op : freed) FreeOp(*op);
}

}  // namespace fst
