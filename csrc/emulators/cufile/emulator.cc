#include "emulators/cufile/emulator.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace fst::emu_cufile {

namespace {

using emulators::Text;

unsigned long long Number(const char* name, unsigned long long otherwise) {
  return emulators::Number(name, otherwise, Abort);
}

std::string& Refusal() {
  static thread_local std::string text;
  return text;
}

// Constructed when the library is loaded, as libcufile's static objects are.
struct Statics {
  const pid_t owner = getpid();  // one that it forks has none of its threads
  ~Statics() {
    if (getpid() == owner) Emulator::Get().Destroy();
    Emulator::Get().ReportLeaks();
  }
} statics;

}  // namespace

void Abort(const char* format, ...) {
  va_list args;
  va_start(args, format);
  emulators::AbortAs("cuFile", format, args);
}

const std::string& LastRefusal() { return Refusal(); }

Handle::~Handle() {
  if (reader >= 0) close(reader);
}

Emulator& Emulator::Get() {
  static Emulator* emulator = [] {  // never destroyed: threads may be in it when the process ends
    auto* made = new Emulator;
    made->ReadSettings();
    made->failures.Read("FST_EMU_CUFILE_FAIL", Abort);
    return made;
  }();
  return *emulator;
}

void Emulator::ReadSettings() {
  compat = Number("FST_EMU_CUFILE_COMPAT", 0) != 0;
  allow_compat = Number("FST_EMU_CUFILE_ALLOW_COMPAT", 1) != 0;
  require_direct = Number("FST_EMU_CUFILE_REQUIRE_DIRECT", 0) != 0;
  strict = Number("FST_EMU_CUFILE_STRICT", 1) != 0;
  refuse = Text("FST_EMU_CUFILE_REFUSE", "");
  refuse_code = static_cast<int>(Number("FST_EMU_CUFILE_REFUSE_CODE", 5030));
  most_bytes = Number("FST_EMU_CUFILE_SHORT", 0);
  end = overstated = 0;
  open_ms = Number("FST_EMU_CUFILE_OPEN_MS", 0);
  delay_us = Number("FST_EMU_CUFILE_DELAY_US", 0);
  bandwidth = Number("FST_EMU_CUFILE_BANDWIDTH", 0);
  leaks = Text("FST_EMU_CUFILE_LEAKS", "report");
}

std::vector<std::string> Functions() {
#define X(member, symbol, result, parameters) #symbol,
  return {FST_CUFILE_API(X)};
#undef X
}

bool Emulator::FindDriver() {
  if (driver.write != nullptr) return true;
  void* library = dlopen(Text("FASTSAFETENSORS_CUDA_LIB", "libcuda.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  driver.acquire = reinterpret_cast<decltype(driver.acquire)>(dlsym(library, "fst_emu_cuda_acquire"));
  driver.release = reinterpret_cast<decltype(driver.release)>(dlsym(library, "fst_emu_cuda_release"));
  driver.last_refusal = reinterpret_cast<decltype(driver.last_refusal)>(dlsym(library, "fst_emu_cuda_last_refusal"));
  driver.write = reinterpret_cast<decltype(driver.write)>(dlsym(library, "fst_emu_cuda_write"));
  return driver.write != nullptr;
}

void Emulator::Destroy() {
  Lock lock(mutex);
  if (inside > 0 && strict)
    Abort("exit() destroys the library's static objects while %d calls are inside", inside.load());
  destroyed = true;
  lock.unlock();
  if (strict) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // a call meanwhile shows
}

void Emulator::ReportLeaks() {
  Lock lock(mutex);
  if (leaks == "off" || (handles.empty() && buffers.empty())) return;
  if (leaks == "abort") Abort("registered at exit: %zu files, %zu buffers", handles.size(), buffers.size());
  fprintf(stderr, "emulated cuFile: registered at exit: %zu files, %zu buffers\n", handles.size(), buffers.size());
}

Call::Call(const char* function, bool needs_open, Sort sort)
    : emulator(Emulator::Get()), lock(emulator.mutex), function(function) {
  ++emulator.inside;
  if (emulator.destroyed) error = Misuse(cufile::kDriverClosing, "after exit() destroyed the library's static objects");
  if (error != 0) return;
  const int failure = emulator.failures.Take(function);
  if (needs_open && !emulator.open) {
    error = Refuse(cufile::kDriverNotInitialized, "the driver is not open");
  } else if (failure != 0 && sort == kNormal) {
    error = Refuse(failure, "made to fail with %d", failure);
  } else {
    late = failure;
  }
}

int Call::Refuse(int code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  Refusal() = std::string(function) + ": " + emulators::FormatList(format, args);
  va_end(args);
  return code;
}

int Call::Misuse(int code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::string text = emulators::FormatList(format, args);
  va_end(args);
  if (emulator.strict) Abort("%s %s", function, text.c_str());
  return Refuse(code, "%s", text.c_str());
}

int Call::FromDriver(int result) {
  constexpr int kContextMismatch = 5015;
  bool context = result == 201 || result == 709;
  return Refuse(context       ? kContextMismatch
                : result == 1 ? cufile::kCudaPointerInvalid
                              : cufile::kCudaDriverError,
                "%s", emulator.driver.last_refusal());
}

}  // namespace fst::emu_cufile
