// 3FS for JavaScript: its library, its mounts, and whether they are available.
#include "base/metrics.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "reader/usrbio/mount_point.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_pool.h"
#include "reader/usrbio/usrbio_preflight.h"
#include "reader/usrbio/usrbio_reservation.h"

namespace fst {
namespace {

// extractMountPoint(path): string; throws a status object.
Napi::Value ExtractMountPointJs(const Napi::CallbackInfo& info) {
  std::string mount;
  ThrowIfError(info.Env(), ExtractMountPoint(info[0].As<Napi::String>(), &mount));
  return Napi::String::New(info.Env(), mount);
}

// hf3fsLibPath(): string, the client library's path; "" when there is none
Napi::Value LibPath(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), usrbio::FindHf3fsLibrary());
}

// resolveThreeFsMount(paths, mountPoint, all): Promise<{mountPoint, blockSize, notOnMount}>; notOnMount has a status
// object for each file of another mount, with its path. See usrbio::ResolveMount.
Napi::Value ResolveMountJs(const Napi::CallbackInfo& info) {
  auto list = info[0].As<Napi::Array>();
  std::vector<std::string> paths;
  paths.reserve(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    Napi::HandleScope scope(info.Env());
    paths.push_back(list.Get(i).As<Napi::String>());
  }
  std::string mount = info[1].As<Napi::String>();
  bool all = info[2].ToBoolean();
  auto found = std::make_shared<usrbio::FilesOnMount>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return usrbio::ResolveMount(paths, mount, all, found.get()); },
      [found](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["mountPoint"] = Napi::String::New(env, found->mount_point);
        result["blockSize"] = Napi::Number::New(env, static_cast<double>(found->block_bytes));
        Napi::Array not_on_mount = Napi::Array::New(env, found->not_on_mount.size());
        for (size_t i = 0; i < found->not_on_mount.size(); ++i) {
          const auto& file = found->not_on_mount[i];
          not_on_mount[static_cast<uint32_t>(i)] = StatusToJs(env, file.why.At(file.path));
        }
        result["notOnMount"] = not_on_mount;
        return result;
      });
}

// loadThreeFs(early): Promise<void>; rejects with COPIER_UNAVAILABLE. `early`: nobody needs it yet, so that it is not
// done where descriptors are few.
Napi::Value LoadLibrary(const Napi::CallbackInfo& info) {
  return AsyncWork::Run(
      info.Env(),
      [early = info[0].ToBoolean().Value()] {
        const usrbio::UsrbioApi* api;
        return early && !usrbio::ShmReservation::MayTakeFds() ? Status::Ok() : usrbio::LoadUsrbio(&api);
      },
      nullptr);
}

// threeFsAvailability(): Promise<{available, library?, reason?, remedy?}>
Napi::Value AvailabilityJs(const Napi::CallbackInfo& info) {
  auto found = std::make_shared<usrbio::Availability>();
  return AsyncWork::RunOnFile(
      info.Env(),
      [found] {
        *found = usrbio::CheckAvailability();
        return Status::Ok();
      },
      [found](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["available"] = Napi::Boolean::New(env, found->available);
        auto set = [&](const char* name, const std::string& text) {
          if (!text.empty()) result[name] = Napi::String::New(env, text);
        };
        set("library", found->library);
        set("reason", found->reason);
        set("remedy", found->remedy);
        return result;
      });
}

// idleThreeFs(): {rings, bytes}, what is kept for later loaders
Napi::Value IdleThreeFs(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  const Metrics& metrics = Metrics::Get();
  result["rings"] = Napi::Number::New(info.Env(), static_cast<double>(metrics.idle_rings.load()));
  result["bytes"] = Napi::Number::New(info.Env(), static_cast<double>(metrics.idle_bytes.load()));
  return result;
}

// dropIdleThreeFs(): Promise<void>, resolved when it is given back, or a daemon has not answered for a second
Napi::Value DropIdleThreeFs(const Napi::CallbackInfo& info) {
  return AsyncWork::Run(
      info.Env(),
      [] {
        usrbio::DropIdleChannels(std::chrono::seconds(1));
        return Status::Ok();
      },
      nullptr);
}

}  // namespace

void ExportThreeFs(Napi::Env env, Napi::Object exports) {
  Export<ExtractMountPointJs>(env, exports, "extractMountPoint");
  Export<LibPath>(env, exports, "hf3fsLibPath");
  Export<ResolveMountJs>(env, exports, "resolveThreeFsMount");
  Export<LoadLibrary>(env, exports, "loadThreeFs");
  Export<AvailabilityJs>(env, exports, "threeFsAvailability");
  Export<IdleThreeFs>(env, exports, "idleThreeFs");
  Export<DropIdleThreeFs>(env, exports, "dropIdleThreeFs");
}

}  // namespace fst
