#include "emulators/cuda/emulator.h"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace fst::emu {

namespace {

unsigned long long Number(const char* name, unsigned long long otherwise) {
  return emulators::Number(name, otherwise, Abort);
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t from = 0; from <= text.size();) {
    size_t to = std::min(text.find(separator, from), text.size());
    if (to > from) parts.push_back(text.substr(from, to - from));
    from = to + 1;
  }
  return parts;
}

// When the process exits (or the library is unloaded, which -z nodelete prevents): contexts alone may be alive.
__attribute__((destructor)) void AtExit() {
  Emulator::Get().ReportLeaks();
  Emulator::Get().ReportRegistered();
}

// The process that called cuInit: one that it forks has none of its threads.
pid_t owner = 0;

void Deinitialise() {
  if (getpid() != owner) return;
  Emulator& emulator = Emulator::Get();
  Lock lock(emulator.mutex);
  if (!emulator.inside.empty() && emulator.strict)
    Abort("exit() ends the driver while %s is inside", *emulator.inside.begin());
  emulator.life = Emulator::kEnding;
  lock.unlock();
  if (emulator.strict) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // a call meanwhile shows
  lock.lock();
  emulator.life = Emulator::kEnded;
}

}  // namespace

void Abort(const char* format, ...) {
  va_list args;
  va_start(args, format);
  emulators::AbortAs("CUDA", format, args);
}

std::string FormatText(const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::string text = emulators::FormatList(format, args);
  va_end(args);
  return text;
}

Emulator& Emulator::Get() {
  // Never destroyed: streams run until the process ends.
  static Emulator* emulator = [] {
    auto* made = new Emulator;
    made->ReadSettings();
    made->failures.Read("FST_EMU_CUDA_FAIL", Abort);
    return made;
  }();
  return *emulator;
}

void Emulator::ReadSettings() {
  unsigned long long count = Number("FST_EMU_CUDA_DEVICES", 2);
  if (count > kMostDevices) Abort("FST_EMU_CUDA_DEVICES is %llu, at most %d", count, kMostDevices);
  device_count = static_cast<int>(count);
  bandwidth = Number("FST_EMU_CUDA_BANDWIDTH", 0);
  const char* bandwidths = getenv("FST_EMU_CUDA_BANDWIDTHS");
  const std::vector<std::string> by_device = Split(bandwidths != nullptr ? bandwidths : "", ';');
  for (size_t i = 0; i < kMostDevices; ++i) {
    char* end = nullptr;
    devices[i].bandwidth = i < by_device.size() ? strtoull(by_device[i].c_str(), &end, 10) : 0;
    if (end != nullptr && *end != '\0') Abort("FST_EMU_CUDA_BANDWIDTHS is '%s', expected whole numbers", bandwidths);
  }
  delay_us = Number("FST_EMU_CUDA_DELAY_US", 200);
  jitter_us = Number("FST_EMU_CUDA_JITTER_US", 0);
  pinned_limit = Number("FST_EMU_CUDA_PINNED", SIZE_MAX);
  strict = Number("FST_EMU_CUDA_STRICT", 1) != 0;
  verbose = Number("FST_EMU_CUDA_VERBOSE", 0) != 0;
  leaks = getenv("FST_EMU_CUDA_LEAKS") ? getenv("FST_EMU_CUDA_LEAKS") : "report";
  if (leaks != "off" && leaks != "report" && leaks != "abort" && leaks != "abort-memory") {
    Abort("FST_EMU_CUDA_LEAKS is '%s', expected off, report, abort or abort-memory", leaks.c_str());
  }
  for (int i = 0; i < kMostDevices; ++i) {
    devices[i].context.device = i;
    devices[i].limit = Number("FST_EMU_CUDA_MEMORY", size_t{2} << 30);
    devices[i].attributes = {
        {cuda::kAttributeIntegrated, 0},
        {cuda::kAttributeCanMapHostMemory, 1},
        {cuda::kAttributePciBusId, 0xE1 + i},
        {cuda::kAttributePciDeviceId, 0},
        {cuda::kAttributePciDomainId, 0},
        {cuda::kAttributeAsyncEngineCount, 3},
        {cuda::kAttributeUnifiedAddressing, 1},
        {cuda::kAttributeComputeCapabilityMajor, i == 0 ? 9 : 8},
        {cuda::kAttributeComputeCapabilityMinor, 0},
        {cuda::kAttributeManagedMemory, 1},
        {cuda::kAttributePageableMemoryAccess, 1},
        {cuda::kAttributeConcurrentManagedAccess, 1},
        {cuda::kAttributeCanUseHostPointerForRegisteredMem, 1},
        {cuda::kAttributeHostRegisterSupported, 1},
        {cuda::kAttributePageableMemoryAccessUsesHostPageTables, 0},
        {cuda::kAttributeVirtualMemorySupported, 1},
        {cuda::kAttributePosixFdSupported, 1},
        {cuda::kAttributeReadOnlyHostRegisterSupported, 1},
        {cuda::kAttributeHostNumaId, -1},
    };
  }
  for (const std::string& pair :
       Split(getenv("FST_EMU_CUDA_ATTRIBUTES") ? getenv("FST_EMU_CUDA_ATTRIBUTES") : "", ';')) {
    std::vector<std::string> parts = Split(pair, ':');
    if (parts.size() != 2) Abort("FST_EMU_CUDA_ATTRIBUTES has '%s', expected attribute:value", pair.c_str());
    for (Device& device : devices) device.attributes[atoi(parts[0].c_str())] = atoi(parts[1].c_str());
  }
}

std::vector<std::string> Functions() {
#define X(member, symbol, parameters) #symbol,
  return {FST_CUDA_API(X) FST_CUDA_SHARING_API(X) FST_CUDA_EXTRA_API(X) "execute"};
#undef X
}

size_t Emulator::LiveBytes() const {
  size_t bytes = 0;
  for (const Device& device : devices) bytes += device.used;
  return bytes;
}

std::string Emulator::Living(const Context* context, bool with_registered) const {
  size_t allocations = 0, bytes = 0, pinned = 0, pinned_here = 0, stream_count = 0, event_count = 0;
  for (const auto& [base, block] : blocks) {
    if (context != nullptr && block->context != context) continue;
    if (!with_registered && block->kind == Block::kHostRegistered) continue;
    (block->host() ? pinned : allocations) += 1;
    (block->host() ? pinned_here : bytes) += block->bytes;
  }
  for (const auto& [handle, stream] : streams) stream_count += context == nullptr || stream->context == context;
  for (const auto& [handle, event] : events) event_count += context == nullptr || event->context == context;
  std::string text;
  auto add = [&text](size_t count, const std::string& what) {
    if (count != 0) text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + what;
  };
  add(allocations, FormatText("allocations (%zu bytes)", bytes));
  add(pinned, FormatText("page-locked ranges (%zu bytes)", pinned_here));
  add(stream_count, "streams");
  add(event_count, "events");
  if (context == nullptr) add(handles.size(), "handles of memory");
  if (context == nullptr) add(ranges.size(), "ranges of addresses");
  return text;
}

void Emulator::DeinitialiseAtExit() {
  if (owner != 0) return;
  owner = getpid();
  if (atexit(Deinitialise) != 0) Abort("atexit failed");
}

void Emulator::ReportLeaksAtExit() {
  if (atexit([] { Get().ReportLeaks(); }) != 0) Abort("atexit failed");
}

void Emulator::ReportLeaks() {
  Lock lock(mutex);
  if (std::exchange(reported, true) || leaks == "off") return;
  // What a thread is giving back while the process ends is no leak.
  changed.wait_for(lock, std::chrono::seconds(1), [this] { return Living(nullptr, false).empty(); });
  std::string text = Living(nullptr, false);
  int retained = 0;
  for (const Device& device : devices) retained += device.context.retained;
  if (retained != 0 && leaks != "abort-memory")
    text += (text.empty() ? "" : ", ") + FormatText("%d retained contexts", retained);
  if (text.empty()) return;
  std::string note = "alive at exit: " + text;
  if (leaks == "abort" || (leaks == "abort-memory" && LiveBytes() != 0)) Abort("%s", note.c_str());
  fprintf(stderr, "emulated CUDA: %s\n", note.c_str());
}

void Emulator::ReportRegistered() {
  Lock lock(mutex);
  if (leaks == "off") return;
  size_t count = 0, bytes = 0;
  for (const auto& [base, block] : blocks) {
    if (block->kind != Block::kHostRegistered) continue;
    ++count;
    bytes += block->bytes;
  }
  if (count == 0) return;
  std::string note = FormatText("alive when the library goes: %zu registered ranges (%zu bytes)", count, bytes);
  if (leaks == "abort") Abort("%s", note.c_str());
  fprintf(stderr, "emulated CUDA: %s\n", note.c_str());
}

}  // namespace fst::emu
