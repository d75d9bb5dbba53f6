#include "tf/c_api.h"

#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <vector>

namespace fst::tf {
namespace {

int Collect(dl_phdr_info* info, size_t, void* out) {
  if (info->dlpi_name == nullptr) return 0;
  const char* slash = strrchr(info->dlpi_name, '/');
  const char* name = slash != nullptr ? slash + 1 : info->dlpi_name;
  // libtensorflow.so.2 or libtensorflow_cc.so.2. libtensorflow_framework has a part of the functions, which dlsym on
  // the others finds as well.
  if (strncmp(name, "libtensorflow", strlen("libtensorflow")) == 0) {
    static_cast<std::vector<std::string>*>(out)->push_back(info->dlpi_name);
  }
  return 0;
}

// The first missing function; null when there is none.
const char* Resolve(void* library, Api* api) {
#define X(result, name, parameters)                                                \
  api->name = reinterpret_cast<result(*) parameters>(dlsym(library, "TF_" #name)); \
  if (api->name == nullptr) return "TF_" #name;
  FST_TF_API(X)
#undef X
  return nullptr;
}

}  // namespace

Status FindTensorFlow(Api* out) {
  std::vector<std::string> loaded;
  dl_iterate_phdr(Collect, &loaded);
  std::string missing;
  for (const std::string& path : loaded) {
    // Never unloaded: the library keeps pointers to our functions, and we to its functions.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
    if (library == nullptr) continue;
    Api api;
    const char* lacks = Resolve(library, &api);
    if (lacks == nullptr) {
      api.library = path;
      *out = std::move(api);
      return Status::Ok();
    }
    missing += Format("%s%s lacks %s", missing.empty() ? "" : ", ", path.c_str(), lacks);
    dlclose(library);
  }
  if (missing.empty()) {
    return Status(Code::DEVICE_UNAVAILABLE,
                  "this process has loaded no TensorFlow library; require @tensorflow/tfjs-node or -gpu first");
  }
  return Status(Code::DEVICE_UNAVAILABLE,
                "TensorFlow's C API is not whole: " + missing + "; expected 1.15 or newer (tfjs-node 2 or newer)");
}

}  // namespace fst::tf
