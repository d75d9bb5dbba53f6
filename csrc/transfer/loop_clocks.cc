// The clocks of the loop: deadlines of loads, stalled operations, and how long the I/O thread may sleep.
#include <algorithm>

#include "transfer/loop.h"

namespace fst {

void Loop::CheckClocks() {
  auto now = Clock::now();
  for (TransferPtr& transfer : transfers_) {
    if (transfer->failed_ || now < transfer->options_.deadline) continue;
    Fail(*transfer, Status(Code::TIMEOUT,
                           Format("the load was not complete in time: %llu bytes of it had arrived; raise timeoutMs",
                                  static_cast<unsigned long long>(transfer->bytes_loaded()))));
  }
  if (working_ == 0 || now < next_stall_check_) return;
  auto limit = shared_->options.stall_timeout;
  next_stall_check_ = now + std::max<Clock::duration>(limit / 8, std::chrono::milliseconds(5));
  bool moving = false;
  for (Op& op : ops_) {
    if (op.stage == Op::kFree) continue;
    if (now - op.since < limit) {
      moving = true;
      continue;
    }
    if (op.stage == Op::kReading) reader_.Abandon(TagOf(op));
    if (op.transfer->failed_) continue;
    const char* what = op.stage == Op::kOpening      ? "opening the file"
                       : op.stage == Op::kReading    ? "a read"
                       : op.stage == Op::kConverting ? "a conversion"
                                                     : "a copy to the device";
    const std::string& path = op.transfer->plan_.files[op.file].path;
    Status stalled(
        Code::STALLED,
        Format("%s: %s at offset %llu has not completed for %lld ms (stallTimeoutMs); is its store still there?",
               path.c_str(), what, static_cast<unsigned long long>(op.offset), static_cast<long long>(limit.count())));
    Fail(*op.transfer, stalled.At(path, {}, static_cast<int64_t>(op.offset)));
  }
  if (moving) return;
  // Reads and slots that do not come back are those that other loads wait for.
  for (TransferPtr& transfer : transfers_) {
    if (transfer->failed_ || transfer->starved_since_ > now || now - transfer->starved_since_ < limit) continue;
    const std::string& path = transfer->plan_.files[transfer->plan_.items[transfer->cursor_.item].file].path;
    Status stalled(Code::STALLED,
                   Format("%s: nothing could be read for %lld ms (stallTimeoutMs), because reads of other loads have "
                          "not come back; is their store still there?",
                          path.c_str(), static_cast<long long>(limit.count())));
    Fail(*transfer, stalled.At(path));
  }
}

Clock::time_point Loop::NextDeadline() const {
  auto deadline = Clock::time_point::max();
  if (working_ > 0) deadline = next_stall_check_;
  for (const TransferPtr& transfer : transfers_) {
    if (transfer->failed_) continue;  // it waits for what is in flight only
    deadline = std::min(deadline, transfer->options_.deadline);
    // Also when the pause has ended since: then there is something to start at once.
    if (throttled_) deadline = std::min(deadline, throttled_until_);
  }
  return deadline;
}

}  // namespace fst
