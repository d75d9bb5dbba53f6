#include "tf/c_api.h"

#include <dlfcn.h>

#include "base/shared_library.h"

namespace fst::tf {

Status FindTensorFlow(Api* out) {
  std::string missing;
  // libtensorflow.so.2 or libtensorflow_cc.so.2. libtensorflow_framework has a part of the functions, which dlsym on
  // the others finds as well.
  for (const std::string& path : SharedLibrary::Loaded("libtensorflow")) {
    SharedLibrary library;
    // Never unloaded: the library keeps pointers to our functions, and we to its functions.
    if (!SharedLibrary::Open(path, &library, RTLD_NOLOAD | RTLD_NODELETE).ok()) continue;
    Api api;
    std::string lacks;
#define X(result, name, parameters) library.Resolve("TF_" #name, &api.name, &lacks);
    FST_TF_API(X)
#undef X
    if (lacks.empty()) {
      api.library = path;
      *out = std::move(api);
      return Status::Ok();
    }
    missing += Format("%s%s lacks %s", missing.empty() ? "" : "; ", path.c_str(), lacks.c_str());
  }
  if (missing.empty()) {
    return Status(Code::DEVICE_UNAVAILABLE,
                  "this process has loaded no TensorFlow library; require @tensorflow/tfjs-node or -gpu first");
  }
  return Status(Code::DEVICE_UNAVAILABLE,
                "TensorFlow's C API is not whole: " + missing + "; expected 1.15 or newer (tfjs-node 2 or newer)");
}

}  // namespace fst::tf
