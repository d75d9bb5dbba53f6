#include "transfer/transfer.h"

namespace fst {
namespace {

TransferOptions WithoutMemory(TransferOptions options) {
  options.memory.clear();
  return options;
}

}  // namespace

Transfer::Transfer(Plan plan, TransferOptions options)
    : plan_(std::move(plan)), options_(WithoutMemory(options)), window_(options_.window) {
  memory_.resize(plan_.allocations.size());
  // Moved: a handle that nobody has collected yet must not hold memory that everybody has let go of.
  for (size_t i = 0; i < options.memory.size() && i < memory_.size(); ++i) {
    memory_[i].taken = options.memory[i] != nullptr;
    memory_[i].buffer = std::move(options.memory[i]);
  }
  files_.resize(plan_.files.size());
  bytes_left_.reserve(plan_.items.size());
  std::vector<bool> seen(plan_.files.size());
  for (size_t i = 0; i < plan_.items.size(); ++i) {
    const PlanItem& item = plan_.items[i];
    bytes_left_.push_back(item.length);
    ++memory_[item.allocation].items_left;
    if (item.length > 0) files_[item.file].last_item = i;
    if (item.length > 0 && !seen[item.file]) {
      seen[item.file] = true;
      file_sequence_.push_back(item.file);
      file_first_.push_back(i);
    }
  }
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
  Memory& memory = memory_[index];
  memory.taken = true;
  if (memory.items_left > 0) return memory.buffer;
  return std::move(memory.buffer);
}

void Transfer::DropMemory() {
  std::vector<std::shared_ptr<DeviceBuffer>> dropped;
  std::lock_guard<std::mutex> lock(mutex_);
  for (Memory& memory : memory_) dropped.push_back(std::move(memory.buffer));
}

void Transfer::CompleteBytes(uint32_t item, uint64_t bytes) {
  bytes_loaded_.fetch_add(bytes, std::memory_order_relaxed);
  bytes_left_[item] -= bytes;
  if (bytes_left_[item] == 0) CompleteItem(item);
}

void Transfer::CompleteItem(uint32_t item) {
  std::shared_ptr<void> done_with;  // goes outside the lock
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Memory& memory = memory_[plan_.items[item].allocation];
    if (--memory.items_left == 0) {
      done_with = std::move(memory.target);
      if (memory.taken) memory.buffer.reset();
    }
    if (options_.collect_ready) ready_.push_back(item);
  }
  ready_count_.fetch_add(1, std::memory_order_release);
  // Empty items ahead of the cursor have no bytes left either, but are complete only when the cursor passes them.
  size_t prefix = ready_prefix_.load(std::memory_order_relaxed);
  while (prefix < cursor_.item && bytes_left_[prefix] == 0) ++prefix;
  ready_prefix_.store(prefix, std::memory_order_release);
  news_ = true;
}

}  // namespace fst
