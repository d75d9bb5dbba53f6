#include "emulators/nccl/emulator.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "emulators/nccl/control.h"

namespace fst::emu_nccl {

namespace {

using emulators::Text;

unsigned long long Number(const char* name, unsigned long long otherwise) {
  return emulators::Number(name, otherwise, Abort);
}

std::string& Refusal() {
  static thread_local std::string text;
  return text;
}

// As the static objects of the real library, which exit() destroys.
struct Statics {
  ~Statics() {
    Emulator& emulator = Emulator::Get();
    Lock lock(emulator.mutex);
    emulator.destroyed = true;
  }
} statics;

}  // namespace

void Abort(const char* format, ...) {
  va_list args;
  va_start(args, format);
  emulators::AbortAs("NCCL", format, args);
}

const std::string& LastRefusal() { return Refusal(); }

Emulator& Emulator::Get() {
  static Emulator* emulator = [] {  // never destroyed: threads may be in it when the process ends
    auto* made = new Emulator;
    made->ReadSettings();
    made->failures.Read("FST_EMU_NCCL_FAIL", Abort);
    return made;
  }();
  return *emulator;
}

void Emulator::ReadSettings() {
  version = static_cast<int>(Number("FST_EMU_NCCL_VERSION", 23007));
  bandwidth = Number("FST_EMU_NCCL_BANDWIDTH", 0);
  init_ms = Number("FST_EMU_NCCL_INIT_MS", 0);
  notice = Number("FST_EMU_NCCL_NOTICE", 0) != 0;
  hang = Number("FST_EMU_NCCL_HANG", 0);
  strict = Number("FST_EMU_NCCL_STRICT", 1) != 0;
}

std::vector<std::string> Functions() {
#define X(member, symbol, result, parameters) #symbol,
  return {FST_NCCL_API(X) "execute"};
#undef X
}

bool Emulator::FindDriver() {
  if (driver.read != nullptr) return true;
  void* library = dlopen(Text("FASTSAFETENSORS_CUDA_LIB", "libcuda.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  auto find = [library](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
  };
  find(&driver.acquire, "fst_emu_cuda_acquire");
  find(&driver.release, "fst_emu_cuda_release");
  find(&driver.write, "fst_emu_cuda_write");
  find(&driver.last_refusal, "fst_emu_cuda_last_refusal");
  find(&driver.current_device, "cuCtxGetDevice");
  find(&driver.launch, "cuLaunchHostFunc");
  find(&driver.read, "fst_emu_cuda_read");
  return driver.read != nullptr;
}

Call::Call(const char* function, Sort sort) : emulator(Emulator::Get()), lock(emulator.mutex), function(function) {
  if (emulator.destroyed) Abort("%s after exit() destroyed the library's static objects", function);
  int failure = emulator.failures.Take(function);
  if (failure != 0 && sort == kNormal) {
    error = Refuse(failure, "made to fail with %d", failure);
  } else {
    late = failure;
  }
}

Call::Call(const char* function, ncclComm_t handle, Sort sort) : Call(function, sort) {
  auto found = emulator.comms.find(handle);
  if (found == emulator.comms.end()) {
    error = Misuse(nccl::kInvalidArgument, "of %p, which is no communicator", static_cast<void*>(handle));
    return;
  }
  comm = found->second;
  if (++comm->inside > 1) error = Misuse(nccl::kInvalidUsage, "while another thread is in the communicator");
}

Call::~Call() {
  if (!lock.owns_lock()) lock.lock();
  if (comm != nullptr) --comm->inside;
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

}  // namespace fst::emu_nccl

namespace {

// The state, with the lock held until the end of the full expression or the scope.
struct Locked {
  fst::emu_nccl::Emulator& emulator = fst::emu_nccl::Emulator::Get();
  fst::emu_nccl::Lock lock{emulator.mutex};
  fst::emu_nccl::Emulator* operator->() { return &emulator; }
};

}  // namespace

void fst_emu_nccl_reset(void) {
  Locked state;
  state->failures.Forget();
  state->received_bytes = 0;
  state->ReadSettings();
}

int fst_emu_nccl_set_fail(const char* function, unsigned long long nth, int code) {
  return Locked()->failures.Add(function, nth, code) ? 0 : -1;
}

unsigned long long fst_emu_nccl_call_count(const char* function) { return Locked()->failures.calls(function); }

const char* fst_emu_nccl_function_name(int index) {
  static const char* const kNames[] = {
#define X(member, symbol, result, parameters) #symbol,
      FST_NCCL_API(X)
#undef X
  };
  return index >= 0 && index < static_cast<int>(std::size(kNames)) ? kNames[index] : nullptr;
}

void fst_emu_nccl_set_strict(int on) { Locked()->strict = on != 0; }
void fst_emu_nccl_set_notice(int on) { Locked()->notice = on != 0; }
void fst_emu_nccl_set_hang(unsigned long long nth) { Locked()->hang = nth; }
void fst_emu_nccl_set_version(int version) { Locked()->version = version; }
unsigned long long fst_emu_nccl_live_communicators(void) { return Locked()->comms.size(); }
unsigned long long fst_emu_nccl_received_bytes(void) { return Locked()->received_bytes; }

const char* fst_emu_nccl_last_refusal(void) {
  static thread_local std::string text;
  text = fst::emu_nccl::LastRefusal();
  return text.c_str();
}
