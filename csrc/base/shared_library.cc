#include "base/shared_library.h"

#include <dlfcn.h>
#include <link.h>

namespace fst {

Status SharedLibrary::Open(const std::string& name, SharedLibrary* out) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Status(Code::COPIER_UNAVAILABLE, reason ? reason : "dlopen failed without a reason: " + name);
  }
  out->handle_ = handle;
  struct link_map* map = nullptr;
  bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name[0] != '\0';
  out->path_ = known ? map->l_name : name;
  return Status::Ok();
}

void* SharedLibrary::Find(const char* symbol) const { return handle_ ? dlsym(handle_, symbol) : nullptr; }

}  // namespace fst
