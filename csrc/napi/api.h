// The functions that the addon exports, one part a file. src/native.ts declares and calls them; nothing else does.
#pragma once
#include <napi.h>

namespace fst {

void ExportHeaders(Napi::Env env, Napi::Object exports);
void ExportMemory(Napi::Env env, Napi::Object exports);
void ExportEngine(Napi::Env env, Napi::Object exports);
void ExportOrt(Napi::Env env, Napi::Object exports);
void ExportThreeFs(Napi::Env env, Napi::Object exports);
void ExportTensorFlow(Napi::Env env, Napi::Object exports);

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<function>(env, name));
}

}  // namespace fst
