#include "transfer/loop.h"

#include <algorithm>
#include <thread>

#include "base/io_error.h"
#include "base/metrics.h"

namespace fst {
namespace {

constexpr int kOpeners = 4;
constexpr int kStallChecks = 8;  // in a stall timeout
constexpr auto kShortestStallCheck = std::chrono::milliseconds(5);

constexpr uint64_t kPopulatedAtOnce = 16 << 20;  // bytes: a system call that copies nothing

int PopulatingThreads() { return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)); }

ChunkRules RulesOfMapping(const ChunkRules& rules, const std::shared_ptr<Pace>& pace) {
  ChunkRules result = rules;
  result.needs.skips = false;  // pages of a hole would be brought in
  const uint64_t most = pace == nullptr ? kPopulatedAtOnce : std::min(kPopulatedAtOnce, pace->LongestRead());
  result.chunk_bytes = std::max(rules.chunk_bytes, most);
  return result;
}

ChunkRules RulesOfSpans(const ChunkRules& rules) {
  ChunkRules result = rules;
  result.needs.skips = false;  // the same
  return result;
}

void CountInFlight(int by) { Metrics::Get().in_flight.fetch_add(by, std::memory_order_relaxed); }

}  // namespace

Loop::Loop(std::shared_ptr<EngineShared> shared)
    : shared_(std::move(shared)),
      reader_(*shared_->reader),
      devices_(shared_->devices),
      map_rules_(RulesOfMapping(shared_->rules, shared_->options.pace)),
      span_rules_(RulesOfSpans(shared_->rules)),
      slots_(shared_->rules.slot_bytes, shared_->slot_count,
             devices_.front()->staging_is_expensive() ? reader_.needs().slots_at_first : 0),
      streams_(devices_.size()),
      openers_(std::make_shared<TaskPool>("fst-open", kOpeners)),
      populaters_("fst-populate", PopulatingThreads()),
      pinners_("fst-pin", std::max(reader_.needs().in_flight, 1)),
      in_flight_to_(devices_.size()),
      slots_of_(devices_.size()),
      spans_of_(devices_.size()),
      running_(std::max<Clock::duration>(shared_->options.stall_timeout / kStallChecks, kShortestStallCheck)) {}

void Loop::Run() {
  for (size_t i = 0; i < devices_.size() && broken_.ok(); ++i)
    broken_ = devices_[i]->NewStream(shared_->queue, &streams_[i]);
  if (broken_.ok()) broken_ = reader_.Start(shared_->queue, devices_.front());
  if (broken_.ok() && shared_->options.slots_at_once) (void)slots_.AllocateFirst(reader_, *devices_.front());
  if (broken_.ok() && shared_->options.pins_files) CheckPins();
  std::vector<Completion> completions;
  for (;;) {
    TakeRequests();
    CheckClocks();
    if (broken_.ok()) PollReader();
    while (IssueAll()) {
    }
    RetireFinished();
    if (closing_ && in_flight_ == 0 && transfers_.empty()) return;
    ++shared_->turn;
    shared_->queue->Take(&completions, NextDeadline());
    ++shared_->turn;
    if (!completions.empty()) CollectFallbacks();
    for (const Completion& completion : completions) Handle(completion);
  }
}

// Before completions are published, so that a caller with every tensor also has every fallback.
void Loop::CollectFallbacks() {
  std::vector<Reader::Fallback> fallbacks = reader_.TakeFallbacks();
  if (fallbacks.empty()) return;
  std::lock_guard<std::mutex> lock(shared_->mutex);
  std::move(fallbacks.begin(), fallbacks.end(), std::back_inserter(shared_->fallbacks));
}

void Loop::TakeRequests() {
  std::vector<std::unique_ptr<ActiveTransfer>> started;
  std::vector<std::pair<std::shared_ptr<Transfer>, Status>> cancelled;
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    started.swap(shared_->started);
    cancelled.swap(shared_->cancelled);
    closing_ = shared_->closing;
  }
  if (shared_->options.pace != nullptr && transfers_.empty()) shared_->options.pace->Begin();
  for (std::unique_ptr<ActiveTransfer>& t : started) {
    // Before anything is allocated: there must be room for the whole window.
    uint64_t bytes = t->transfer->BytesToAllocate();
    const std::shared_ptr<MemoryBudget>& budget = t->transfer->options().budget;
    if (budget != nullptr) bytes = std::min(bytes, budget->left());
    Status possible = broken_.ok() ? devices_[t->device()]->CheckAvailable(bytes) : broken_;
    if (!possible.ok()) t->Fail(possible);
    transfers_.push_back(std::move(t));
  }
  for (auto& [transfer, status] : cancelled) {
    if (transfer->drained()) transfer->ReleaseAllocations();
    for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
      if (t->transfer == transfer) t->Fail(status);
    }
  }
  if (closing_) {
    for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
      t->Fail(Status(Code::CLOSED, "the loader was closed while this load was in progress"));
    }
  }
}

void Loop::Handle(const Completion& completion) {
  uint32_t index = static_cast<uint32_t>(completion.tag);
  if (index >= ops_.size() || ops_[index].generation != completion.tag >> 32) return;
  Op& op = ops_[index];
  // A completion that comes twice, or that belongs to another stage, is ignored.
  const Status& status = completion.status;
  if (op.stage == Op::kOpening && completion.kind == Completion::Kind::kOpen) return HandleOpened(op, status);
  if (op.stage == Op::kReading && completion.kind == Completion::Kind::kRead) return HandleRead(op, status);
  if (op.stage == Op::kDigesting && completion.kind == Completion::Kind::kDigest) return HandleDigested(op, status);
  if (op.stage == Op::kConverting && completion.kind == Completion::Kind::kConvert) return HandleConverted(op, status);
  if (op.stage == Op::kCopying && completion.kind == Completion::Kind::kCopy) return HandleCopied(op, status);
  if (op.stage == Op::kUnpinning && completion.kind == Completion::Kind::kUnpin) return HandleUnpinned(op, status);
  if (op.stage == Op::kClosing && completion.kind == Completion::Kind::kClose) return FreeOp(op);
}

void Loop::HandleOpened(Op& op, const Status& status) {
  ActiveTransfer& t = *op.transfer;
  if (!t.failed && OutOfDescriptors(status.os_error())) {
    t.PutOff(op.file, status);
    t.scarce = true;
    t.scarce_at = op.reads_done;
  } else if (!status.ok()) {
    t.Fail(status);
  } else if (!t.failed) {
    t.files[op.file].open = std::move(op.opened);
    t.scarce = false;
  }
  if (op.opened != nullptr) t.closing.push_back(std::move(op.opened));
  FreeOp(op);
}

void Loop::HandleRead(Op& op, const Status& status) {
  --reading_;
  ++reads_done_;
  if (op.pins) return HandlePinned(op, status);
  if (!status.ok()) op.transfer->Fail(status);
  if (op.transfer->failed) return FreeOp(op);
  const bool in_device_slot = op.slot >= 0 && slots_.on_device();
  if (!in_device_slot && HasDigests(op)) return StartDigest(op);
  if (op.slot >= 0) return TakeOutOfSlot(op);
  FinishParts(op);
  FreeOp(op);
}

void Loop::TakeOutOfSlot(Op& op) {
  if (op.converts) return StartConversion(op);
  if (IsScattered(op)) return StartPacking(op);
  CopyOut(op);
}

void Loop::HandleCopied(Op& op, const Status& status) {
  if (!status.ok()) op.transfer->Fail(AddPlace(op, status));
  if (op.transfer->failed) return FreeOp(op);
  if (op.span != nullptr) return StartUnpinning(op);
  if (slots_.on_device() && HasDigests(op)) return StartDigest(op);
  FinishParts(op);
  FreeOp(op);
}

Status Loop::AddPlace(const Op& op, const Status& status) {
  const std::string& path = op.transfer->plan.files[op.file].path;
  return Status(status.code(), path + ": " + status.message()).At(path, {}, static_cast<int64_t>(op.offset));
}

void Loop::FinishParts(Op& op) {
  ActiveTransfer& t = *op.transfer;
  if (t.AllStarted()) {
    Status kept = t.CheckKept();
    if (!kept.ok()) return t.Fail(std::move(kept));
  }
  for (size_t i = 0; i < op.parts.size();) {
    const uint32_t item = op.parts[i].item;
    uint64_t bytes = 0;
    for (; i < op.parts.size() && op.parts[i].item == item; ++i) bytes += op.parts[i].length;
    t.CompleteBytes(item, bytes);
  }
}

bool Loop::IssueAll() {
  throttled_ = false;
  bool started = false;
  for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
    if (!t->failed) started |= OpenAhead(*t);
  }
  started |= ReadUnpinned();
  started |= IssueReads();
  for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
    if (t->failed) continue;
    // With work but no op in flight it waits for other transfers' reads: CheckClocks limits that.
    const bool starved = t->ops == 0 && t->HasWork() && !throttled_;
    if (!starved) {
      t->starved_since = Clock::duration::max();
    } else if (t->starved_since == Clock::duration::max()) {
      t->starved_since = RunningNow();
    }
  }
  return ResolvePutOff() || started;
}

// Files that wait for a descriptor wait for reads, after which files are closed. Without any read there is hope only
// where files that come later were opened first.
bool Loop::ResolvePutOff() {
  if (in_flight_ > 0 || throttled_) return false;
  bool started = false;
  for (std::unique_ptr<ActiveTransfer>& t : transfers_) {
    Status why = t->WhyPutOff();
    if (why.ok() || t->failed || !t->HasWork()) continue;
    if (t->PutOffOpenFiles()) {
      t->scarce_at = UINT64_MAX;  // they are tried again, one at a time
      started |= OpenAhead(*t);
    } else {
      t->Fail(why);
    }
  }
  return started;
}

bool Loop::OpenAhead(ActiveTransfer& t) {
  t.ApplyWindow();
  bool started = false;
  // After a failure for want of descriptors one file at a time is tried again, when a read has ended.
  if (t.scarce && (t.opening > 0 || t.scarce_at == reads_done_)) return false;
  for (uint32_t file; !(t.scarce && started) && t.NextFileToOpen(&file); started = true) {
    if (t.mapped[file] != nullptr) {
      t.files[file].open = t.mapped[file];
      continue;
    }
    Op& op = NewOp(Op::kOpening, t);
    op.file = file;
    op.reads_done = reads_done_;
    // The op stays in place until its completion has been handled, and the loop outlives its ops.
    Status posted =
        openers_->Post([this, opening = &op, planned = &t.plan.files[file], tag = TagOf(op), queue = shared_->queue] {
          Status status = reader_.Open(planned->path, planned->expected, &opening->opened);
          queue->Put({Completion::Kind::kOpen, tag, std::move(status)});
        });
    if (posted.ok()) continue;
    t.Fail(posted);
    FreeOp(op);
    return true;
  }
  return started;
}

// On the threads that open: a close asks the store, too, and one that hangs must hold up no other load.
void Loop::StartClosing(ActiveTransfer& t) {
  for (std::shared_ptr<ReaderFile>& file : t.closing) {
    Op& op = NewOp(Op::kClosing, t);
    op.opened = std::move(file);
    Status posted = openers_->Post([closed = &op.opened, tag = TagOf(op), queue = shared_->queue] {
      closed->reset();
      queue->Put({Completion::Kind::kClose, tag, Status::Ok()});
    });
    if (!posted.ok()) FreeOp(op);
  }
  t.closing.clear();
}

void Loop::RetireFinished() {
  FreeWaiting();
  FreeUnpinned();
  for (auto it = transfers_.begin(); it != transfers_.end();) {
    ActiveTransfer& t = **it;
    StartClosing(t);
    const bool over = t.ops == 0 && (t.failed || t.complete());
    if (over) t.transfer->PublishDrained();
    t.news |= t.transfer->PublishIdle(t.ops == 0);
    t.news |= t.transfer->PublishWaitsFor(over ? 0 : t.WaitsFor());
    const std::function<void()>& notify = t.transfer->options().notify;
    if ((over || t.news) && notify) notify();
    t.news = false;
    it = over ? transfers_.erase(it) : std::next(it);
  }
}

Loop::Op& Loop::NewOp(Op::Stage stage, ActiveTransfer& t) {
  if (free_ops_.empty()) {
    free_ops_.push_back(static_cast<uint32_t>(ops_.size()));
    ops_.emplace_back();
    ops_.back().index = free_ops_.back();
  }
  Op& op = ops_[free_ops_.back()];
  free_ops_.pop_back();
  op.stage = stage;
  op.transfer = &t;
  op.since = RunningNow();
  if (in_flight_++ == 0) next_stall_check_ = Clock::now() + running_.tick();
  ++in_flight_to_[t.device()];
  ++t.ops;
  t.opening += stage == Op::kOpening;
  CountInFlight(+1);
  return op;
}

void Loop::GiveSlot(const Op& op) {
  slots_.Give(op.slot);
  --slots_of_[op.transfer->device()];
}

void Loop::FreeOp(Op& op) {
  if (op.span != nullptr) return StartUnpinning(op);
  if (op.pins) --spans_of_[op.transfer->device()];
  if (op.slot >= 0 && op.aside == nullptr) GiveSlot(op);
  if (op.stage == Op::kDigesting || op.stage == Op::kConverting || op.stage == Op::kCopying) --copying_;
  --in_flight_to_[op.transfer->device()];
  --op.transfer->ops;
  op.transfer->opening -= op.stage == Op::kOpening;
  --in_flight_;
  CountInFlight(-1);
  uint32_t index = op.index, generation = op.generation + 1;
  op = Op();
  op.index = index;
  op.generation = generation;  // late completions are ignored
  free_ops_.push_back(index);
}

}  // namespace fst
