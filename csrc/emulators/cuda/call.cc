#include <cstdarg>
#include <cstdio>

#include "emulators/cuda/emulator.h"

namespace fst::emu {

thread_local bool in_host_function = false;

namespace {

thread_local Context* current = nullptr;

std::string& Refusal() {
  static thread_local std::string text;
  return text;
}

}  // namespace

Context* CurrentContext() { return current; }
void SetCurrentContext(Context* context) { current = context; }
const std::string& LastRefusal() { return Refusal(); }

Call::Call(const char* function, Needs needs, Sort sort)
    : emulator(Emulator::Get()), lock(emulator.mutex), function(function) {
  emulator.inside.insert(function);
  if (emulator.life != Emulator::kAlive) {
    error = emulator.life == Emulator::kEnding ? Misuse(cuda::kDeinitialized, "called while exit() ends the driver")
                                               : Refuse(cuda::kDeinitialized, "the process is exiting");
    return;
  }
  if (in_host_function) {
    error = Misuse(cuda::kNotPermitted, "called from a host function on a stream, which must make no CUDA call");
    return;
  }
  CUresult failure = emulator.failures.Take(function);
  if (needs != kNothing && !emulator.initialised) {
    error = Refuse(cuda::kNotInitialized, "cuInit was not called");
    return;
  }
  if (current != nullptr && current->retained > 0) context = current;
  if (needs == kContext) {
    if (current != nullptr && context == nullptr) {
      error = Refuse(cuda::kContextIsDestroyed, "the thread's context, of device %d, was released", current->device);
      return;
    }
    if (context == nullptr) {
      error = Refuse(cuda::kInvalidContext, "the thread has no current context");
      return;
    }
    if (lost()) {
      error = Refuse(context->sticky, "the context of device %d is lost since an error %d", context->device,
                     context->sticky);
      return;
    }
  }
  if (failure == kSuccess) return;
  bool sticky = needs == kContext && cuda::IsSticky(failure);
  if (sticky) {
    context->sticky = failure;
    emulator.changed.notify_all();  // nobody waits for a lost device
  }
  if (sticky || sort == kNormal) {
    error = Refuse(failure, "made to fail with %d", failure);
  } else {
    late = failure;
  }
}

Call::~Call() { emulator.inside.erase(emulator.inside.find(function)); }

CUresult Call::Refuse(CUresult code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  Refusal() = std::string(function) + ": " + text;
  if (emulator.verbose) fprintf(stderr, "emulated CUDA: %s\n", Refusal().c_str());
  return code;
}

CUresult Call::Misuse(CUresult code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  if (emulator.strict) Abort("%s %s", function, text);
  return Refuse(code, "%s", text);
}

std::shared_ptr<Stream> Call::FindStream(CUstream handle) {
  if (handle == nullptr) return emulator.NullStream(context);
  auto found = emulator.streams.find(handle);
  if (found == emulator.streams.end()) {
    error = Misuse(cuda::kInvalidHandle, "of stream %p, which does not exist (any more)", static_cast<void*>(handle));
    return nullptr;
  }
  if (found->second->context != context) {
    error = Refuse(cuda::kInvalidHandle, "the stream is of device %d, but the current context is of device %d",
                   found->second->context->device, context->device);
    return nullptr;
  }
  return found->second;
}

std::shared_ptr<Event> Call::FindEvent(CUevent handle) {
  auto found = emulator.events.find(handle);
  if (found == emulator.events.end()) {
    error = Misuse(cuda::kInvalidHandle, "of event %p, which does not exist (any more)", static_cast<void*>(handle));
    return nullptr;
  }
  if (found->second->context != context) {
    error = Refuse(cuda::kInvalidHandle, "the event is of device %d, but the current context is of device %d",
                   found->second->context->device, context->device);
    return nullptr;
  }
  return found->second;
}

std::shared_ptr<Block> Call::FindDeviceMemory(CUdeviceptr address, size_t bytes, int access) {
  std::shared_ptr<Block> block = emulator.Find(address);
  if (block == nullptr) {
    error = Refuse(cuda::kInvalidValue, "%#llx is no address of a live allocation", address);
    return nullptr;
  }
  size_t room = block->base + block->bytes - address;
  if (bytes > room) {
    error = Refuse(cuda::kInvalidValue, "%zu bytes at %#llx end %zu bytes past the allocation of %zu bytes at %#zx",
                   bytes, address, bytes - room, block->bytes, block->base);
    return nullptr;
  }
  if ((block->access & access) != access) {
    error =
        Misuse(cuda::kIllegalAddress, "%#llx is mapped with access %d, %d is needed", address, block->access, access);
    return nullptr;
  }
  if (block->context != context && !(block->host() && block->portable)) {
    error = Refuse(cuda::kInvalidContext, "%#llx is memory of device %d, but the current context is of device %d",
                   address, block->context->device, context->device);
    return nullptr;
  }
  return block;
}

}  // namespace fst::emu
