#include "transfer/loop.h"

#include <algorithm>
#include <thread>

#include "base/io_error.h"
#include "base/metrics.h"

namespace fst {
namespace {

constexpr int kOpeners = 4;
constexpr int kKeptSlots = 2;    // for each device: one is read into while the other is copied from
constexpr int kStallChecks = 8;  // in a stall timeout
constexpr auto kShortestStallCheck = std::chrono::milliseconds(5);

constexpr uint64_t kPopulatedAtOnce = 16 << 20;  // bytes: a system call that copies nothing

int PopulatingThreads() { return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)); }

ChunkRules RulesOfMapping(const ChunkRules& rules) {
  ChunkRules result = rules;
  result.needs.skips = false;  // pages of a hole would be brought in
  result.chunk_bytes = std::max(rules.chunk_bytes, kPopulatedAtOnce);
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
      map_rules_(RulesOfMapping(shared_->rules)),
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

// Transfers to one device in their order; the device with the fewest ops in flight first, or one that copies slowly
// would have all slots in the end.
bool Loop::IssueReads() {
  std::vector<size_t> next(devices_.size());  // by device: the transfer that may have work
  for (bool started = false;; started = true) {
    bool issued = false;
    while (!issued) {
      size_t device = devices_.size();
      for (size_t i = 0; i < devices_.size(); ++i) {
        if (next[i] == transfers_.size()) continue;
        if (device == devices_.size() || in_flight_to_[i] < in_flight_to_[device]) device = i;
      }
      if (device == devices_.size()) return started;
      ActiveTransfer& t = *transfers_[next[device]];
      issued = t.device() == device && IssueRead(t);
      if (!issued) ++next[device];
    }
  }
}

// A device that copies slowly leaves some to each of the others.
bool Loop::MayTakeOne(int count, const std::vector<int>& had, uint32_t device) const {
  const int kept = std::min(kKeptSlots, count / static_cast<int>(devices_.size()));
  int free = count, kept_for_others = 0;
  for (size_t i = 0; i < devices_.size(); ++i) {
    free -= had[i];
    if (i != device) kept_for_others += std::max(kept - had[i], 0);
  }
  return free > kept_for_others;
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

bool Loop::IssueRead(ActiveTransfer& t) {
  if (t.failed) return false;
  t.PassEmptyItems();
  if (!t.HasWork() || reading_ >= reader_.needs().in_flight) return false;
  if (shared_->options.max_bytes_per_second > 0 && Clock::now() < throttled_until_) {
    throttled_ = true;
    return false;
  }
  const PlanItem& first = t.plan.items[t.cursor.item];
  if (t.files[first.file].open == nullptr) return false;

  std::shared_ptr<DeviceBuffer> buffer;
  Status status = BufferOf(t, first, &buffer);
  int slot = -1;
  if (status.ok()) {
    const bool populates = t.mapped[first.file] != nullptr && t.mapped[first.file]->Holds(*buffer);
    const ChunkRules& rules = populates ? map_rules_ : pins_ ? span_rules_ : shared_->rules;
    Chunk chunk = NextChunk(t.plan, rules, t.cursor, t.allowed, buffer->address());
    const bool pins = pins_ && MayPin(t.plan, chunk);
    if (pins) {
      if (!MayTakeOne(shared_->span_count, spans_of_, t.device())) return false;
    } else if (!chunk.direct) {
      if (pins_) chunk = NextChunk(t.plan, shared_->rules, t.cursor, t.allowed, buffer->address());
      if (!MayTakeSlot(t.device())) return false;
      status = slots_.Take(reader_, *devices_.front(), &slot);
      if (status.ok() && slot < 0) return false;
    }
    if (status.ok()) status = StartRead(t, std::move(chunk), slot, pins);
  }
  if (!status.ok()) t.Fail(status.At(t.plan.files[first.file].path, {}, static_cast<int64_t>(first.offset)));
  return status.ok();
}

Status Loop::StartRead(ActiveTransfer& t, Chunk chunk, int slot, bool pins) {
  Op& op = NewOp(Op::kReading, t);
  op.slot = slot;
  if (slot >= 0) ++slots_of_[t.device()];
  op.pins = pins;
  spans_of_[t.device()] += pins;
  op.file = t.plan.items[chunk.parts.front().item].file;
  op.offset = chunk.offset;
  op.converts = chunk.converts;
  op.parts = std::move(chunk.parts);
  ++reading_;
  auto undo = [&](Status status) {
    --reading_;
    FreeOp(op);
    return status;
  };
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    if (i > 0 && part.item == op.parts[i - 1].item) {  // one of very many short runs
      op.buffers.push_back(op.buffers.back());
      continue;
    }
    op.buffers.emplace_back();
    Status status = BufferOf(t, t.plan.items[part.item], &op.buffers.back());
    if (!status.ok()) return undo(status);
  }
  t.AdvanceTo(chunk.next);
  std::shared_ptr<MappedFile> mapped = t.mapped[op.file];  // the last read of a file drops it
  const bool populates = mapped != nullptr && mapped->Holds(*op.buffers.front());

  ReadRequest request;
  request.file = t.files[op.file].open;
  request.offset = chunk.offset;
  request.length = chunk.length;
  request.required = chunk.required;
  t.transfer->AddBytesRead(populates ? 0 : chunk.length - chunk.skipped + chunk.picked);
  request.last = t.ReleaseIfDone(op.file);
  if (populates || pins) {
    // Its bytes are in place, or can be copied, as soon as its pages are.
  } else if (slot >= 0 && chunk.skipped == 0) {
    request.pieces.push_back({slots_.Address(slot), chunk.length, slots_.Base(slot)});
  } else if (slot >= 0) {
    // Holes that are read lie in the slot as in the file, those that are skipped do not.
    uint64_t slot_end = 0, file_end = chunk.offset;
    for (const ChunkPart& part : op.parts) {
      ForEachRun(part, [&](uint64_t offset, uint64_t done, uint64_t length) {
        const uint64_t source = part.source + done, hole = offset - file_end;
        const bool follows = source - slot_end == hole;
        if (follows && !request.pieces.empty()) {
          request.pieces.back().length += source + length - slot_end;
        } else {
          request.pieces.push_back(
              {slots_.Address(slot) + source, length, slots_.Base(slot), hole, done > 0 && part.picked});
        }
        slot_end = source + length;
        file_end = offset + length;
      });
    }
  } else {
    uint64_t file_end = chunk.offset;
    std::shared_ptr<void>& registration = t.registrations[t.plan.items[op.parts.front().item].allocation];
    if (registration == nullptr) registration = reader_.RegisterBuffer(op.buffers.front());
    op.registration = request.target = registration;
    for (size_t i = 0; i < op.parts.size(); ++i) {
      const ChunkPart& part = op.parts[i];
      const uint64_t base = op.buffers[i]->address();
      ForEachRun(part, [&](uint64_t offset, uint64_t done, uint64_t length) {
        const uint64_t address = base + part.destination + done, hole = offset - file_end;
        if (!request.pieces.empty() && hole == 0 &&
            request.pieces.back().address + request.pieces.back().length == address) {
          request.pieces.back().length += length;
        } else {
          request.pieces.push_back({address, length, base, hole, done > 0 && part.picked});
        }
        file_end = offset + length;
      });
    }
  }
  if (shared_->options.max_bytes_per_second > 0) {
    auto cost = std::chrono::nanoseconds((chunk.required - chunk.skipped + chunk.picked) * 1000000000 /
                                         shared_->options.max_bytes_per_second);
    throttled_until_ = std::max(throttled_until_, Clock::now()) + cost;
  }
  Status submitted = populates ? StartPopulating(std::move(mapped), chunk, TagOf(op))
                     : pins    ? StartPinning(op, std::move(request.file), chunk.required)
                               : reader_.Submit(std::move(request), TagOf(op));
  if (!submitted.ok()) return undo(submitted);
  t.transfer->PublishInFlight(reading_);
  return Status::Ok();
}

Status Loop::BufferOf(ActiveTransfer& t, const PlanItem& item, std::shared_ptr<DeviceBuffer>* out) {
  return t.transfer->BufferOf(item.allocation, *devices_[t.device()], t.mapped[item.file].get(),
                              &t.grants[item.allocation], out);
}

Status Loop::StartPopulating(std::shared_ptr<MappedFile> file, const Chunk& chunk, uint64_t tag) {
  return populaters_.Post(
      [file = std::move(file), offset = chunk.offset, length = chunk.required, tag, queue = shared_->queue]() mutable {
        Status status = file->Populate(offset, length);
        file.reset();  // before the completion, as its receiver may count open files
        queue->Put({Completion::Kind::kRead, tag, std::move(status)});
      });
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
