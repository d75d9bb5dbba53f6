#include "emulators/cuda/control.h"

#include <cstring>

#include "emulators/cuda/emulator.h"

namespace fst::emu {
namespace {

// The state, with the lock held until the end of the full expression or the scope.
struct Locked {
  Emulator& emulator = Emulator::Get();
  Lock lock{emulator.mutex};
  Emulator* operator->() { return &emulator; }
};

size_t Count(Emulator& emulator, bool host) {
  size_t count = 0;
  for (const auto& [base, block] : emulator.blocks) count += block->host() == host;
  return count;
}

}  // namespace
}  // namespace fst::emu

using namespace fst::emu;

void fst_emu_cuda_reset(void) {
  Locked state;
  state->failures.Forget();
  state->held = false;
  for (Device& device : state->devices) device.context.sticky = kSuccess;
  state->ReadSettings();
  state->counters = {};
  state->counters.peak_bytes = state->LiveBytes();
  for (Device& device : state->devices) device.peak = device.used;
  state->counters.peak_pinned_bytes = state->pinned_bytes;
  state->changed.notify_all();
}

int fst_emu_cuda_set_fail(const char* function, unsigned long long nth, int code) {
  return Locked()->failures.Add(function, nth, code) ? 0 : -1;
}

unsigned long long fst_emu_cuda_call_count(const char* function) { return Locked()->failures.calls(function); }

const char* fst_emu_cuda_function_name(int index) {
  static const char* const kNames[] = {
#define X(member, symbol, parameters) #symbol,
      FST_CUDA_API(X) FST_CUDA_SHARING_API(X) FST_CUDA_EXTRA_API(X)
#undef X
  };
  return index >= 0 && index < static_cast<int>(std::size(kNames)) ? kNames[index] : nullptr;
}

void fst_emu_cuda_set_bandwidth(unsigned long long bytes_per_second) { Locked()->bandwidth = bytes_per_second; }
void fst_emu_cuda_set_device_bandwidth(int device, unsigned long long bytes_per_second) {
  if (device >= 0 && device < kMostDevices) Locked()->devices[device].bandwidth = bytes_per_second;
}
void fst_emu_cuda_set_delay_us(unsigned long long microseconds) { Locked()->delay_us = microseconds; }
void fst_emu_cuda_set_jitter_us(unsigned long long microseconds) { Locked()->jitter_us = microseconds; }

void fst_emu_cuda_set_memory_limit(int device, unsigned long long bytes) {
  if (device >= 0 && device < kMostDevices) Locked()->devices[device].limit = bytes;
}

void fst_emu_cuda_set_pinned_limit(unsigned long long bytes) { Locked()->pinned_limit = bytes; }

void fst_emu_cuda_set_attribute(int device, int attribute, int value) {
  if (device >= 0 && device < kMostDevices) Locked()->devices[device].attributes[attribute] = value;
}

void fst_emu_cuda_set_strict(int on) { Locked()->strict = on != 0; }

void fst_emu_cuda_hold(int on) {
  Locked state;
  state->held = on != 0;
  state->changed.notify_all();
}

unsigned long long fst_emu_cuda_live_allocations(void) {
  Locked state;
  return Count(state.emulator, false);
}

unsigned long long fst_emu_cuda_live_virtual(void) {
  Locked state;
  return state.emulator.handles.size() + state.emulator.ranges.size();
}

unsigned long long fst_emu_cuda_live_bytes(void) { return Locked()->LiveBytes(); }
unsigned long long fst_emu_cuda_peak_bytes(void) { return Locked()->counters.peak_bytes; }
unsigned long long fst_emu_cuda_device_peak_bytes(int device) {
  return device >= 0 && device < kMostDevices ? Locked()->devices[device].peak : 0;
}

unsigned long long fst_emu_cuda_live_pinned(void) {
  Locked state;
  return Count(state.emulator, true);
}

unsigned long long fst_emu_cuda_live_pinned_bytes(void) { return Locked()->pinned_bytes; }
unsigned long long fst_emu_cuda_peak_pinned_bytes(void) { return Locked()->counters.peak_pinned_bytes; }
int fst_emu_cuda_pinned_node(void) { return Locked()->counters.pinned_node; }
unsigned long long fst_emu_cuda_live_streams(void) { return Locked()->streams.size(); }
unsigned long long fst_emu_cuda_live_events(void) { return Locked()->events.size(); }

unsigned long long fst_emu_cuda_retained_contexts(void) {
  Locked state;
  unsigned long long retained = 0;
  for (const Device& device : state->devices) retained += static_cast<unsigned>(device.context.retained);
  return retained;
}

unsigned long long fst_emu_cuda_unpinned_async_copies(void) { return Locked()->counters.unpinned_async_copies; }
unsigned long long fst_emu_cuda_executed(void) { return Locked()->counters.executed; }

unsigned long long fst_emu_cuda_pending(void) {
  Locked state;
  unsigned long long pending = 0;
  auto add = [&pending](const Stream& stream) {
    for (const Operation& operation : stream.queue) {
      pending += operation.kind == Operation::kCopy || operation.kind == Operation::kFill;
    }
  };
  for (const auto& [handle, stream] : state->streams) add(*stream);
  for (const Device& device : state->devices) {
    if (device.context.null != nullptr) add(*device.context.null);
  }
  return pending;
}

unsigned long long fst_emu_cuda_copied_bytes(void) { return Locked()->counters.copied_bytes; }

const char* fst_emu_cuda_last_refusal(void) {
  static thread_local std::string text;
  text = LastRefusal();
  return text.c_str();
}

static char* Acquired(unsigned long long pointer, unsigned long long bytes) {
  Locked state;
  std::shared_ptr<Block> block = state->Find(pointer);
  if (block == nullptr || block->pending == 0 || bytes > block->base + block->bytes - pointer)
    Abort("%llu bytes at %#llx are used, which are not acquired", bytes, pointer);
  return block->At(pointer);
}

int fst_emu_cuda_acquire(unsigned long long pointer, unsigned long long bytes) {
  Call call("acquire", Call::kContext);
  if (call.error != kSuccess) return call.error;
  std::shared_ptr<Block> block = call.FindDeviceMemory(pointer, bytes);
  if (block == nullptr) return call.error;
  ++block->pending;
  return kSuccess;
}

void fst_emu_cuda_release(unsigned long long pointer) {
  Locked state;
  std::shared_ptr<Block> block = state->Find(pointer);
  if (block != nullptr) --block->pending;
  state->changed.notify_all();
}

void fst_emu_cuda_write(unsigned long long pointer, const void* from, unsigned long long bytes) {
  memcpy(Acquired(pointer, bytes), from, bytes);
}

void fst_emu_cuda_read(unsigned long long pointer, void* to, unsigned long long bytes) {
  memcpy(to, Acquired(pointer, bytes), bytes);
}
