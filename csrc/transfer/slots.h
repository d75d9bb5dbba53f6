// The staging slots of one engine: made when first needed, reused, given back when the engine closes.
#pragma once
#include <memory>
#include <vector>

#include "reader/reader.h"

namespace fst {

class Slots {
 public:
  Slots(uint64_t slot_bytes, int count) : slot_bytes_(slot_bytes), count_(count) {}

  // I/O thread. OK: `*slot` is a free slot, or -1 when all are in use.
  Status Take(Reader& reader, Device& device, int* slot) {
    if (memory_ == nullptr) {
      FST_RETURN_IF_ERROR(reader.AllocateSlots(device, slot_bytes_ * static_cast<uint64_t>(count_), &memory_));
      for (int i = count_ - 1; i >= 0; --i) free_.push_back(i);
    }
    *slot = -1;
    if (free_.empty()) return Status::Ok();
    *slot = free_.back();
    free_.pop_back();
    return Status::Ok();
  }
  void Give(int slot) { free_.push_back(slot); }
  uint64_t Address(int slot) const { return memory_->address() + slot_bytes_ * static_cast<uint64_t>(slot); }
  uint64_t base() const { return memory_->address(); }
  bool on_device() const { return memory_->on_device(); }
  uint64_t bytes() const { return slot_bytes_ * static_cast<uint64_t>(count_); }

 private:
  const uint64_t slot_bytes_;
  const int count_;
  std::unique_ptr<StagingMemory> memory_;
  std::vector<int> free_;  // the slot used last is taken first: its pages are warm
};

}  // namespace fst
