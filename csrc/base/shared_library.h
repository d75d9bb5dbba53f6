// dlopen with the reason of a failure. Libraries are never closed: drivers keep threads and static state of their own.
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

class SharedLibrary {
 public:
  // Opens `name` (a path or a soname) with RTLD_NOW | RTLD_LOCAL. The status (COPIER_UNAVAILABLE) carries dlerror()'s
  // text.
  static Status Open(const std::string& name, SharedLibrary* out);

  // The address of `symbol`, or null when the library lacks it.
  void* Find(const char* symbol) const;

  // The file that was really loaded.
  const std::string& path() const { return path_; }
  bool valid() const { return handle_ != nullptr; }

 private:
  void* handle_ = nullptr;
  std::string path_;
};

}  // namespace fst
