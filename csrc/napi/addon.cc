// The addon: its own few functions, and the parts of bindings.h.
#include "base/dtype.h"
#include "base/metrics.h"
#include "base/warnings.h"
#include "convert/float_convert.h"
#include "napi/bindings.h"
#include "napi/env_state.h"

namespace fst {
namespace {

// metrics(): what the whole process holds, by the names of src/native/core.ts
Napi::Value MetricsJs(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  const Metrics& metrics = Metrics::Get();
  auto set = [&](const char* name, const std::atomic<int64_t>& value) {
    result[name] = Napi::Number::New(info.Env(), static_cast<double>(value.load(std::memory_order_relaxed)));
  };
  set("deviceBytes", metrics.device_bytes);
  set("hostBytes", metrics.host_bytes);
  set("mappedBytes", metrics.mapped_bytes);
  set("stagingBytes", metrics.staging_bytes);
  set("openFiles", metrics.open_files);
  set("rings", metrics.rings);
  set("inFlight", metrics.in_flight);
  return result;
}

// takeWarnings(): string[], those that no logger has had yet. See base/warnings.h.
Napi::Value TakeWarningsJs(const Napi::CallbackInfo& info) {
  std::vector<std::string> texts = TakeWarnings();
  Napi::Array result = Napi::Array::New(info.Env(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) result[static_cast<uint32_t>(i)] = Napi::String::New(info.Env(), texts[i]);
  return result;
}

// tables(): {codes: string[], dtypes: {[name]: bits}, conversions: [from, to][]}, for tests of TypeScript's own tables
Napi::Value Tables(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Array codes = Napi::Array::New(env);
  uint32_t count = 0;
#define X(name) codes[count++] = Napi::String::New(env, #name);
  FST_ERROR_CODES(X)
#undef X
  Napi::Object dtypes = Napi::Object::New(env);
  for (size_t i = 0; i < kDTypeCount; ++i) dtypes[kDTypeNames[i]] = Napi::Number::New(env, kDTypeBits[i]);
  Napi::Object result = Napi::Object::New(env);
  result["codes"] = codes;
  result["dtypes"] = dtypes;
  Napi::Array conversions = Napi::Array::New(env);
  count = 0;
  for (size_t from = 0; from < kDTypeCount; ++from) {
    for (size_t to = 0; to < kDTypeCount; ++to) {
      if (!CanConvertFloats(static_cast<DType>(from), static_cast<DType>(to))) continue;
      Napi::Array pair = Napi::Array::New(env, 2);
      pair[0U] = Napi::String::New(env, kDTypeNames[from]);
      pair[1U] = Napi::String::New(env, kDTypeNames[to]);
      conversions[count++] = pair;
    }
  }
  result["conversions"] = conversions;
  return result;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new EnvState(env));
  Export<MetricsJs>(env, exports, "metrics");
  Export<TakeWarningsJs>(env, exports, "takeWarnings");
  Export<Tables>(env, exports, "tables");
  ExportCommunicators(env, exports);
  ExportDigests(env, exports);
  ExportFiles(env, exports);
  ExportHeaders(env, exports);
  ExportMemory(env, exports);
  ExportMapping(env, exports);
  ExportSpotReads(env, exports);
  ExportEngine(env, exports);
  ExportOrt(env, exports);
  ExportProbes(env, exports);
  ExportSharing(env, exports);
  ExportThreeFs(env, exports);
  ExportTensorFlow(env, exports);
  return exports;
}

}  // namespace
}  // namespace fst

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) { return fst::Init(env, exports); }
NODE_API_MODULE(fastsafetensors, InitAddon)
