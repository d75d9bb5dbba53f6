// Memory of the emulated devices. Device addresses are reserved without any access right, so that a host access to them
// crashes as it does on a machine with a GPU; the bytes are in another mapping that only the emulator knows. No device
// address is given out twice: a stale one is never valid again.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "emulators/cuda/emulator.h"

namespace fst::emu {

namespace {

constexpr char kPastTheEnd = '\xA5';
constexpr size_t kPage = 4096, kHuge = size_t{2} << 20, kArena = size_t{64} << 30;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

char* Map(size_t bytes, int protection, int flags) {
  void* memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

}  // namespace

// The next unused device address. As the driver does it, large blocks begin at 2 MiB and small ones only at 512 bytes
// (256 are promised); a page lies between two blocks.
uintptr_t ReserveDeviceAddress(size_t bytes) {
  static uintptr_t next = 0, end = 0;
  auto place = [&] { return bytes >= kHuge / 2 ? RoundUp(next, kHuge) : RoundUp(next, kPage) + 512; };
  if (next == 0 || bytes >= kArena || place() + bytes + kPage > end) {
    size_t size = std::max(kArena, RoundUp(bytes, kHuge) + 2 * kHuge);
    char* arena = Map(size, PROT_NONE, MAP_NORESERVE);
    if (arena == nullptr) return 0;
    next = reinterpret_cast<uintptr_t>(arena);
    end = next + size;
  }
  uintptr_t base = place();
  next = base + bytes + kPage;
  return base;
}

Physical::~Physical() {
  if (fd >= 0) close(fd);
}

Block::~Block() {
  if (mapped != 0) munmap(memory, mapped);
}

CUresult Emulator::AddDeviceMemory(Context* context, size_t bytes, bool managed, uintptr_t* base) {
  Device& device = devices[context->device];
  if (bytes > device.limit || device.used > device.limit - bytes) return cuda::kOutOfMemory;
  size_t mapped = RoundUp(bytes, kPage);
  char* memory = Map(mapped, PROT_READ | PROT_WRITE, MAP_NORESERVE);
  if (memory == nullptr) return cuda::kOutOfMemory;
  // A GPU's memory has no faults, and nobody waits while it is given back: few large pages stand for that.
  if (mapped >= kHuge) madvise(memory, mapped, MADV_HUGEPAGE);
  *base = managed ? reinterpret_cast<uintptr_t>(memory) : ReserveDeviceAddress(bytes);
  if (*base == 0) {
    munmap(memory, mapped);
    return cuda::kOutOfMemory;
  }
  blocks[*base] = std::make_shared<Block>(managed ? Block::kManaged : Block::kDevice, *base, bytes, memory, mapped,
                                          context, managed);
  ReportLeaksAtExit();
  device.used += bytes;
  device.peak = std::max(device.peak, device.used);
  counters.peak_bytes = std::max(counters.peak_bytes, LiveBytes());
  return kSuccess;
}

CUresult Emulator::AddMapping(uintptr_t base, const std::shared_ptr<Physical>& physical) {
  void* memory = mmap(nullptr, physical->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, physical->fd, 0);
  if (memory == MAP_FAILED) return cuda::kOutOfMemory;
  auto block = std::make_shared<Block>(Block::kDevice, base, physical->bytes, static_cast<char*>(memory),
                                       physical->bytes, &devices[physical->device].context, false);
  block->physical = physical;
  block->access = 0;
  blocks[base] = std::move(block);
  ++physical->users;
  ReportLeaksAtExit();
  return kSuccess;
}

void Emulator::DropUser(Physical& physical) {
  if (--physical.users == 0 && physical.counts) devices[physical.device].used -= physical.bytes;
  changed.notify_all();
}

CUresult Emulator::AddHostMemory(Context* context, void* registered, size_t bytes, bool portable, uintptr_t* base) {
  if (bytes > pinned_limit || pinned_bytes > pinned_limit - bytes) return cuda::kOutOfMemory;
  char* memory = static_cast<char*>(registered);
  size_t mapped = 0;
  if (memory == nullptr) {
    mapped = RoundUp(bytes, kPage) + kPage;
    memory = Map(mapped, PROT_READ | PROT_WRITE, 0);
    if (memory == nullptr) return cuda::kOutOfMemory;
    memset(memory + bytes, kPastTheEnd, mapped - bytes);
  }
  *base = reinterpret_cast<uintptr_t>(memory);
  Block::Kind kind = registered ? Block::kHostRegistered : Block::kHostAllocated;
  blocks[*base] = std::make_shared<Block>(kind, *base, bytes, memory, mapped, context, portable);
  ReportLeaksAtExit();
  pinned_bytes += bytes;
  counters.peak_pinned_bytes = std::max(counters.peak_pinned_bytes, pinned_bytes);
  return kSuccess;
}

void Emulator::RemoveBlock(const std::shared_ptr<Block>& block) {
  if (blocks.erase(block->base) == 0) return;
  if (block->physical != nullptr) return DropUser(*block->physical);
  (block->host() ? pinned_bytes : devices[block->context->device].used) -= block->bytes;
  changed.notify_all();
}

bool Block::WrittenPastItsEnd() const {
  return kind == kHostAllocated &&
         std::any_of(memory + bytes, memory + mapped, [](char c) { return c != kPastTheEnd; });
}

std::shared_ptr<Block> Emulator::Find(uintptr_t address) const {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return nullptr;
  const std::shared_ptr<Block>& block = std::prev(after)->second;
  return address - block->base < block->bytes ? block : nullptr;
}

bool Emulator::Overlaps(uintptr_t address, size_t bytes) const {
  if (Find(address) != nullptr) return true;
  auto next = blocks.lower_bound(address);
  return next != blocks.end() && next->first - address < bytes;
}

}  // namespace fst::emu
