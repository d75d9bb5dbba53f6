#include "base/shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace fst {
namespace {

// EMFILE or ENFILE where dlerror() has its text, for dlopen leaves no errno; 0 for any other text.
int DescriptorErrorIn(const std::string& reason) {
  for (const int error : {ENFILE, EMFILE}) {  // the text of the latter is a part of the other's
    const std::string text = ErrnoText(error);
    if (reason.find(text.substr(0, text.rfind(" ("))) != std::string::npos) return error;
  }
  return 0;
}

}  // namespace

Status SharedLibrary::Open(const std::string& name, SharedLibrary* out, int flags) {
  // Also before the dlopen: exit() must not run destructors while this thread is constructing.
  FST_RETURN_IF_ERROR(ExitGate::CloseBeforeDestructors());
  ExitGate::Call call;
  if (!call.open()) return Status(Code::COPIER_UNAVAILABLE, name + " is not loaded: the process is exiting");
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
  if (handle == nullptr) {
    const char* reason = dlerror();
    const int error = DescriptorErrorIn(reason ? reason : "");
    if (error != 0) return Status(Code::COPIER_UNAVAILABLE, ErrnoText(error) + DescriptorRemedy(error), error);
    return Status(Code::COPIER_UNAVAILABLE, reason ? reason : "dlopen failed without a reason: " + name);
  }
  FST_RETURN_IF_ERROR(ExitGate::CloseBeforeDestructors());
  out->handle_ = handle;
  struct link_map* map = nullptr;
  bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name[0] != '\0';
  out->path_ = known ? map->l_name : name;
  return Status::Ok();
}

std::string SharedLibrary::NameOf(const LibrarySpec& spec) {
  const char* chosen = getenv(spec.variable);
  return chosen != nullptr && chosen[0] != '\0' ? chosen : spec.soname;
}

Status SharedLibrary::OpenNamed(const LibrarySpec& spec, const std::string& name, SharedLibrary* out) {
  Status opened = Open(name, out);
  if (opened.ok()) return opened;
  const char* chosen = getenv(spec.variable);
  std::string remedy = std::string("; ") + spec.install;
  if (OutOfDescriptors(opened.os_error())) {
    remedy = "";  // it is said
  } else if (chosen != nullptr && name == chosen) {
    remedy = Format("; %s names this library; unset it to use the system's %s", spec.variable, spec.soname);
  }
  return Status(
      spec.unavailable,
      Format("%s %s cannot be loaded: %s%s", spec.name, name.c_str(), opened.message().c_str(), remedy.c_str()),
      opened.os_error());
}

Status SharedLibrary::CheckComplete(const LibrarySpec& spec, const SharedLibrary& library, const std::string& missing) {
  if (missing.empty()) return Status::Ok();
  return Status(spec.unavailable,
                Format("%s %s lacks %s; %s", spec.name, library.path().c_str(), missing.c_str(), spec.update));
}

std::vector<std::string> SharedLibrary::Loaded(const char* prefix) {
  std::pair<const char*, std::vector<std::string>> search(prefix, {});
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* argument) {
        auto* found = static_cast<decltype(search)*>(argument);
        const char* path = info->dlpi_name != nullptr ? info->dlpi_name : "";
        const char* slash = strrchr(path, '/');
        const char* name = slash != nullptr ? slash + 1 : path;
        if (strncmp(name, found->first, strlen(found->first)) == 0) found->second.emplace_back(path);
        return 0;
      },
      &search);
  return std::move(search.second);
}

void* SharedLibrary::Find(const char* symbol) const { return handle_ ? dlsym(handle_, symbol) : nullptr; }

}  // namespace fst
