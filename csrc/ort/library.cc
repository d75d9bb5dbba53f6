#include "ort/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include "base/shared_library.h"

namespace fst::ort {
namespace {

std::atomic<const Library*> opened{nullptr};

Code CodeOf(int error) {
  switch (error) {
    case kInvalidArgument:
    case kInvalidProtobuf:
    case kInvalidGraph:
      return Code::INVALID_ARGUMENT;
    case kNoSuchFile:
      return Code::IO_ERROR;
    default:
      return Code::ORT_ERROR;
  }
}

// The version of the API to ask a library for. PLATFORM_UNSUPPORTED for what is too old or too new.
Status ApiVersionFor(const std::string& version, const std::string& path, uint32_t* out) {
  unsigned major = 0, minor = 0;
  bool read = sscanf(version.c_str(), "%u.%u", &major, &minor) == 2;
  if (!read || major != 1 || minor < kLowestApi) {
    return Status(Code::PLATFORM_UNSUPPORTED,
                  Format("%s is onnxruntime %s, expected 1.%u or a later 1.x: install a fitting onnxruntime-node",
                         path.c_str(), version.c_str(), kLowestApi));
  }
  *out = std::min(minor, kHighestApi);
  return Status::Ok();
}

Status Bound(const std::string& path, int log_severity, Library* library) {
  SharedLibrary file;
  GetApiBase get_base = nullptr;
  if (SharedLibrary::Open(path, &file, RTLD_NOLOAD).ok()) file.Resolve("OrtGetApiBase", &get_base, nullptr);
  const ApiBase* base = get_base ? get_base() : nullptr;
  if (base == nullptr) {
    return Status(
        Code::PLATFORM_UNSUPPORTED,
        Format("%s is loaded, but has no OrtGetApiBase: expected the library of onnxruntime-node 1.%u or newer",
               path.c_str(), kLowestApi));
  }
  library->path = path;
  library->version = base->GetVersionString();
  FST_RETURN_IF_ERROR(ApiVersionFor(library->version, path, &library->api_version));
  const Api* api = base->GetApi(library->api_version);
  if (api == nullptr) {
    return Status(Code::PLATFORM_UNSUPPORTED, Format("%s is onnxruntime %s, but does not give version %u of its API",
                                                     path.c_str(), library->version.c_str(), library->api_version));
  }
  library->api = Bind(api, library->api_version);
  OrtStatus* status = library->api.CreateEnv(log_severity, "fastsafetensors", &library->env);
  if (status == nullptr) return Status::Ok();
  Status failed(Code::ORT_ERROR,
                Format("%s: cannot make its environment: %s", path.c_str(), library->api.GetErrorMessage(status)));
  library->api.ReleaseStatus(status);
  return failed;
}

}  // namespace

Status OpenLibrary(int log_severity, const Library** out) {
  static auto* mutex = new std::mutex;
  std::lock_guard<std::mutex> lock(*mutex);
  *out = opened.load();
  if (*out != nullptr) return Status::Ok();
  std::vector<std::string> paths = SharedLibrary::Loaded("libonnxruntime.so");
  if (paths.empty()) {
    return Status(Code::DEVICE_UNAVAILABLE,
                  "no libonnxruntime.so is loaded: pass the module of onnxruntime-node itself (other flavours of "
                  "onnxruntime run elsewhere), as in createSession(require('onnxruntime-node'), …)");
  }
  auto library = std::make_unique<Library>();
  // The first: others were loaded by path, and everything that depends on the soname was given the first.
  FST_RETURN_IF_ERROR(Bound(paths.front(), log_severity, library.get()));
  *out = library.release();
  opened.store(*out);
  return Status::Ok();
}

const Library& TheLibrary() { return *opened.load(); }

Status FromOrt(OrtStatus* status, const std::string& doing) {
  if (status == nullptr) return Status::Ok();
  Status converted(CodeOf(Ort().GetErrorCode(status)),
                   "cannot " + doing + ": ONNX Runtime says: " + Ort().GetErrorMessage(status));
  Ort().ReleaseStatus(status);
  return converted;
}

}  // namespace fst::ort
