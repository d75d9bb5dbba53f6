// The functions that the addon exports, one part a file; src/native declares them. The comment above each begins with
// its JavaScript signature, and a test compares the two. All run on the environment's thread.
//
// They may throw: a status object for a failed call (Throw), and Napi::Error when JavaScript cannot run any more
// because its worker was terminated in the middle of the call. Both unwind to the function's entry. No other folder of
// the core is built to be unwound.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <new>

#include "napi/js_values.h"

namespace fst {

void ExportCommunicators(Napi::Env env, Napi::Object exports);
void ExportDigests(Napi::Env env, Napi::Object exports);
void ExportFiles(Napi::Env env, Napi::Object exports);
void ExportHeaders(Napi::Env env, Napi::Object exports);
void ExportMemory(Napi::Env env, Napi::Object exports);
void ExportMapping(Napi::Env env, Napi::Object exports);
void ExportEngine(Napi::Env env, Napi::Object exports);
void ExportOrt(Napi::Env env, Napi::Object exports);
void ExportSpotReads(Napi::Env env, Napi::Object exports);
void ExportProbes(Napi::Env env, Napi::Object exports);
void ExportSharing(Napi::Env env, Napi::Object exports);
void ExportThreeFs(Napi::Env env, Napi::Object exports);
void ExportTensorFlow(Napi::Env env, Napi::Object exports);

constexpr double kForeverMs = 1e12;  // 30 years, for Infinity: a clock can still add it

// INVALID_ARGUMENT unless [offset, offset + length) lies in the allocation. TypeScript has checked it, but on objects
// that JavaScript can tamper with.
Status CheckRange(const DeviceBuffer& buffer, size_t offset, size_t length);

// An allocation as a JavaScript value that counts its bytes as external memory.
Napi::Value AllocationToJs(Napi::Env env, std::shared_ptr<DeviceBuffer> buffer);

// Elements in an allocation that the host can read, and what they become.
struct HostConversion {
  std::shared_ptr<DeviceBuffer> source;
  size_t offset, count;         // of elements; count > 0
  size_t bytes_from, bytes_to;  // of an element
};

// Promise<External>: a host allocation in which `convert(source, destination)` has written the converted elements, on a
// thread of the addon's. Rejects with `allowed` unless that is ok, INVALID_ARGUMENT, OUT_OF_HOST_MEMORY, and
// DEVICE_UNAVAILABLE for memory that the host cannot read.
Napi::Value ConvertOnHost(Napi::Env env, const HostConversion& conversion, const Status& allowed,
                          const std::function<Status(const void* source, void* destination)>& convert);

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
