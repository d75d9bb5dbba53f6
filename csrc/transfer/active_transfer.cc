#include "transfer/active_transfer.h"

#include <algorithm>

namespace fst {

constexpr size_t kOpenAhead = 8;  // files: an open costs a round trip on a distributed file system

ActiveTransfer::ActiveTransfer(std::shared_ptr<Transfer> shared, std::vector<std::shared_ptr<MappedFile>> mapped_files,
                               std::shared_ptr<CompletionQueue> queue)
    : transfer(std::move(shared)),
      plan(transfer->plan()),
      files(plan.files.size()),
      mapped(std::move(mapped_files)),
      registrations(plan.allocations.size()),
      grants(plan.allocations.size()),
      budget_(transfer->options().budget),
      queue_(std::move(queue)) {
  mapped.resize(plan.files.size());
  for (const std::shared_ptr<MappedFile>& file : mapped)
    if (file != nullptr) views_.push_back(file);
  has_room_.resize(budget_ == nullptr ? 0 : plan.allocations.size());
  bytes_left_.reserve(plan.items.size());
  std::vector<bool> seen(plan.files.size());
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const PlanItem& item = plan.items[i];
    bytes_left_.push_back(item.length);
    bytes += item.length;
    if (item.length == 0) continue;
    files[item.file].last_item = i;
    if (seen[item.file]) continue;
    seen[item.file] = true;
    file_sequence_.push_back(item.file);
    file_first_.push_back(i);
  }
}

void ActiveTransfer::ApplyWindow() {
  const uint32_t window = transfer->window();
  no_room_for_ = 0;
  while (allowed < plan.items.size() && plan.BatchOf(allowed) < window && HasRoom(allowed)) ++allowed;
  PassEmptyItems();
}

// Room is taken in the order of the items, so that the one that is needed first has it first.
bool ActiveTransfer::HasRoom(size_t item) {
  const uint32_t allocation = plan.items[item].allocation;
  if (budget_ == nullptr || has_room_[allocation]) return true;
  const PlanAllocation& planned = plan.allocations[allocation];
  const bool needs_none = planned.size == 0 || planned.is_mapped() || transfer->IsAllocated(allocation);
  if (!needs_none) {
    grants[allocation] = budget_->TryTake(planned.size, queue_);
    if (grants[allocation] == nullptr) {
      no_room_for_ = planned.size;
      return false;
    }
  }
  has_room_[allocation] = true;
  return true;
}

bool ActiveTransfer::NextFileToOpen(uint32_t* file) {
  if (!put_off_.empty()) {
    *file = file_sequence_[put_off_.begin()->first];
    put_off_.erase(put_off_.begin());
    return true;
  }
  if (files_opened_ == file_sequence_.size()) return false;
  const size_t first = file_first_[files_opened_];
  if (first >= allowed) return false;
  // The file at the cursor is opened however many are open: a plan may interleave more files than are opened ahead.
  while (files_reached_ < files_opened_ && file_first_[files_reached_] <= cursor.item) ++files_reached_;
  if (files_opened_ - files_reached_ <= kOpenAhead / 2) opens_ahead_ = true;
  if (files_opened_ >= files_done_ + kOpenAhead) opens_ahead_ = false;
  if (!opens_ahead_ && first > cursor.item) return false;
  *file = file_sequence_[files_opened_++];
  return true;
}

void ActiveTransfer::PutOff(uint32_t file, const Status& why) {
  auto found = std::find(file_sequence_.begin(), file_sequence_.end(), file);
  put_off_.emplace(found - file_sequence_.begin(), why);
}

bool ActiveTransfer::PutOffOpenFiles() {
  const Status why = WhyPutOff();
  bool any = false;
  for (uint32_t file = 0; file < files.size(); ++file) {
    if (files[file].open == nullptr) continue;
    files[file].open.reset();
    PutOff(file, why);
    any = true;
  }
  return any;
}

void ActiveTransfer::AdvanceTo(Cursor next) {
  for (size_t item = cursor.item; item < next.item; ++item) {
    if (plan.items[item].length > 0) continue;
    cursor = {item + 1, 0};
    CompleteItem(static_cast<uint32_t>(item));
  }
  cursor = next;
}

void ActiveTransfer::PassEmptyItems() {
  Cursor next = cursor;
  while (next.item < allowed && plan.items[next.item].length == 0) next = {next.item + 1, 0};
  AdvanceTo(next);
}

bool ActiveTransfer::ReleaseIfDone(uint32_t file) {
  if (cursor.item <= files[file].last_item) return false;
  files[file].open.reset();
  mapped[file].reset();
  ++files_done_;
  return true;
}

void ActiveTransfer::CompleteBytes(uint32_t item, uint64_t bytes) {
  transfer->AddBytesLoaded(bytes);
  bytes_left_[item] -= bytes;
  if (bytes_left_[item] == 0) CompleteItem(item);
}

Status ActiveTransfer::CheckKept() const {
  for (const std::weak_ptr<MappedFile>& view : views_) {
    if (auto file = view.lock()) FST_RETURN_IF_ERROR(file->CheckKept());
  }
  return Status::Ok();
}

void ActiveTransfer::CompleteItem(uint32_t item) {
  const bool last = transfer->CompleteItem(item);
  // Empty items ahead of the cursor have no bytes left either, but are complete only when the cursor passes them.
  size_t prefix = transfer->ready_prefix();
  while (prefix < cursor.item && bytes_left_[prefix] == 0) ++prefix;
  transfer->PublishReadyPrefix(prefix);
  news |= !transfer->options().whole;
  if (last) registrations[plan.items[item].allocation].reset();
}

void ActiveTransfer::Fail(Status status) {
  if (failed) return;
  failed = news = true;
  transfer->PublishError(std::move(status));
  for (File& file : files) {
    if (file.open != nullptr) closing.push_back(std::move(file.open));
  }
  for (std::shared_ptr<MappedFile>& file : mapped) {
    if (file != nullptr) closing.push_back(std::move(file));
  }
  registrations.assign(registrations.size(), nullptr);
  grants.assign(grants.size(), nullptr);
  transfer->ReleaseAllocations();
}

}  // namespace fst
