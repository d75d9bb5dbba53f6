// The clocks of the loop: deadlines of transfers, stalled ops, and how long the I/O thread may sleep.
#include <algorithm>

#include "transfer/loop.h"

namespace fst {

void Loop::CheckClocks() {
  auto now = Clock::now();
  for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
    if (t->failed || t->complete() || now < t->transfer->options().deadline) continue;
    t->Fail(
        Status(Code::TIMEOUT, Format("the load was not complete in time: %llu bytes of it had arrived; raise timeoutMs",
                                     static_cast<unsigned long long>(t->transfer->bytes_loaded()))));
  }
  running_.Look(now);
  if (in_flight_ == 0 || now < next_stall_check_) return;
  next_stall_check_ = now + running_.tick();
  const auto limit = shared_->options.stall_timeout;
  const Clock::duration ran = running_.At(now);
  bool moving = false;
  for (Op& op : ops_) {
    // What an op waits for is an op, too, and judged itself; it may take long where a tensor is large.
    if (op.stage == Op::kFree || op.stage == Op::kWaiting) continue;
    if (!IsOverdue(op, ran)) {
      moving = true;
      continue;
    }
    if (op.stage == Op::kReading) reader_.Abandon(TagOf(op));
    if (op.transfer->failed) continue;
    const char* what = op.stage == Op::kOpening      ? "opening the file"
                       : op.stage == Op::kReading    ? "a read"
                       : op.stage == Op::kDigesting  ? "a digest"
                       : op.stage == Op::kConverting ? "a conversion"
                       : op.stage == Op::kUnpinning  ? "giving back locked pages"
                                                     : "a copy to the device";
    const std::string& path = op.transfer->plan.files[op.file].path;
    Status stalled(
        Code::STALLED,
        Format("%s: %s at offset %llu has not completed for %lld ms (stallTimeoutMs); is its store still there?",
               path.c_str(), what, static_cast<unsigned long long>(op.offset), static_cast<long long>(limit.count())));
    op.transfer->Fail(stalled.At(path, {}, static_cast<int64_t>(op.offset)));
    moving = true;  // others may have what it was given: whether they can use it, the next check says
  }
  if (moving) return;
  // No read or slot is coming back, so transfers that wait for one get none.
  for (const Op* op : unpinned_) {
    if (!op->transfer->failed && IsOverdue(*op, ran)) FailStarved(*op->transfer, op->file);
  }
  for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
    if (t->failed || t->starved_since > ran || ran - t->starved_since < LongestWait()) continue;
    FailStarved(*t, t->plan.items[t->cursor.item].file);
  }
}

// The one tick that counts of a stop must not make the difference: what it held up gets another to complete.
Clock::duration Loop::LongestWait() const { return shared_->options.stall_timeout + running_.tick(); }

bool Loop::IsOverdue(const Op& op, Clock::duration ran) const { return ran - op.since >= LongestWait(); }

void Loop::FailStarved(ActiveTransfer& t, uint32_t file) {
  const std::string& path = t.plan.files[file].path;
  Status stalled(Code::STALLED,
                 Format("%s: nothing could be read for %lld ms (stallTimeoutMs), because reads of other loads have "
                        "not come back; is their store still there?",
                        path.c_str(), static_cast<long long>(shared_->options.stall_timeout.count())));
  t.Fail(stalled.At(path));
}

Clock::time_point Loop::NextDeadline() const {
  auto deadline = Clock::time_point::max();
  if (in_flight_ > 0) deadline = next_stall_check_;
  for (const std::unique_ptr<ActiveTransfer>& t : transfers_) {
    if (t->failed) continue;  // only waits for what is in flight
    deadline = std::min(deadline, t->transfer->options().deadline);
    // Even if that has passed by now: then a read can start at once.
    if (throttled_) deadline = std::min(deadline, shared_->options.pace->free_at());
  }
  return deadline;
}

}  // namespace fst
