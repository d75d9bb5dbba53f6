// Which transfer's turn it is, and its next read: by the reader, of a mapping's pages, or of a pinned span.
#include <algorithm>

#include "transfer/loop.h"

namespace fst {
namespace {

constexpr int kKeptSlots = 2;  // for each device: one is read into while the other is copied from

// A device copies nothing before its first read is there, nor before those of loads to other devices that began
// earlier: short ones come soon. `reads`: that the load has begun, through slots. They end where longer ones would,
// too.
ChunkRules RulesOfRead(const ChunkRules& rules, unsigned reads) {
  ChunkRules result = rules;
  const uint64_t length = reads < 16 ? uint64_t{rules.needs.first_chunk} << reads : 0;
  if (rules.outputs_in_slot && length > 0 && rules.chunk_bytes % length == 0) result.chunk_bytes = length;
  return result;
}

// Adds a piece, or lengthens the last one where it goes on in file and memory.
void Append(std::vector<ReadPiece>& pieces, const ReadPiece& piece) {
  const bool follows = !pieces.empty() && pieces.back().address + pieces.back().length == piece.address;
  if (follows && piece.skip == 0 && piece.runs == 1 && pieces.back().runs == 1) {
    pieces.back().length += piece.length;
  } else {
    pieces.push_back(piece);
  }
}

// Adds a part's bytes, which come to `address`, and behind `skip` unwanted ones of the file.
void AppendPart(std::vector<ReadPiece>& pieces, const ChunkPart& part, uint64_t address, uint64_t base, uint64_t skip) {
  if (part.picked) return Append(pieces, {address, part.length, base, skip, part.runs, part.stride});
  for (uint64_t i = 0; i < part.runs; ++i)
    Append(pieces, {address + i * part.run(), part.run(), base, i == 0 ? skip : part.stride - part.run()});
}

// Of a read from `offset` on. Holes that are read lie in the slot as in the file, those that are skipped do not.
std::vector<ReadPiece> PiecesInSlot(const std::vector<ChunkPart>& parts, uint64_t offset, uint64_t slot,
                                    uint64_t base) {
  std::vector<ReadPiece> pieces;
  uint64_t slot_end = 0, file_end = offset;
  for (const ChunkPart& part : parts) {
    const uint64_t hole = part.file_offset - file_end, read = part.source - slot_end;  // all of the hole, or nothing
    if (read > 0) Append(pieces, {slot + slot_end, read, base});
    AppendPart(pieces, part, slot + part.source, base, hole - read);
    slot_end = part.source + part.length;
    file_end = part.file_end();
  }
  return pieces;
}

// The same, straight into tensor memory; `buffers`: by part.
std::vector<ReadPiece> PiecesInPlace(const std::vector<ChunkPart>& parts, uint64_t offset,
                                     const std::vector<std::shared_ptr<DeviceBuffer>>& buffers) {
  std::vector<ReadPiece> pieces;
  uint64_t file_end = offset;
  for (size_t i = 0; i < parts.size(); ++i) {
    const ChunkPart& part = parts[i];
    const uint64_t base = buffers[i]->address();
    AppendPart(pieces, part, base + part.destination, base, part.file_offset - file_end);
    file_end = part.file_end();
  }
  return pieces;
}

}  // namespace

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

bool Loop::IssueRead(ActiveTransfer& t) {
  if (t.failed) return false;
  t.PassEmptyItems();
  if (!t.HasWork() || reading_ >= reader_.needs().in_flight) return false;
  if (shared_->options.pace != nullptr && Clock::now() < shared_->options.pace->free_at()) {
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
      if (!MayTakeSlot(t.device())) return false;
      // A small load allocates no more slots for that than it needs.
      const bool brief = slots_.has_all() || t.bytes > slots_.first_bytes();
      const ChunkRules own = brief ? RulesOfRead(shared_->rules, t.slot_reads) : shared_->rules;
      if (pins_ || own.chunk_bytes < rules.chunk_bytes)
        chunk = NextChunk(t.plan, own, t.cursor, t.allowed, buffer->address());
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
  if (slot >= 0) {
    ++slots_of_[t.device()];
    ++t.slot_reads;
  }
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
  const uint64_t unread = chunk.skipped - chunk.picked;
  t.transfer->AddBytesRead(populates ? 0 : chunk.length - unread);
  request.last = t.ReleaseIfDone(op.file);
  if (populates || pins) {
    // Its bytes are in place, or can be copied, as soon as its pages are.
  } else if (slot >= 0 && chunk.skipped == 0) {
    request.pieces.push_back({slots_.Address(slot), chunk.length, slots_.Base(slot)});
  } else if (slot >= 0) {
    request.pieces = PiecesInSlot(op.parts, chunk.offset, slots_.Address(slot), slots_.Base(slot));
  } else {
    std::shared_ptr<void>& registration = t.registrations[t.plan.items[op.parts.front().item].allocation];
    if (registration == nullptr) registration = reader_.RegisterBuffer(op.buffers.front());
    op.registration = request.target = registration;
    request.pieces = PiecesInPlace(op.parts, chunk.offset, op.buffers);
  }
  if (!populates && !pins) DigestOnArrival(op, chunk, &request);
  if (shared_->options.pace != nullptr) shared_->options.pace->Spend(chunk.required - unread);
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

}  // namespace fst
