#include "transfer/engine.h"

#include <algorithm>
#include <utility>

#include "base/mapped_pages.h"
#include "base/page.h"
#include "base/thread.h"
#include "reader/pinned_span.h"
#include "transfer/loop.h"

namespace fst {

constexpr uint64_t kLargestChunk = uint64_t{1} << 30;
constexpr int kSpansPerRead = 2;  // one is made while another is copied from or given back

Status Engine::Create(std::vector<std::shared_ptr<Device>> devices, std::unique_ptr<Reader> reader,
                      const EngineOptions& options, std::shared_ptr<Engine>* out) {
  auto shared = std::make_shared<EngineShared>();
  shared->devices = std::move(devices);
  const Device& device = *shared->devices.front();
  shared->reader = std::move(reader);
  shared->options = options;
  const ReaderNeeds& needs = shared->reader->needs();
  uint64_t chunk = std::min<uint64_t>(options.chunk_bytes > 0 ? options.chunk_bytes : needs.chunk, kLargestChunk);
  if (options.pace != nullptr) chunk = std::min(chunk, options.pace->LongestRead());
  uint64_t alignment = std::max({needs.offset_alignment, needs.length_alignment, needs.memory_alignment, size_t{1}});
  // Spans lock whole pages, and are no larger than slots where reads end at such.
  const bool pins = options.pins_files && needs.maps && !device.host_accessible();
  const uint64_t unit = pins ? std::max(alignment, PageSize()) : alignment;
  chunk = std::max(chunk / unit * unit, unit);
  for (const auto& other : shared->devices) {
    if (shared->devices.size() == 1 || (!other->host_accessible() && !needs.device_slots && !needs.fills_device))
      continue;
    return Status(Code::INVALID_ARGUMENT,
                  "an engine for several devices copies to each from slots in host memory, and " + other->name() +
                      " is filled in another way");
  }
  bool fills = device.host_accessible() ? needs.fills_host : needs.fills_device;
  // A read that begins and ends inside aligned blocks carries up to one more block at either end.
  uint64_t slot_bytes =
      std::max<uint64_t>(alignment > 1 ? chunk + 2 * alignment : (chunk + kPage - 1) / kPage * kPage, kPage);
  const bool outputs_in_slot = !device.host_accessible();
  if (options.converts && outputs_in_slot) slot_bytes *= 2;
  shared->rules = {needs, fills && !options.always_stage, chunk, needs.largest_gap, slot_bytes, outputs_in_slot};
  shared->slot_count = static_cast<int>(
      std::clamp<uint64_t>(options.staging_limit / slot_bytes, 1, static_cast<uint64_t>(std::max(needs.slots, 1))));
  if (pins) {
    // Half of what there is room for, where that is not enough for both.
    const uint64_t fits = std::max<uint64_t>(options.staging_limit / slot_bytes, 1);
    shared->slot_count =
        static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(shared->slot_count), (fits + 1) / 2));
    shared->span_count = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(kSpansPerRead * needs.in_flight),
                                                             fits - static_cast<uint64_t>(shared->slot_count)));
  }
  FST_RETURN_IF_ERROR(StartThread("fst-io", [shared] {
    {
      Loop loop(shared);
      loop.Run();
    }  // frees the stream, then the slots
    shared->reader.reset();
    std::vector<std::function<void()>> closed;
    std::vector<std::pair<std::shared_ptr<Transfer>, Status>> cancelled;  // since the loop's last TakeRequests
    {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->ended = true;
      closed.swap(shared->closed);
      cancelled.swap(shared->cancelled);
    }
    for (auto& entry : cancelled) entry.first->ReleaseAllocations();
    cancelled.clear();
    for (auto& callback : closed) callback();
  }));
  out->reset(new Engine(std::move(shared)));
  return Status::Ok();
}

Engine::~Engine() { Close(nullptr); }

Status Engine::Start(Plan plan, TransferOptions options, std::shared_ptr<Transfer>* out) {
  if (shared_->rules.needs.device_slots && plan.Converts()) {
    return Status(Code::UNSUPPORTED_DTYPE,
                  "this reader's slots are device memory, where elements cannot be converted: load without dtype, or "
                  "with copier: 'nogds'");
  }
  if (options.device >= shared_->devices.size()) return Status(Code::INVALID_ARGUMENT, "the engine has no such device");
  for (const PlanAllocation& allocation : plan.allocations) {
    if (!allocation.is_mapped()) continue;
    const uint32_t file = allocation.mapped;
    if (!maps_files() || file >= options.mapped.size() || options.mapped[file] == nullptr ||
        options.mapped[file]->identity() != plan.files[file].expected ||
        !options.mapped[file]->Covers(allocation.mapped_offset, allocation.size))
      return Status(Code::INVALID_ARGUMENT, "a file of the plan is not mapped, or this engine maps none");
  }
  auto mapped = std::exchange(options.mapped, {});
  auto transfer = std::make_shared<Transfer>(std::move(plan), std::move(options));
  auto active = std::make_unique<ActiveTransfer>(transfer, std::move(mapped), shared_->queue);
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    if (shared_->closing) return Status(Code::CLOSED, "the loader is closed");
    shared_->started.push_back(std::move(active));
  }
  shared_->queue->Wake();
  *out = std::move(transfer);
  return Status::Ok();
}

void Engine::SetWindow(const std::shared_ptr<Transfer>& transfer, uint32_t window) {
  transfer->set_window(window);
  shared_->queue->Wake();
}

void Engine::Cancel(const std::shared_ptr<Transfer>& transfer, Status status) {
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    if (shared_->ended || transfer->drained()) return transfer->ReleaseAllocations();
    shared_->cancelled.emplace_back(transfer, std::move(status));
  }
  shared_->queue->Wake();
}

void Engine::Close(std::function<void()> closed) {
  {
    std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->closing = true;
    if (closed && !shared_->ended) {
      shared_->closed.push_back(std::move(closed));
      closed = nullptr;
    }
  }
  shared_->queue->Wake();
  if (closed) closed();
}

bool Engine::maps_files() const {
  return shared_->rules.direct && shared_->rules.needs.maps && shared_->devices.front()->maps_files();
}

uint64_t Engine::turn() const { return shared_->turn.load(); }

std::vector<Reader::Fallback> Engine::TakeFallbacks() {
  std::lock_guard<std::mutex> lock(shared_->mutex);
  return std::move(shared_->fallbacks);
}

uint64_t Engine::StagingBytes(bool converts) const {
  const ChunkRules& rules = shared_->rules;
  if (!converts && rules.direct && rules.needs.offset_alignment == 1) return 0;
  return rules.slot_bytes * static_cast<uint64_t>(shared_->slot_count + shared_->span_count);
}

}  // namespace fst
