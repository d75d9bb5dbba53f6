// The driver's functions for memory that is made, mapped and handed to other processes in steps of their own.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "emulators/cuda/emulator.h"

namespace fst::cuda {

using emu::Block;
using emu::Call;
using emu::Physical;

namespace {

constexpr size_t kUnit = size_t{2} << 20;
// The name of a memfd tells whose memory it is.
constexpr char kMemfd[] = "emulated-gpu-";

bool Whole(size_t bytes) { return bytes > 0 && bytes % kUnit == 0; }

CUresult CheckProperties(Call& call, const CUmemAllocationProp* properties) {
  if (properties == nullptr || properties->type != kMemAllocationTypePinned)
    return call.Refuse(kInvalidValue, "only pinned memory is emulated");
  const CUmemLocation& where = properties->location;
  if (where.type != kMemLocationTypeDevice || where.id < 0 || where.id >= call.emulator.device_count)
    return call.Refuse(kInvalidValue, "location %d of type %d is no device", where.id, where.type);
  if (properties->requestedHandleTypes != 0 && properties->requestedHandleTypes != kMemHandleTypePosixFd)
    return call.Refuse(kNotSupported, "handles of type %d are not emulated", properties->requestedHandleTypes);
  if (properties->win32HandleMetaData != nullptr) return call.Refuse(kInvalidValue, "metadata for Windows");
  return kSuccess;
}

// The device of a memfd of ours, -1 for any other file. As with a GPU, what was opened anew in /proc is another file.
int DeviceOf(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_ACCMODE) != O_RDWR) return -1;
  char name[128] = "";
  const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), name, sizeof name - 1);
  int device = -1;
  return length > 0 && sscanf(name, "/memfd:emulated-gpu-%d", &device) == 1 ? device : -1;
}

CUmemGenericAllocationHandle Add(Call& call, std::shared_ptr<Physical> physical) {
  const CUmemGenericAllocationHandle handle = call.emulator.next_handle += 16;
  ++physical->users;
  call.emulator.handles[handle] = std::move(physical);
  call.emulator.ReportLeaksAtExit();
  return handle;
}

}  // namespace

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties, int option) {
  Call call("cuMemGetAllocationGranularity", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (bytes == nullptr || option < 0 || option > 1) return call.Refuse(kInvalidValue, "option %d", option);
  CUresult checked = CheckProperties(call, properties);
  if (checked == kSuccess) *bytes = kUnit;
  return checked;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long flags) {
  Call call("cuMemCreate", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (handle == nullptr || flags != 0 || !Whole(bytes))
    return call.Refuse(kInvalidValue, "%zu bytes, expected a multiple of %zu; flags %llu", bytes, kUnit, flags);
  CUresult checked = CheckProperties(call, properties);
  if (checked != kSuccess) return checked;
  const int ordinal = properties->location.id;
  emu::Device& device = call.emulator.devices[ordinal];
  if (bytes > device.limit || device.used > device.limit - bytes)
    return call.Refuse(kOutOfMemory, "%zu bytes, %zu of %zu are free", bytes, device.limit - device.used, device.limit);
  auto physical = std::make_shared<Physical>();
  physical->fd = memfd_create((kMemfd + std::to_string(ordinal)).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (physical->fd < 0 || ftruncate(physical->fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(physical->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return call.Refuse(kOutOfMemory, "a memfd of %zu bytes", bytes);
  physical->bytes = bytes;
  physical->device = ordinal;
  physical->exportable = properties->requestedHandleTypes == kMemHandleTypePosixFd;
  physical->counts = true;
  device.used += bytes;
  device.peak = std::max(device.peak, device.used);
  call.emulator.counters.peak_bytes = std::max(call.emulator.counters.peak_bytes, call.emulator.LiveBytes());
  *handle = Add(call, std::move(physical));
  return kSuccess;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  Call call("cuMemRelease", Call::kInitialised, Call::kRelease);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.handles.find(handle);
  if (found == call.emulator.handles.end())
    return call.Misuse(kInvalidValue, "of handle %#llx, which does not exist (any more)", handle);
  call.emulator.DropUser(*found->second);
  call.emulator.handles.erase(found);
  return call.late;
}

CUresult cuMemAddressReserve(CUdeviceptr* pointer, size_t bytes, size_t alignment, CUdeviceptr /*wish*/,
                             unsigned long long flags) {
  Call call("cuMemAddressReserve", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (pointer == nullptr || !Whole(bytes) || flags != 0 || (alignment & (alignment - 1)) != 0 || alignment > kUnit)
    return call.Refuse(kInvalidValue, "%zu bytes, alignment %zu, flags %llu", bytes, alignment, flags);
  const uintptr_t base = bytes > (size_t{1} << 46) ? 0 : emu::ReserveDeviceAddress(bytes);
  if (base == 0) return call.Refuse(kOutOfMemory, "no addresses for %zu bytes", bytes);
  call.emulator.ranges[base] = bytes;
  call.emulator.ReportLeaksAtExit();
  *pointer = base;
  return kSuccess;
}

CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes) {
  Call call("cuMemAddressFree", Call::kInitialised, Call::kRelease);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.ranges.find(pointer);
  if (found == call.emulator.ranges.end() || found->second != bytes)
    return call.Misuse(kInvalidValue, "of %zu bytes at %#llx, which are no reserved range", bytes, pointer);
  if (call.emulator.Overlaps(pointer, bytes))
    return call.Misuse(kInvalidValue, "of %#llx, in which memory is still mapped", pointer);
  call.emulator.ranges.erase(found);
  call.emulator.changed.notify_all();
  return call.late;
}

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
  Call call("cuMemMap", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.handles.find(handle);
  if (found == call.emulator.handles.end())
    return call.Misuse(kInvalidValue, "of handle %#llx, which does not exist (any more)", handle);
  auto after = call.emulator.ranges.upper_bound(pointer);
  const bool reserved = after != call.emulator.ranges.begin() &&
                        pointer - std::prev(after)->first <= std::prev(after)->second &&
                        bytes <= std::prev(after)->second - (pointer - std::prev(after)->first);
  if (!reserved) return call.Misuse(kInvalidValue, "of %zu bytes at %#llx, which are not reserved", bytes, pointer);
  if (offset != 0 || flags != 0) return call.Refuse(kInvalidValue, "offset %zu, flags %llu", offset, flags);
  if (bytes != found->second->bytes)
    return call.Refuse(kInvalidValue, "%zu bytes of memory of %zu", bytes, found->second->bytes);
  if (call.emulator.Overlaps(pointer, bytes)) return call.Refuse(kInvalidValue, "%#llx is mapped already", pointer);
  return call.emulator.AddMapping(pointer, found->second);
}

CUresult cuMemSetAccess(CUdeviceptr pointer, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  Call call("cuMemSetAccess", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.blocks.find(pointer);
  if (found == call.emulator.blocks.end() || found->second->physical == nullptr || found->second->bytes != bytes)
    return call.Misuse(kInvalidValue, "of %zu bytes at %#llx, which are no mapping", bytes, pointer);
  for (size_t i = 0; i < count; ++i) {
    const auto& [location, flags] = access[i];
    if (location.type != kMemLocationTypeDevice || location.id != found->second->physical->device)
      return call.Refuse(kNotSupported, "access of device %d to another's memory is not emulated", location.id);
    if (flags != 0 && flags != kMemAccessRead && flags != kMemAccessReadWrite)
      return call.Refuse(kInvalidValue, "access %d", flags);
    found->second->access = flags;
  }
  return kSuccess;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes) {
  std::shared_ptr<Block> block;  // goes after the call has released the lock
  Call call("cuMemUnmap", Call::kInitialised, Call::kRelease);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.blocks.find(pointer);
  if (found == call.emulator.blocks.end() || found->second->physical == nullptr || found->second->bytes != bytes)
    return call.Misuse(kInvalidValue, "of %zu bytes at %#llx, which are no mapping", bytes, pointer);
  block = found->second;
  if (block->pending > 0 && block->context->sticky == kSuccess) {
    CUresult refused = call.Misuse(kSuccess, "of %#llx (%zu bytes) while %d operations on it are pending", pointer,
                                   bytes, block->pending);
    if (refused != kSuccess) return refused;
    call.emulator.changed.wait(call.lock, [&] { return block->pending == 0; });
  }
  call.emulator.RemoveBlock(block);
  return call.late;
}

CUresult cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle, int type,
                                      unsigned long long flags) {
  Call call("cuMemExportToShareableHandle", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  auto found = call.emulator.handles.find(handle);
  if (found == call.emulator.handles.end())
    return call.Misuse(kInvalidValue, "of handle %#llx, which does not exist (any more)", handle);
  if (shareable == nullptr || flags != 0 || type != kMemHandleTypePosixFd || !found->second->exportable)
    return call.Refuse(kInvalidValue, "type %d, flags %llu, or memory that was made without", type, flags);
  const int fd = fcntl(found->second->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return call.Refuse(kUnknown, "no descriptor is free");
  *static_cast<int*>(shareable) = fd;
  return kSuccess;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* os_handle, int type) {
  Call call("cuMemImportFromShareableHandle", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  const int given = static_cast<int>(reinterpret_cast<intptr_t>(os_handle)), ordinal = DeviceOf(given);
  struct stat found;
  if (handle == nullptr || type != kMemHandleTypePosixFd || ordinal < 0 || ordinal >= call.emulator.device_count ||
      fstat(given, &found) != 0 || !Whole(static_cast<size_t>(found.st_size)))
    return call.Refuse(kInvalidValue, "descriptor %d is none of GPU memory", given);
  auto physical = std::make_shared<Physical>();
  physical->fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (physical->fd < 0) return call.Refuse(kUnknown, "no descriptor is free");
  physical->bytes = static_cast<size_t>(found.st_size);
  physical->device = ordinal;
  *handle = Add(call, std::move(physical));
  return kSuccess;
}

}  // namespace fst::cuda
