// The staging slots of one engine. Allocated on first use, reused, freed when the engine closes. Where the device says
// so only a few are allocated at first: to clear and page-lock all of them takes longer than a small load.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "reader/reader.h"

namespace fst {

// Used by the I/O thread only.
class SlotPool {
 public:
  // `at_first`: how many slots to allocate at first; 0: all.
  SlotPool(uint64_t slot_bytes, int count, int at_first)
      : slot_bytes_(slot_bytes), count_(count), at_first_(at_first > 0 ? std::min(at_first, count) : count) {}

  // OK: `*slot` is a free slot, or -1 when all are in use. The codes of Reader::AllocateSlots.
  Status Take(Reader& reader, Device& device, int* slot) {
    if (free_.empty() && allocated_ < count_) FST_RETURN_IF_ERROR(Allocate(reader, device));
    *slot = -1;
    if (free_.empty()) return Status::Ok();
    *slot = free_.back();
    free_.pop_back();
    return Status::Ok();
  }
  // Allocates the slots that the first Take would.
  Status AllocateFirst(Reader& reader, Device& device) {
    return allocated_ == 0 ? Allocate(reader, device) : Status::Ok();
  }
  int count() const { return count_; }
  // No slot is left that a later Take would allocate.
  bool has_all() const { return allocated_ == count_ || at_first_ == count_; }
  uint64_t first_bytes() const { return slot_bytes_ * static_cast<uint64_t>(at_first_); }
  void Give(int slot) { free_.push_back(slot); }
  uint64_t Address(int slot) const {
    return Base(slot) + slot_bytes_ * static_cast<uint64_t>(slot < at_first_ ? slot : slot - at_first_);
  }
  // The start of the StagingMemory that holds the slot.
  uint64_t Base(int slot) const { return (slot < at_first_ ? first_ : others_)->address(); }
  bool on_device() const { return first_->on_device(); }

 private:
  Status Allocate(Reader& reader, Device& device) {
    const int next = allocated_ == 0 ? at_first_ : count_;
    std::unique_ptr<StagingMemory>& memory = allocated_ == 0 ? first_ : others_;
    FST_RETURN_IF_ERROR(reader.AllocateSlots(device, slot_bytes_ * static_cast<uint64_t>(next - allocated_), &memory));
    for (int i = next - 1; i >= allocated_; --i) free_.push_back(i);
    allocated_ = next;
    return Status::Ok();
  }

  const uint64_t slot_bytes_;
  const int count_, at_first_;
  int allocated_ = 0;
  std::unique_ptr<StagingMemory> first_, others_;
  std::vector<int> free_;  // a stack: the slot used last still has warm pages
};

}  // namespace fst
