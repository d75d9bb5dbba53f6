// Chunks that a device copies from the page cache by itself: a pinned span takes the place of a slot. It is made, and
// given back when its copies have ended, on threads of their own, several at a time: to lock pages takes long. A chunk
// whose span cannot be made waits for a slot, which it is read into.
#include <algorithm>

#include "base/mapped_pages.h"
#include "transfer/loop.h"

namespace fst {
namespace {

constexpr uint64_t kSmallestPart = 16;  // of a whole read: shorter ones are read sooner than their pages are locked

}  // namespace

void Loop::CheckPins() {
  if (shared_->rules.direct && devices_.front()->maps_files()) return;  // the host, which has its own way to map
  if (!reader_.needs().maps || shared_->rules.direct)
    return StopPinning("only what plain reads bring to a GPU through the page cache can be");
  if (!PopulatesMappings()) return StopPinning("this kernel cannot populate mappings (Linux 5.14 can)");
  if (shared_->span_count == 0) return StopPinning("the budget has no room for more than one read at a time");
  for (const std::shared_ptr<Device>& device : devices_) {
    Status possible = device->CheckPinsReadOnly();
    if (!possible.ok()) return StopPinning(possible.message());
  }
  pins_ = true;
}

void Loop::StopPinning(const std::string& why) {
  pins_ = false;
  std::lock_guard<std::mutex> lock(shared_->mutex);
  shared_->fallbacks.push_back({"", "copied from the page cache by the GPU", "read into staging memory", why});
}

// What the host has to touch is read: a mapping that is touched ends the process where its file has become shorter.
bool Loop::MayPin(const Plan& plan, const Chunk& chunk) const {
  return !chunk.direct && !chunk.converts && chunk.required * kSmallestPart >= shared_->rules.chunk_bytes &&
         std::none_of(chunk.parts.begin(), chunk.parts.end(), [&](const ChunkPart& part) {
           return plan.items[part.item].strided() || plan.DigestOf(part.item) != nullptr;
         });
}

// Memory that is locked in spans is given back before any is locked in their place. Not waited for are spans of failed
// loads that may never come back: there is room for slots and spans together.
bool Loop::MayTakeSlot(uint32_t device) const {
  if (!MayTakeOne(slots_.count(), slots_of_, device)) return false;
  if (pins_ || std::all_of(spans_of_.begin(), spans_of_.end(), [](int count) { return count == 0; })) return true;
  const Clock::duration ran = RunningNow();
  return std::none_of(ops_.begin(), ops_.end(), [&](const Op& op) {
    return op.pins && !(op.transfer->failed && IsOverdue(op, ran));  // one that is free pins nothing
  });
}

Status Loop::StartPinning(Op& op, std::shared_ptr<ReaderFile> file, uint64_t length) {
  // The op stays in place until its completion has been handled, and the loop outlives its ops.
  return pinners_.Post([pinned = &op, file = std::move(file), offset = op.offset, length,
                        device = devices_[op.transfer->device()], tag = TagOf(op), queue = shared_->queue]() mutable {
    std::unique_ptr<PinnedSpan> span;
    Status status = PinnedSpan::Pin(std::static_pointer_cast<const FdFile>(file), offset, length, device, &span,
                                    &pinned->not_pinned);
    if (span == nullptr && status.ok()) pinned->opened = std::move(file);
    pinned->span = std::move(span);
    file.reset();  // before the completion, as its receiver may count open files
    queue->Put({Completion::Kind::kRead, tag, std::move(status)});
  });
}

void Loop::HandlePinned(Op& op, const Status& status) {
  ActiveTransfer& t = *op.transfer;
  if (!status.ok()) t.Fail(status);
  if (!t.failed && op.span != nullptr) return CopyOut(op);
  op.pins = op.span != nullptr;
  if (!op.pins) --spans_of_[t.device()];
  if (t.failed) {
    if (op.opened != nullptr) t.closing.push_back(std::move(op.opened));
    return FreeOp(op);
  }
  if (pins_) StopPinning(op.not_pinned);
  op.stage = Op::kWaiting;
  op.since = RunningNow();
  unpinned_.push_back(&op);
}

bool Loop::ReadUnpinned() {
  bool started = false;
  for (;;) {
    FreeUnpinned();  // those behind one that has failed must not wait for it
    if (unpinned_.empty() || reading_ >= reader_.needs().in_flight) break;
    Op& op = *unpinned_.front();
    ActiveTransfer& t = *op.transfer;
    if (!MayTakeSlot(t.device())) break;
    Status status = slots_.Take(reader_, *devices_.front(), &op.slot);
    if (status.ok() && op.slot < 0) break;
    unpinned_.erase(unpinned_.begin());
    if (op.slot >= 0) {
      ++slots_of_[t.device()];
      ReadRequest request;
      request.file = std::move(op.opened);
      request.offset = op.offset;
      request.length = request.required = op.parts.back().file_end() - op.offset;
      request.last = true;  // for all that is known here
      request.pieces.push_back({slots_.Address(op.slot), request.length, slots_.Base(op.slot)});
      op.stage = Op::kReading;
      op.since = RunningNow();
      ++reading_;
      status = reader_.Submit(std::move(request), TagOf(op));
      if (!status.ok()) --reading_;
    }
    started = true;
    if (status.ok()) continue;
    t.Fail(AddPlace(op, status));
    if (op.opened != nullptr) t.closing.push_back(std::move(op.opened));
    FreeOp(op);
  }
  return started;
}

void Loop::StartUnpinning(Op& op) {
  if (op.stage == Op::kCopying) --copying_;
  op.stage = Op::kUnpinning;
  op.since = RunningNow();
  // What was copied before its file changed is not told from what was copied later.
  const bool checks = !op.transfer->failed;
  Status posted = pinners_.Post([span = std::move(op.span), checks, tag = TagOf(op), queue = shared_->queue]() mutable {
    Status status = checks ? span->CheckUnchanged() : Status::Ok();
    span.reset();  // before the completion, as with reads
    queue->Put({Completion::Kind::kUnpin, tag, std::move(status)});
  });
  if (posted.ok()) return;
  op.transfer->Fail(AddPlace(op, posted));
  FreeOp(op);
}

void Loop::HandleUnpinned(Op& op, const Status& status) {
  if (!status.ok()) op.transfer->Fail(status);
  if (!op.transfer->failed) FinishParts(op);
  FreeOp(op);
}

void Loop::FreeUnpinned() {
  auto kept =
      std::stable_partition(unpinned_.begin(), unpinned_.end(), [](const Op* op) { return !op->transfer->failed; });
  const std::vector<Op*> freed(kept, unpinned_.end());
  unpinned_.erase(kept, unpinned_.end());
  for (Op* op : freed) {
    if (op->opened != nullptr) op->transfer->closing.push_back(std::move(op->opened));
    FreeOp(*op);
  }
}

}  // namespace fst
