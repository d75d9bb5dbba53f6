// From a slot to tensor memory: conversion (`dtype`) and the packing of runs on threads of their own, and the copy to
// the device.
#include <algorithm>
#include <cstring>
#include <thread>

#include "base/task_pool.h"
#include "convert/float_convert.h"
#include "transfer/loop.h"

namespace fst {
namespace {

// Shared by all engines of the process: conversion is limited by memory bandwidth, not by the number of loaders.
TaskPool& ConvertThreads() {
  static TaskPool* pool =
      new TaskPool("fst-convert", static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)));
  return *pool;
}

constexpr uint64_t kPackedRun = 16 << 10;  // bytes: longer runs take no longer to copy to the device than to move

struct ConvertPiece {
  uint64_t source, destination;
  uint64_t length;  // bytes of the source
  DType from, to;   // equal: copied as they are
};

void ConvertPieces(const std::vector<ConvertPiece>& pieces) {
  for (const ConvertPiece& piece : pieces) {
    const void* source = reinterpret_cast<const void*>(piece.source);  // NOLINT(performance-no-int-to-ptr)
    void* destination = reinterpret_cast<void*>(piece.destination);    // NOLINT(performance-no-int-to-ptr)
    if (piece.from == piece.to) {
      memcpy(destination, source, piece.length);
    } else {
      ConvertFloats(piece.from, piece.to, source, destination, piece.length / BytesOf(piece.from));
    }
  }
}

}  // namespace

// Where the host can write to tensor memory the conversion is the copy, and the read's other parts are copied with it.
// Elsewhere converted elements go behind the read in its slot, and CopyOut copies all parts.
void Loop::StartConversion(Op& op) {
  const uint64_t slot = SlotOf(op);
  const bool in_slot = shared_->rules.outputs_in_slot;
  std::vector<ConvertPiece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const PlanItem& item = op.transfer->plan.items[part.item];
    if (in_slot && !item.converts()) continue;
    pieces.push_back({slot + part.source, in_slot ? slot + part.output : op.buffers[i]->address() + part.destination,
                      part.length, item.from, item.to});
  }
  op.stage = Op::kConverting;
  ++copying_;
  op.since = RunningNow();
  // The op holds slot and tensor memory until the completion has been handled.
  Status posted = ConvertThreads().Post([pieces = std::move(pieces), queue = shared_->queue, tag = TagOf(op)] {
    ConvertPieces(pieces);
    queue->Put({Completion::Kind::kConvert, tag, Status::Ok()});
  });
  if (posted.ok()) return;
  op.transfer->Fail(AddPlace(op, posted));
  FreeOp(op);
}

// Whether a part of a tensor was read with its holes, into a slot that the host can write to: each of its runs would be
// a copy to the device.
bool Loop::IsScattered(const Op& op) const {
  if (devices_.front()->host_accessible() || slots_.on_device()) return false;
  for (size_t i = 1; i < op.parts.size(); ++i) {
    const ChunkPart &before = op.parts[i - 1], &part = op.parts[i];
    if (before.item == part.item && before.source + before.length != part.source &&
        op.transfer->plan.items[part.item].run <= kPackedRun)
      return true;
  }
  return false;
}

// Moves all parts together in their slot, in place: each lies at or behind where it goes.
void Loop::StartPacking(Op& op) {
  struct Move {
    uint64_t from, to, length;
  };
  const uint64_t slot = SlotOf(op);
  std::vector<Move> moves;
  uint64_t end = op.parts.front().source;
  for (ChunkPart& part : op.parts) {
    if (part.source != end) moves.push_back({slot + part.source, slot + end, part.length});
    part.source = end;
    end += part.length;
  }
  op.stage = Op::kConverting;
  ++copying_;
  op.since = RunningNow();
  // The op holds the slot until the completion has been handled.
  Status posted = ConvertThreads().Post([moves = std::move(moves), queue = shared_->queue, tag = TagOf(op)] {
    for (const Move& move : moves) {
      memmove(reinterpret_cast<void*>(move.to),          // NOLINT(performance-no-int-to-ptr)
              reinterpret_cast<const void*>(move.from),  // NOLINT(performance-no-int-to-ptr)
              move.length);
    }
    queue->Put({Completion::Kind::kConvert, tag, Status::Ok()});
  });
  if (posted.ok()) return;
  op.transfer->Fail(AddPlace(op, posted));
  FreeOp(op);
}

void Loop::CopyOut(Op& op) {
  // Parts that follow each other both in the slot and in one allocation go in one copy.
  std::vector<CopyPiece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const PlanItem& item = op.transfer->plan.items[part.item];
    uint64_t source =
        op.span != nullptr ? op.span->At(part.file_offset) : SlotOf(op) + (item.converts() ? part.output : part.source);
    uint64_t length = item.InMemory(part.length);
    uint64_t destination = op.buffers[i]->address() + part.destination;
    if (!pieces.empty()) {
      CopyPiece& before = pieces.back();
      if (op.buffers[i] == op.buffers[i - 1] && before.source + before.length == source &&
          before.destination + before.length == destination) {
        before.length += length;
        continue;
      }
    }
    pieces.push_back({source, destination, length});
  }
  if (op.stage != Op::kConverting) ++copying_;
  op.stage = Op::kCopying;
  op.since = RunningNow();
  CopyStream& stream = *streams_[op.transfer->device()];
  const bool from_device = op.span == nullptr && slots_.on_device();
  Status copying = stream.Submit(pieces.data(), pieces.size(), from_device, TagOf(op));
  if (copying.ok()) return;
  op.transfer->Fail(AddPlace(op, copying));
  FreeOp(op);
}

void Loop::HandleConverted(Op& op, const Status& status) {
  if (!status.ok()) op.transfer->Fail(AddPlace(op, status));
  if (op.transfer->failed) return FreeOp(op);
  if (shared_->rules.outputs_in_slot) return CopyOut(op);
  FinishParts(op);
  FreeOp(op);
}

}  // namespace fst
