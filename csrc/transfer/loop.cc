#include "transfer/loop.h"

#include <algorithm>

#include "base/metrics.h"

namespace fst {
namespace {

constexpr size_t kOpenAhead = 8;  // files: an open costs a round trip on a distributed file system
constexpr int kOpeners = 4;

void CountInFlight(int by) { Metrics::Get().in_flight.fetch_add(by, std::memory_order_relaxed); }

}  // namespace

Loop::Loop(std::shared_ptr<Engine::Shared> shared)
    : shared_(std::move(shared)),
      reader_(*shared_->reader),
      device_(*shared_->device),
      slots_(shared_->slot_bytes, shared_->slot_count,
             device_.staging_is_expensive() ? reader_.needs().slots_at_first : 0),
      openers_(std::make_shared<TaskPool>("fst-open", kOpeners)) {}

void Loop::Run() {
  broken_ = device_.NewStream(shared_->queue, &stream_);
  if (broken_.ok()) broken_ = reader_.Start(shared_->queue, shared_->device);
  std::vector<Completion> completions;
  for (;;) {
    TakeRequests();
    CheckClocks();
    if (broken_.ok()) reader_.Poll(copying_ == 0);
    while (IssueAll()) {
    }
    RetireFinished();
    if (closing_ && working_ == 0 && transfers_.empty()) return;
    shared_->queue->Take(&completions, NextDeadline());
    if (!completions.empty()) CollectFallbacks();
    for (const Completion& completion : completions) Handle(completion);
  }
}

// Before the tensors that these files hold are seen to be ready: who has them all has all fallbacks, too.
void Loop::CollectFallbacks() {
  std::vector<Reader::Fallback> fallbacks = reader_.TakeFallbacks();
  if (fallbacks.empty()) return;
  std::lock_guard<std::mutex> lock(shared_->mutex);
  std::move(fallbacks.begin(), fallbacks.end(), std::back_inserter(shared_->fallbacks));
}

void Loop::TakeRequests() {
  std::vector<TransferPtr> started;
  std::vector<std::pair<TransferPtr, Status>> cancelled;
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    started.swap(shared_->started);
    cancelled.swap(shared_->cancelled);
    closing_ = shared_->closing;
  }
  for (TransferPtr& transfer : started) {
    transfers_.push_back(transfer);
    Status possible = broken_.ok() ? CheckAvailable(*transfer) : broken_;
    if (!possible.ok()) Fail(*transfer, possible);
  }
  for (auto& [transfer, status] : cancelled) {
    if (transfer->drained()) {
      transfer->DropMemory();
    } else {
      Fail(*transfer, status);
    }
  }
  if (closing_) {
    for (TransferPtr& transfer : transfers_) {
      Fail(*transfer, Status(Code::CLOSED, "the loader was closed while this load was in progress"));
    }
  }
}

// What the window allows at once is refused before anything is allocated.
Status Loop::CheckAvailable(const Transfer& transfer) {
  uint64_t bytes = 0;
  std::lock_guard<std::mutex> lock(transfer.mutex_);
  for (size_t i = 0; i < transfer.plan_.allocations.size(); ++i) {
    if (transfer.memory_[i].buffer == nullptr && transfer.plan_.allocations[i].batch < transfer.options_.window)
      bytes += transfer.plan_.allocations[i].size;
  }
  return device_.CheckAvailable(bytes);
}

void Loop::Handle(const Completion& completion) {
  uint32_t index = static_cast<uint32_t>(completion.tag);
  if (index >= ops_.size() || ops_[index].generation != completion.tag >> 32) return;
  Op& op = ops_[index];
  switch (op.stage) {  // one that comes twice, or is of no stage that the op is in, is not heard
    case Op::kFree:
      return;
    case Op::kOpening:
      if (completion.kind == Completion::Kind::kOpen) HandleOpened(op, completion.status);
      return;
    case Op::kReading:
      if (completion.kind == Completion::Kind::kRead) HandleRead(op, completion.status);
      return;
    case Op::kConverting:
      if (completion.kind == Completion::Kind::kConvert) HandleConverted(op, completion.status);
      return;
    case Op::kCopying:
      if (completion.kind == Completion::Kind::kCopy) HandleCopied(op, completion.status);
      return;
  }
}

void Loop::HandleOpened(Op& op, const Status& status) {
  Transfer& transfer = *op.transfer;
  if (!status.ok()) {
    Fail(transfer, status);
  } else if (!transfer.failed_) {
    transfer.files_[op.file].file = std::move(op.opened);
    transfer.files_[op.file].state = Transfer::File::kOpen;
  }
  FreeOp(op);
}

void Loop::HandleRead(Op& op, const Status& status) {
  --reading_;
  if (!status.ok()) Fail(*op.transfer, status);
  if (op.transfer->failed_) return FreeOp(op);
  if (op.slot < 0) {
    FinishParts(op);
    return FreeOp(op);
  }
  if (op.converts) return StartConversion(op);
  CopyOut(op);
}

void Loop::HandleCopied(Op& op, const Status& status) {
  if (!status.ok()) Fail(*op.transfer, PlaceOf(op, status));
  if (!op.transfer->failed_) FinishParts(op);
  FreeOp(op);
}

Status Loop::PlaceOf(const Op& op, const Status& status) {
  const std::string& path = op.transfer->plan_.files[op.file].path;
  return Status(status.code(), path + ": " + status.message()).At(path, {}, static_cast<int64_t>(op.offset));
}

void Loop::FinishParts(Op& op) {
  for (const ChunkPart& part : op.parts) op.transfer->CompleteBytes(part.item, part.length);
}

bool Loop::IssueAll() {
  throttled_ = false;
  bool started = false;
  for (size_t i = 0; i < transfers_.size(); ++i) {
    TransferPtr transfer = transfers_[i];
    if (transfer->failed_) continue;
    started |= OpenAhead(transfer);
    while (IssueRead(transfer)) started = true;
    // What waits with nothing of its own in flight waits for reads of other loads: CheckClocks looks after it.
    bool waits = transfer->ops_ == 0 && transfer->cursor_.item < transfer->allowed_ && !throttled_;
    if (!waits) {
      transfer->starved_since_ = Clock::time_point::max();
    } else if (transfer->starved_since_ == Clock::time_point::max()) {
      transfer->starved_since_ = Clock::now();
    }
  }
  return started;
}

bool Loop::OpenAhead(const TransferPtr& transfer) {
  Transfer& t = *transfer;
  const uint32_t window = t.window_.load(std::memory_order_relaxed);
  while (t.allowed_ < t.plan_.items.size() && t.plan_.BatchOf(t.allowed_) < window) ++t.allowed_;
  PassEmptyItems(t);
  bool started = false;
  // The file at the cursor is opened however many are: in a plan that interleaves files none may be done before.
  while (t.files_opened_ < t.file_sequence_.size() && t.file_first_[t.files_opened_] < t.allowed_ &&
         (t.files_opened_ < t.files_started_ + kOpenAhead || t.file_first_[t.files_opened_] <= t.cursor_.item)) {
    uint32_t file = t.file_sequence_[t.files_opened_++];
    Op& op = NewOp(Op::kOpening, transfer);
    op.file = file;
    t.files_[file].state = Transfer::File::kOpening;
    // The op stays in place until its completion has been handled, and the loop outlives its ops.
    Status posted =
        openers_->Post([this, opening = &op, planned = &t.plan_.files[file], tag = TagOf(op), queue = shared_->queue] {
          Status status = reader_.Open(planned->path, planned->expected, &opening->opened);
          queue->Put({Completion::Kind::kOpen, tag, std::move(status)});
        });
    started = true;
    if (posted.ok()) continue;
    Fail(t, posted);
    FreeOp(op);
    break;
  }
  return started;
}

void Loop::PassEmptyItems(Transfer& t) {
  while (t.cursor_.item < t.allowed_ && t.plan_.items[t.cursor_.item].length == 0) {
    uint32_t item = static_cast<uint32_t>(t.cursor_.item);
    t.cursor_ = {t.cursor_.item + 1, 0};
    t.CompleteItem(item);
  }
}

bool Loop::IssueRead(const TransferPtr& transfer) {
  Transfer& t = *transfer;
  if (t.failed_) return false;
  PassEmptyItems(t);
  if (t.cursor_.item >= t.allowed_ || reading_ >= reader_.needs().in_flight) return false;
  if (shared_->options.max_bytes_per_second > 0 && Clock::now() < throttled_until_) {
    throttled_ = true;
    return false;
  }
  const PlanItem& first = t.plan_.items[t.cursor_.item];
  if (t.files_[first.file].state != Transfer::File::kOpen) return false;

  std::shared_ptr<DeviceBuffer> memory;
  Status status = BufferOf(t, first.allocation, &memory);
  int slot = -1;
  if (status.ok()) {
    Chunk chunk = NextChunk(t.plan_, shared_->rules, t.cursor_, t.allowed_, memory->address());
    if (!chunk.direct) {
      status = slots_.Take(reader_, device_, &slot);
      if (status.ok() && slot < 0) return false;
    }
    if (status.ok()) status = StartRead(transfer, std::move(chunk), slot);
  }
  if (!status.ok()) Fail(t, status.At(t.plan_.files[first.file].path, {}, static_cast<int64_t>(first.offset)));
  return status.ok();
}

Status Loop::StartRead(const TransferPtr& transfer, Chunk chunk, int slot) {
  Transfer& t = *transfer;
  Op& op = NewOp(Op::kReading, transfer);
  op.slot = slot;
  op.file = t.plan_.items[chunk.parts.front().item].file;
  op.offset = chunk.offset;
  op.converts = chunk.converts;
  op.parts = std::move(chunk.parts);
  ++reading_;
  auto undo = [&](Status status) {
    --reading_;
    FreeOp(op);
    return status;
  };
  for (const ChunkPart& part : op.parts) {
    op.buffers.emplace_back();
    Status status = BufferOf(t, t.plan_.items[part.item].allocation, &op.buffers.back());
    if (!status.ok()) return undo(status);
  }

  // Empty tensors between this chunk and the next were passed by it: they are complete.
  for (size_t item = t.cursor_.item; item < chunk.next.item; ++item) {
    if (t.plan_.items[item].length > 0) continue;
    t.cursor_ = {item + 1, 0};
    t.CompleteItem(static_cast<uint32_t>(item));
  }
  t.cursor_ = chunk.next;

  ReadRequest request;
  Transfer::File& file = t.files_[op.file];
  request.file = file.file;
  request.offset = chunk.offset;
  request.length = chunk.length;
  request.required = chunk.required;
  request.last = t.cursor_.item > file.last_item;
  if (request.last) {
    file.file.reset();
    file.state = Transfer::File::kDone;
    ++t.files_started_;
  }
  if (slot >= 0) {
    request.pieces.push_back({slots_.Address(slot), chunk.length, slots_.Base(slot)});
  } else {
    op.target = TargetOf(t, t.plan_.items[op.parts.front().item].allocation, op.buffers.front());
    request.target = op.target;
    for (size_t i = 0; i < op.parts.size(); ++i) {
      const ChunkPart& part = op.parts[i];
      uint64_t address = op.buffers[i]->address() + part.destination;
      if (!request.pieces.empty() && request.pieces.back().address + request.pieces.back().length == address) {
        request.pieces.back().length += part.length;
      } else {
        request.pieces.push_back({address, part.length, op.buffers[i]->address()});
      }
    }
  }
  if (shared_->options.max_bytes_per_second > 0) {
    auto cost = std::chrono::nanoseconds(chunk.required * 1000000000 / shared_->options.max_bytes_per_second);
    throttled_until_ = std::max(throttled_until_, Clock::now()) + cost;
  }
  Status submitted = reader_.Submit(std::move(request), TagOf(op));
  if (!submitted.ok()) return undo(submitted);
  if (reading_ > t.max_in_flight_.load(std::memory_order_relaxed))
    t.max_in_flight_.store(reading_, std::memory_order_relaxed);
  return Status::Ok();
}

Status Loop::BufferOf(Transfer& t, uint32_t allocation, std::shared_ptr<DeviceBuffer>* out) {
  {
    std::lock_guard<std::mutex> lock(t.mutex_);
    *out = t.memory_[allocation].buffer;
  }
  if (*out != nullptr) return Status::Ok();
  FST_RETURN_IF_ERROR(device_.Allocate(t.plan_.allocations[allocation].size, out));
  std::lock_guard<std::mutex> lock(t.mutex_);
  t.memory_[allocation].buffer = *out;
  return Status::Ok();
}

std::shared_ptr<void> Loop::TargetOf(Transfer& t, uint32_t allocation, const std::shared_ptr<DeviceBuffer>& buffer) {
  std::shared_ptr<void>& target = t.memory_[allocation].target;
  if (target == nullptr) target = reader_.RegisterBuffer(buffer);
  return target;
}

void Loop::Fail(Transfer& t, Status status) {
  if (t.failed_) return;
  t.failed_ = true;
  t.news_ = true;
  for (Transfer::File& file : t.files_) file.file.reset();
  {
    std::lock_guard<std::mutex> lock(t.mutex_);
    t.status_ = std::move(status);
  }
  for (Transfer::Memory& memory : t.memory_) memory.target.reset();  // those under I/O live on in their ops
  t.DropMemory();
}

void Loop::RetireFinished() {
  for (size_t i = 0; i < transfers_.size();) {
    TransferPtr transfer = transfers_[i];
    bool complete = transfer->ready_count() == transfer->plan_.items.size();
    bool over = transfer->ops_ == 0 && (transfer->failed_ || complete);
    if (over) {
      transfers_.erase(transfers_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
    if (over) transfer->drained_.store(true, std::memory_order_release);
    if ((over || transfer->news_) && transfer->options_.notify) transfer->options_.notify();
    transfer->news_ = false;
  }
}

Loop::Op& Loop::NewOp(Op::Stage stage, const TransferPtr& transfer) {
  if (free_ops_.empty()) {
    free_ops_.push_back(static_cast<uint32_t>(ops_.size()));
    ops_.emplace_back();
    ops_.back().index = free_ops_.back();
  }
  Op& op = ops_[free_ops_.back()];
  free_ops_.pop_back();
  op.stage = stage;
  op.transfer = transfer;
  op.since = Clock::now();
  if (working_++ == 0) next_stall_check_ = op.since + shared_->options.stall_timeout;
  ++transfer->ops_;
  CountInFlight(+1);
  return op;
}

void Loop::FreeOp(Op& op) {
  if (op.slot >= 0) slots_.Give(op.slot);
  if (op.stage == Op::kConverting || op.stage == Op::kCopying) --copying_;
  --op.transfer->ops_;
  --working_;
  CountInFlight(-1);
  uint32_t index = op.index, generation = op.generation + 1;
  op = Op();
  op.index = index;
  op.generation = generation;  // a late completion finds nobody
  free_ops_.push_back(index);
}

}  // namespace fst
