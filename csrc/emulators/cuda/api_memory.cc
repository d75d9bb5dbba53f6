// The driver's functions for memory: allocation on the device and the host, page-locking, attributes of pointers.
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>

#include "emulators/cuda/emulator.h"

namespace fst::cuda {

using emu::Block;
using emu::Call;

namespace {

// "rw-p", as /proc/self/maps has it; empty where nothing is mapped.
std::string FlagsOf(uintptr_t address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uint64_t from, to;
    char flags[8];
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, flags) == 3 && from <= address && address < to)
      return flags;
  }
  return "";
}

bool IsShared(uintptr_t address) { return FlagsOf(address).find('s') != std::string::npos; }

// As the kernel answers a driver that asks for pages to write to (get_user_pages with FOLL_WRITE).
bool IsReadOnly(uintptr_t address) { return FlagsOf(address).rfind("r-", 0) == 0; }

// False when a page of the range is not mapped.
bool Mapped(const void* memory, size_t bytes) {
  uintptr_t first = reinterpret_cast<uintptr_t>(memory) / 4096 * 4096;
  uintptr_t end = reinterpret_cast<uintptr_t>(memory) + bytes;
  std::vector<unsigned char> resident((end - first + 4095) / 4096);
  if (mincore(reinterpret_cast<void*>(first), end - first, resident.data()) != 0 && errno == ENOMEM) return false;
  // A private mapping without any access stands for what was there before; of a shared one the emulated 3FS may
  // withhold a page.
  char byte;
  iovec local = {&byte, 1}, remote = {const_cast<void*>(memory), 1};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1 || errno != EFAULT ||
         IsShared(reinterpret_cast<uintptr_t>(memory));
}

// False when there is no page to lock for an address of the range: past the end of a file that is mapped.
bool HasPages(const void* memory, size_t bytes) {
  constexpr size_t kPage = 4096, kAtOnce = 512;
  auto* at = static_cast<char*>(const_cast<void*>(memory));
  for (char* const end = at + bytes; at < end;) {
    char read[kAtOnce];
    iovec local = {read, 0}, remote[kAtOnce];
    for (; local.iov_len < kAtOnce && at < end; at += kPage) remote[local.iov_len++] = {at, 1};
    const ssize_t got = process_vm_readv(getpid(), &local, 1, remote, local.iov_len, 0);
    if (got < 0 && errno != EFAULT) return true;  // where a container forbids it
    if (got != static_cast<ssize_t>(local.iov_len)) return false;
  }
  return true;
}

// The NUMA node that memory at `address` (null: what this thread faults) comes from by preference; -1: the nearest, as
// without a choice.
int PreferredNode(const void* address) {
  int mode = MPOL_DEFAULT;
  unsigned long nodes = 0;  // NOLINT(google-runtime-int): the system call's type
  const int flags = address != nullptr ? MPOL_F_ADDR : 0;
  if (syscall(SYS_get_mempolicy, &mode, &nodes, sizeof nodes * 8 + 1, address, flags) != 0) return -1;
  return mode == MPOL_PREFERRED && nodes != 0 ? __builtin_ctzl(nodes) : -1;
}

CUresult Allocate(Call& call, CUdeviceptr* pointer, size_t bytes, bool managed) {
  if (pointer == nullptr || bytes == 0) return call.Refuse(kInvalidValue, "of 0 bytes");
  uintptr_t base = 0;
  CUresult result = call.emulator.AddDeviceMemory(call.context, bytes, managed, &base);
  if (result != kSuccess) {
    const emu::Device& device = call.emulator.devices[call.context->device];
    return call.Refuse(result, "%zu bytes, %zu of %zu are free", bytes, device.limit - device.used, device.limit);
  }
  *pointer = base;
  return kSuccess;
}

// The block that begins at `pointer` and is of a kind that `accept` takes; else null.
template <class Accept>
std::shared_ptr<Block> FindBase(Call& call, uintptr_t pointer, Accept accept) {
  auto found = call.emulator.blocks.find(pointer);
  return found != call.emulator.blocks.end() && accept(*found->second) ? found->second : nullptr;
}

// Takes the block out of the books, or says that it is in use. A driver waits; a caller that frees memory under an
// operation has lost track, so strictness does not.
CUresult Release(Call& call, const std::shared_ptr<Block>& block) {
  if (block->pending > 0 && !call.lost()) {
    CUresult refused = call.Misuse(kSuccess, "of %#zx (%zu bytes) while %d operations on it are pending", block->base,
                                   block->bytes, block->pending);
    if (refused != kSuccess) return refused;
    call.emulator.changed.wait(call.lock, [&] { return block->pending == 0; });
  }
  // As the driver: device memory is free when all that runs on the device has ended.
  if (!block->host()) call.emulator.WaitIdle(call.lock, call.context);
  call.emulator.RemoveBlock(block);
  return call.late;
}

}  // namespace

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  Call call("cuMemGetInfo_v2", Call::kContext);
  if (call.error != kSuccess) return call.error;
  const emu::Device& device = call.emulator.devices[call.context->device];
  *total = device.limit;
  *free = device.limit - std::min(device.limit, device.used);
  return kSuccess;
}

CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
  Call call("cuMemAlloc_v2", Call::kContext);
  return call.error != kSuccess ? call.error : Allocate(call, pointer, bytes, false);
}

CUresult cuMemAllocManaged(CUdeviceptr* pointer, size_t bytes, unsigned flags) {
  Call call("cuMemAllocManaged", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (flags != 1 && flags != 2)
    return call.Refuse(kInvalidValue, "flags %#x, expected CU_MEM_ATTACH_GLOBAL or _HOST", flags);
  return Allocate(call, pointer, bytes, true);
}

CUresult cuMemFree_v2(CUdeviceptr pointer) {
  std::shared_ptr<Block> block;  // goes after the call has released the lock: unmapping takes its time
  Call call("cuMemFree_v2", Call::kContext, Call::kRelease);
  block = FindBase(call, pointer, [](const Block& b) { return !b.host() && b.physical == nullptr; });
  if (call.lost() && block != nullptr) call.emulator.RemoveBlock(block);
  if (call.error != kSuccess) return call.error;
  if (pointer == 0) return call.late;
  if (block == nullptr) {
    std::shared_ptr<Block> around = call.emulator.Find(pointer);
    const char* what =
        around == nullptr ? "which is not allocated (any more)" : "which is not the start of a device allocation";
    return call.Misuse(kInvalidValue, "of %#llx, %s", pointer, what);
  }
  if (block->context != call.context) {
    return call.Refuse(kInvalidContext, "%#llx is of device %d, but the current context is of device %d", pointer,
                       block->context->device, call.context->device);
  }
  CUresult result = Release(call, block);
  return call.context->sticky != kSuccess ? call.context->sticky : result;
}

CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  Call call("cuMemHostAlloc", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (pointer == nullptr || bytes == 0 || flags > 7)
    return call.Refuse(kInvalidValue, "%zu bytes, flags %#x", bytes, flags);
  uintptr_t base = 0;
  CUresult result =
      call.emulator.AddHostMemory(call.context, nullptr, bytes, (flags & kMemHostAllocPortable) != 0, &base);
  if (result != kSuccess) return call.Refuse(result, "%zu bytes", bytes);
  call.emulator.counters.pinned_node = PreferredNode(nullptr);
  *pointer = reinterpret_cast<void*>(base);
  return kSuccess;
}

CUresult cuMemFreeHost(void* pointer) {
  std::shared_ptr<Block> block;  // as in cuMemFree
  Call call("cuMemFreeHost", Call::kContext, Call::kRelease);
  block = FindBase(call, reinterpret_cast<uintptr_t>(pointer),
                   [](const Block& b) { return b.kind == Block::kHostAllocated; });
  if (call.lost() && block != nullptr) call.emulator.RemoveBlock(block);
  if (call.error != kSuccess) return call.error;
  if (block == nullptr)
    return call.Misuse(kInvalidValue, "of %p, which cuMemHostAlloc did not give (or was freed)", pointer);
  if (block->WrittenPastItsEnd()) {
    CUresult refused =
        call.Misuse(kSuccess, "of %p, past whose %zu bytes something was written", pointer, block->bytes);
    if (refused != kSuccess) return refused;
  }
  return Release(call, block);
}

CUresult cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  Call call("cuMemHostRegister_v2", Call::kContext);
  if (call.error != kSuccess) return call.error;
  if (pointer == nullptr || bytes == 0 || flags > 15)
    return call.Refuse(kInvalidValue, "%zu bytes, flags %#x", bytes, flags);
  if (call.emulator.Overlaps(reinterpret_cast<uintptr_t>(pointer), bytes)) {
    return call.Refuse(kHostMemoryAlreadyRegistered, "%zu bytes at %p overlap with memory that CUDA knows", bytes,
                       pointer);
  }
  const bool read_only = (flags & kMemHostRegisterReadOnly) != 0;
  const auto& attributes = call.emulator.devices[call.context->device].attributes;
  auto attribute = [&](int number) {
    auto found = attributes.find(number);
    return found != attributes.end() && found->second != 0;
  };
  if (read_only && !attribute(kAttributeReadOnlyHostRegisterSupported))
    return call.Refuse(kNotSupported, "the device does not support CU_MEMHOSTREGISTER_READ_ONLY");
  if (!Mapped(pointer, bytes)) return call.Refuse(kInvalidValue, "%zu bytes at %p are not all mapped", bytes, pointer);
  if (!read_only && !attribute(kAttributePageableMemoryAccessUsesHostPageTables) &&
      IsReadOnly(reinterpret_cast<uintptr_t>(pointer)))
    return call.Refuse(kInvalidValue, "%p is mapped read-only, which needs CU_MEMHOSTREGISTER_READ_ONLY", pointer);
  if (read_only && !HasPages(pointer, bytes))
    return call.Refuse(kInvalidValue, "%zu bytes at %p pass the end of a file", bytes, pointer);
  uintptr_t base = 0;
  CUresult result =
      call.emulator.AddHostMemory(call.context, pointer, bytes, (flags & kMemHostRegisterPortable) != 0, &base);
  if (result != kSuccess) return call.Refuse(result, "%zu bytes", bytes);
  call.emulator.blocks[base]->read_only = read_only;
  call.emulator.counters.pinned_node = PreferredNode(pointer);
  return kSuccess;
}

CUresult cuMemHostUnregister(void* pointer) {
  Call call("cuMemHostUnregister", Call::kContext);
  std::shared_ptr<Block> block = FindBase(call, reinterpret_cast<uintptr_t>(pointer),
                                          [](const Block& b) { return b.kind == Block::kHostRegistered; });
  if (call.lost() && block != nullptr) call.emulator.RemoveBlock(block);
  if (call.error != kSuccess) return call.error;
  if (block == nullptr) {
    std::shared_ptr<Block> around = call.emulator.Find(reinterpret_cast<uintptr_t>(pointer));
    bool inside = around != nullptr && around->kind == Block::kHostRegistered;
    return call.Misuse(inside ? kInvalidValue : kHostMemoryNotRegistered,
                       "of %p, which is not the start of a registered range", pointer);
  }
  if (!Mapped(pointer, block->bytes)) {
    CUresult refused =
        call.Misuse(kSuccess, "of %p (%zu bytes), which was unmapped while registered", pointer, block->bytes);
    if (refused != kSuccess) return refused;
  }
  return Release(call, block);
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned flags) {
  Call call("cuMemHostGetDevicePointer_v2", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<Block> block = call.emulator.Find(reinterpret_cast<uintptr_t>(host));
  if (flags != 0 || block == nullptr || !block->host())
    return call.Refuse(kInvalidValue, "%p is not page-locked", host);
  *device = reinterpret_cast<uintptr_t>(host);
  return kSuccess;
}

CUresult cuPointerGetAttribute(void* data, int attribute, CUdeviceptr pointer) {
  Call call("cuPointerGetAttribute", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<Block> block = call.emulator.Find(pointer);
  if (block == nullptr) return call.Refuse(kInvalidValue, "%#llx is no memory that CUDA knows", pointer);
  switch (attribute) {
    case kPointerContext:
      *static_cast<CUcontext*>(data) = reinterpret_cast<CUcontext>(block->context);
      return kSuccess;
    case kPointerMemoryType:
      *static_cast<unsigned*>(data) = block->host() ? kMemoryTypeHost : kMemoryTypeDevice;
      return kSuccess;
    case kPointerDevicePointer:
      *static_cast<CUdeviceptr*>(data) = pointer;
      return kSuccess;
    case kPointerHostPointer:
      if (block->kind == Block::kDevice) return call.Refuse(kInvalidValue, "device memory has no host pointer");
      *static_cast<void**>(data) = reinterpret_cast<void*>(pointer);
      return kSuccess;
    case kPointerIsManaged:
      *static_cast<unsigned*>(data) = block->kind == Block::kManaged;
      return kSuccess;
    case kPointerDeviceOrdinal:
      *static_cast<int*>(data) = block->context->device;
      return kSuccess;
    default:
      return call.Refuse(kInvalidValue, "attribute %d is not emulated", attribute);
  }
}

}  // namespace fst::cuda
