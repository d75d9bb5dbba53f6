// The way out of a slot: conversion where it is asked for (`dtype`), off the I/O thread, and the copy to the device.
#include <algorithm>
#include <cstring>
#include <thread>

#include "base/task_pool.h"
#include "convert/float_convert.h"
#include "transfer/loop.h"

namespace fst {
namespace {

// Of the whole process, as the threads that copy: both are limited by memory, not by the number of loaders.
TaskPool& ConvertThreads() {
  static TaskPool* pool =
      new TaskPool("fst-convert", static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2U, 8U)));
  return *pool;
}

struct Piece {
  uint64_t source, destination;
  uint64_t length;  // bytes of the source
  DType from, to;   // equal: as they are
};

void Convert(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) {
    const void* source = reinterpret_cast<const void*>(piece.source);  // NOLINT(performance-no-int-to-ptr)
    void* destination = reinterpret_cast<void*>(piece.destination);    // NOLINT(performance-no-int-to-ptr)
    if (piece.from == piece.to) {
      memcpy(destination, source, piece.length);
    } else {
      ConvertElements(piece.from, piece.to, source, destination, piece.length / BytesOf(piece.from));
    }
  }
}

}  // namespace

// Where the host writes to tensor memory the conversion is the copy, for the parts beside it too. Elsewhere converted
// elements go behind the read in its slot, and CopyOut takes all parts on.
void Loop::StartConversion(Op& op) {
  const uint64_t slot = slots_.Address(op.slot);
  const bool in_slot = shared_->rules.outputs_in_slot;
  std::vector<Piece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const PlanItem& item = op.transfer->plan_.items[part.item];
    if (in_slot && !item.converts()) continue;
    pieces.push_back({slot + (part.file_offset - op.offset),
                      in_slot ? slot + part.output : op.buffers[i]->address() + part.destination, part.length,
                      item.from, item.to});
  }
  op.stage = Op::kConverting;
  ++copying_;
  op.since = Clock::now();
  // Slot and tensor memory stay until the completion has been handled: the op holds them.
  Status posted = ConvertThreads().Post([pieces = std::move(pieces), queue = shared_->queue, tag = TagOf(op)] {
    Convert(pieces);
    queue->Put({Completion::Kind::kConvert, tag, Status::Ok()});
  });
  if (posted.ok()) return;
  Fail(*op.transfer, PlaceOf(op, posted));
  FreeOp(op);
}

void Loop::CopyOut(Op& op) {
  // Each part to its own address; neighbours that follow each other in the file and in memory go in one copy.
  std::vector<CopyPiece> pieces;
  pieces.reserve(op.parts.size());
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const ChunkPart& part = op.parts[i];
    const PlanItem& item = op.transfer->plan_.items[part.item];
    uint64_t source = slots_.Address(op.slot) + (item.converts() ? part.output : part.file_offset - op.offset);
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
  op.since = Clock::now();
  Status copying = stream_->Submit(pieces.data(), pieces.size(), slots_.on_device(), TagOf(op));
  if (copying.ok()) return;
  Fail(*op.transfer, PlaceOf(op, copying));
  FreeOp(op);
}

void Loop::HandleConverted(Op& op, const Status& status) {
  if (!status.ok()) Fail(*op.transfer, PlaceOf(op, status));
  if (op.transfer->failed_) return FreeOp(op);
  if (shared_->rules.outputs_in_slot) return CopyOut(op);
  FinishParts(op);
  FreeOp(op);
}

}  // namespace fst
