// The functions that the addon exports, one part a file. src/native/addon.ts declares and calls them; nothing else
// does.
//
// A worker may be terminated in the middle of any of them: from then on every call that could run JavaScript fails.
// node-addon-api throws a Napi::Error then, which unwinds to the function's entry: this folder, and no other, is built
// to be unwound.
#pragma once
#include <napi.h>

#include <new>

#include "napi/js_values.h"

namespace fst {

void ExportHeaders(Napi::Env env, Napi::Object exports);
void ExportMemory(Napi::Env env, Napi::Object exports);
void ExportEngine(Napi::Env env, Napi::Object exports);
void ExportOrt(Napi::Env env, Napi::Object exports);
void ExportThreeFs(Napi::Env env, Napi::Object exports);
void ExportTensorFlow(Napi::Env env, Napi::Object exports);

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value Guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const std::bad_alloc&) {
    Throw(info.Env(), OutOfMemory());
  }
}

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name, void* data = nullptr) {
  exports.Set(name, Napi::Function::New<Guarded<function>>(env, name, data));
}

}  // namespace fst
