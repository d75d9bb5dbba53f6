// The functions that the addon exports, one part a file; src/native declares them. The comment above each begins with
// its JavaScript signature, and a test compares the two. All run on the environment's thread.
//
// They may throw: a status object for a failed call (Throw), and Napi::Error when JavaScript cannot run any more
// because its worker was terminated in the middle of the call. Both unwind to the function's entry. No other folder of
// the core is built to be unwound.
#pragma once
#include <napi.h>

#include <new>

#include "napi/js_values.h"

namespace fst {

void ExportFiles(Napi::Env env, Napi::Object exports);
void ExportHeaders(Napi::Env env, Napi::Object exports);
void ExportMemory(Napi::Env env, Napi::Object exports);
void ExportEngine(Napi::Env env, Napi::Object exports);
void ExportOrt(Napi::Env env, Napi::Object exports);
void ExportThreeFs(Napi::Env env, Napi::Object exports);
void ExportTensorFlow(Napi::Env env, Napi::Object exports);

// An allocation as a JavaScript value that counts its bytes as external memory.
Napi::Value AllocationToJs(Napi::Env env, std::shared_ptr<DeviceBuffer> buffer);

// Turns std::bad_alloc, which the core's bookkeeping does not check for, into a status object.
template <auto function>
auto Guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const std::bad_alloc&) {
    Throw(info.Env(), OutOfMemory());
  }
}

// `function` takes the CallbackInfo and returns a Napi::Value, or nothing for undefined.
template <auto function>
void Export(Napi::Env env, Napi::Object exports, const char* name, void* data = nullptr) {
  exports.Set(name, Napi::Function::New<Guarded<function>>(env, name, data));
}

}  // namespace fst
