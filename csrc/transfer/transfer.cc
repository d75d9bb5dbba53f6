#include "transfer/transfer.h"

#include <utility>

namespace fst {

Transfer::Transfer(Plan plan, TransferOptions options)
    : plan_(std::move(plan)), options_(std::move(options)), window_(options_.window) {
  allocations_.resize(plan_.allocations.size());
  // Moved: a transfer that nobody has dropped yet must not keep memory that everybody else has released.
  auto preallocated = std::exchange(options_.preallocated, {});
  for (size_t i = 0; i < preallocated.size() && i < allocations_.size(); ++i) {
    allocations_[i].taken = preallocated[i] != nullptr;
    allocations_[i].buffer = std::move(preallocated[i]);
  }
  for (const PlanItem& item : plan_.items) ++allocations_[item.allocation].items_left;
}

Status Transfer::status() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

std::vector<uint32_t> Transfer::TakeReady() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::move(ready_);
}

std::shared_ptr<DeviceBuffer> Transfer::TakeAllocation(uint32_t index) {
  std::lock_guard<std::mutex> lock(mutex_);
  Allocation& allocation = allocations_[index];
  allocation.taken = true;
  if (allocation.items_left > 0) return allocation.buffer;
  return std::move(allocation.buffer);
}

uint64_t Transfer::BytesToAllocate() const {
  uint64_t bytes = 0;
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = 0; i < allocations_.size(); ++i) {
    const PlanAllocation& planned = plan_.allocations[i];
    if (allocations_[i].buffer == nullptr && planned.batch < options_.window && !planned.is_mapped())
      bytes += planned.size;
  }
  return bytes;
}

bool Transfer::IsAllocated(uint32_t allocation) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return allocations_[allocation].buffer != nullptr;
}

Status Transfer::BufferOf(uint32_t allocation, Device& device, MappedFile* mapped,
                          std::shared_ptr<MemoryBudget::Grant>* grant, std::shared_ptr<DeviceBuffer>* out) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    *out = allocations_[allocation].buffer;
  }
  if (*out != nullptr) return Status::Ok();
  const PlanAllocation& planned = plan_.allocations[allocation];
  if (mapped != nullptr && planned.is_mapped())
    *out = mapped->BufferOf(device.shared_from_this(), planned.mapped_offset, planned.size);
  if (*out == nullptr) {
    FST_RETURN_IF_ERROR(device.Allocate(planned.size, out));
    if (*grant != nullptr) *out = MemoryBudget::Hold(std::move(*out), std::move(*grant));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  allocations_[allocation].buffer = *out;
  return Status::Ok();
}

bool Transfer::CompleteItem(uint32_t item) {
  bool last = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Allocation& allocation = allocations_[plan_.items[item].allocation];
    last = --allocation.items_left == 0;
    if (last && allocation.taken) allocation.buffer.reset();
    if (options_.collect_ready) ready_.push_back(item);
  }
  ready_count_.fetch_add(1, std::memory_order_release);
  return last;
}

void Transfer::PublishInFlight(int reads) {
  if (reads > max_in_flight()) max_in_flight_.store(reads, std::memory_order_relaxed);
}

void Transfer::PublishError(Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  status_ = std::move(status);
}

void Transfer::ReleaseAllocations() {
  std::vector<std::shared_ptr<DeviceBuffer>> released;  // outlives the lock
  std::lock_guard<std::mutex> lock(mutex_);
  released.reserve(allocations_.size());
  for (Allocation& allocation : allocations_) released.push_back(std::move(allocation.buffer));
}

}  // namespace fst
