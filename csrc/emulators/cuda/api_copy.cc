// The driver's functions that move bytes.
#include <cstring>

#include "emulators/cuda/emulator.h"

namespace fst::cuda {

using emu::Block;
using emu::Call;
using emu::Operation;

namespace {

// A side of a copy: checked, and reachable by the emulator.
struct Side {
  char* memory = nullptr;
  std::shared_ptr<Block> block;  // null: pageable memory of the caller
};

bool DeviceSide(Call& call, CUdeviceptr address, size_t bytes, bool written, Side* side) {
  side->block = call.FindDeviceMemory(address, bytes, written ? kMemAccessReadWrite : kMemAccessRead);
  if (side->block != nullptr) side->memory = side->block->At(address);
  return side->block != nullptr;
}

bool HostSide(Call& call, const void* address, size_t bytes, Side* side) {
  auto from = reinterpret_cast<uintptr_t>(address);
  side->memory = static_cast<char*>(const_cast<void*>(address));
  if (!call.emulator.Overlaps(from, bytes)) return true;
  std::shared_ptr<Block> block = call.emulator.Find(from);
  if (block == nullptr || bytes > block->base + block->bytes - from) {
    call.error =
        call.Refuse(kInvalidValue, "the host range of %zu bytes at %p is page-locked in part, or by two registrations",
                    bytes, address);
    return false;
  }
  if (block->kind == Block::kDevice) {
    call.error = call.Refuse(kInvalidValue, "the host address %p is device memory", address);
    return false;
  }
  // Memory that is page-locked for another context only is pageable here.
  if (block->context == call.context || block->portable) side->block = std::move(block);
  return true;
}

enum Direction { kToDevice, kToHost, kWithin };

// Checks both sides and issues the copy. Pageable memory is handled as the driver does it: read before the call
// returns, or written before it returns, in either case after all that is on the stream. What was read may still be on
// its way to the device then, whether the call is asynchronous or not.
CUresult Copy(Call& call, Direction direction, CUdeviceptr device, const void* host, CUdeviceptr from, size_t bytes,
              CUstream handle, bool async) {
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  if (bytes == 0) return kSuccess;
  Side on_device, other;
  if (!DeviceSide(call, device, bytes, direction != kToHost, &on_device)) return call.error;
  bool found =
      direction == kWithin ? DeviceSide(call, from, bytes, false, &other) : HostSide(call, host, bytes, &other);
  if (!found) return call.error;

  emu::Context* context = call.context;
  Operation copy;
  copy.kind = Operation::kCopy;
  copy.bytes = bytes;
  copy.to = direction == kToHost ? other.memory : on_device.memory;
  copy.from = direction == kToHost ? on_device.memory : other.memory;
  copy.holds[0] = on_device.block;
  copy.holds[1] = other.block;
  if (other.block != nullptr && other.block->read_only) {
    if (direction == kToHost)
      return call.Misuse(kInvalidValue, "to %p, which was registered as read-only memory", host);
    copy.from_read_only = true;
  }

  const bool pageable = other.block == nullptr, staged = pageable && direction == kToDevice;
  if (async && pageable) ++call.emulator.counters.unpinned_async_copies;
  if (staged) {
    ++on_device.block->pending;  // held while the lock is not
    call.emulator.changed.wait(call.lock, [&] { return stream->queue.empty(); });
    call.lock.unlock();
    copy.staged.assign(other.memory, other.memory + bytes);
    call.lock.lock();
    --on_device.block->pending;
  }
  auto mark = call.emulator.Issue(stream, std::move(copy));
  if (!staged && (!async || pageable)) {
    call.emulator.WaitFor(call.lock, mark);
    return context->sticky;
  }
  return kSuccess;
}

}  // namespace

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  Call call("cuMemcpyHtoD_v2", Call::kContext);
  return Copy(call, kToDevice, to, from, 0, bytes, nullptr, false);
}

CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  Call call("cuMemcpyDtoH_v2", Call::kContext);
  return Copy(call, kToHost, from, to, 0, bytes, nullptr, false);
}

// Does not make the host wait, though it has no stream (cuda.h, "API synchronization behavior": device to device).
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  Call call("cuMemcpyDtoD_v2", Call::kContext);
  return Copy(call, kWithin, to, nullptr, from, bytes, nullptr, true);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  Call call("cuMemcpyHtoDAsync_v2", Call::kContext);
  return Copy(call, kToDevice, to, from, 0, bytes, stream, true);
}

CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  Call call("cuMemcpyDtoHAsync_v2", Call::kContext);
  return Copy(call, kToHost, from, to, 0, bytes, stream, true);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  Call call("cuMemcpyDtoDAsync_v2", Call::kContext);
  return Copy(call, kWithin, to, nullptr, from, bytes, stream, true);
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream handle) {
  Call call("cuMemsetD8Async", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<emu::Stream> stream = call.FindStream(handle);
  if (stream == nullptr) return call.error;
  if (bytes == 0) return kSuccess;
  Side side;
  if (!DeviceSide(call, to, bytes, true, &side)) return call.error;
  Operation fill;
  fill.kind = Operation::kFill;
  fill.to = side.memory;
  fill.value = value;
  fill.bytes = bytes;
  fill.holds[0] = side.block;
  call.emulator.Issue(stream, std::move(fill));
  return kSuccess;
}

}  // namespace fst::cuda
