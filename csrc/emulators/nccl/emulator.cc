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

std::string FormatList(const char* format, va_list args) {
  char text[1024];
  vsnprintf(text, sizeof text, format, args);
  return text;
}

std::string Text(const char* name, const char* otherwise) {
  const char* text = getenv(name);
  return text != nullptr && text[0] != '\0' ? text : otherwise;
}

unsigned long long Number(const char* name, const char* otherwise) {
  std::string text = Text(name, otherwise);
  char* end = nullptr;
  unsigned long long value = strtoull(text.c_str(), &end, 10);
  if (*end != '\0') Abort("%s is '%s', expected a whole number", name, text.c_str());
  return value;
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
  std::string text = FormatList(format, args);
  va_end(args);
  fprintf(stderr, "emulated NCCL: %s\n", text.c_str());
  fflush(stderr);
  abort();
}

const std::string& LastRefusal() { return Refusal(); }

Emulator& Emulator::Get() {
  static Emulator* emulator = [] {  // never destroyed: threads may be in it when the process ends
    auto* made = new Emulator;
    made->ReadSettings();
    std::string failures = Text("FST_EMU_NCCL_FAIL", "");
    for (size_t from = 0; from < failures.size();) {
      size_t to = std::min(failures.find(';', from), failures.size());
      std::string failure = failures.substr(from, to - from);
      size_t first = failure.find(':'), second = failure.find(':', first + 1);
      if (first == std::string::npos || second == std::string::npos ||
          !made->AddFailure(failure.substr(0, first), strtoull(failure.c_str() + first + 1, nullptr, 10),
                            atoi(failure.c_str() + second + 1))) {
        Abort("FST_EMU_NCCL_FAIL has '%s', expected function:nth:code", failure.c_str());
      }
      from = to + 1;
    }
    return made;
  }();
  return *emulator;
}

void Emulator::ReadSettings() {
  version = static_cast<int>(Number("FST_EMU_NCCL_VERSION", "23007"));
  bandwidth = Number("FST_EMU_NCCL_BANDWIDTH", "0");
  init_ms = Number("FST_EMU_NCCL_INIT_MS", "0");
  notice = Number("FST_EMU_NCCL_NOTICE", "0") != 0;
  hang = Number("FST_EMU_NCCL_HANG", "0");
  strict = Number("FST_EMU_NCCL_STRICT", "1") != 0;
}

bool Emulator::AddFailure(const std::string& function, unsigned long long nth, int code) {
  bool known = function == "execute";
#define X(member, symbol, result, parameters) known = known || function == #symbol;
  FST_NCCL_API(X)
#undef X
  if (known) failures.push_back(Failure{function, nth, 0, code});
  return known;
}

int Emulator::TakeFailure(const std::string& function) {
  ++calls[function];
  int failure = 0;
  for (auto it = failures.begin(); it != failures.end();) {
    bool due = it->function == function && (++it->seen == it->nth || it->nth == 0);
    if (due && failure == 0) failure = it->code;
    it = due && it->nth != 0 ? failures.erase(it) : it + 1;
  }
  return failure;
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
  int failure = emulator.TakeFailure(function);
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
  Refusal() = std::string(function) + ": " + FormatList(format, args);
  va_end(args);
  return code;
}

int Call::Misuse(int code, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::string text = FormatList(format, args);
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
  state->failures.clear();
  state->calls.clear();
  state->received_bytes = 0;
  state->ReadSettings();
}

int fst_emu_nccl_set_fail(const char* function, unsigned long long nth, int code) {
  return Locked()->AddFailure(function, nth, code) ? 0 : -1;
}

unsigned long long fst_emu_nccl_call_count(const char* function) {
  Locked state;
  auto found = state->calls.find(function);
  return found == state->calls.end() ? 0 : found->second;
}

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
