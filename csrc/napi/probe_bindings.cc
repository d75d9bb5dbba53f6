// What the system allows, for JavaScript.
#include "base/probe.h"
#include "napi/async_work.h"
#include "napi/bindings.h"

namespace fst {
namespace {

// '' for what works, else why it does not.
Napi::String ErrorText(Napi::Env env, int error) { return Napi::String::New(env, error == 0 ? "" : ErrnoText(error)); }

// probeSystem(): Promise<{ioUring, memoryPlacement}>, each '' or an error's text. See base/probe.h.
Napi::Value ProbeSystemJs(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<SystemProbe>();
  return AsyncWork::Run(
      info.Env(),
      [found] {
        *found = ProbeSystem();
        return Status::Ok();
      },
      [found](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["ioUring"] = ErrorText(env, found->io_uring);
        result["memoryPlacement"] = ErrorText(env, found->memory_placement);
        return result;
      });
}

// probeFile(path): Promise<{lease, residentRead, residentMap, cacheCounts, direct}>, each '' or an error's text
Napi::Value ProbeFileJs(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<FileProbe>();
  std::string path = info[0].As<Napi::String>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return ProbeFile(path, found.get()); },
      [found](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["lease"] = ErrorText(env, found->lease);
        result["residentRead"] = ErrorText(env, found->resident_read);
        result["residentMap"] = ErrorText(env, found->resident_map);
        result["cacheCounts"] = ErrorText(env, found->cache_counts);
        result["direct"] = ErrorText(env, found->direct);
        return result;
      });
}

}  // namespace

void ExportProbes(Napi::Env env, Napi::Object exports) {
  Export<ProbeSystemJs>(env, exports, "probeSystem");
  Export<ProbeFileJs>(env, exports, "probeFile");
}

}  // namespace fst
