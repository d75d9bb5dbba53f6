// Libraries that a machine may lack, opened by dlopen at run time: nothing to link with. None is ever closed: drivers
// keep threads and static state of their own. exit() takes them down all the same: functions that threads of ours call
// are members of type Gated. All functions here: any thread.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/exit_gate.h"
#include "base/io_error.h"
#include "base/status.h"

namespace fst {

// Where a library is looked for, and the words of the errors when it cannot be used.
struct LibrarySpec {
  Code unavailable;      // the code of every error
  const char* name;      // "the CUDA driver library"
  const char* variable;  // of the environment: a path to open instead of `soname`
  const char* soname;    // "libcuda.so.1"
  const char* install;   // what to do when `soname` cannot be opened
  const char* update;    // what to do when the library lacks a function
};

class SharedLibrary {
 public:
  // dlopen of `name` (a path or a soname) with RTLD_NOW | RTLD_LOCAL | `flags`. COPIER_UNAVAILABLE with dlerror()'s
  // text, or with os_error EMFILE or ENFILE and the remedy. exit() waits for it, a second at most; after that none
  // begins.
  static Status Open(const std::string& name, SharedLibrary* out, int flags = 0);

  // The path or soname to open: what the environment's variable holds, else the soname.
  static std::string NameOf(const LibrarySpec& spec);

  // Opens `name` and fills *api: `void Api::Bind(const SharedLibrary&, std::string* missing)` resolves every function,
  // `Api::library` becomes the file that was loaded. Errors have the spec's code, and name the library and either why
  // it cannot be opened or each required function that it lacks. On failure *api is unspecified.
  template <class Api>
  static Status Load(const LibrarySpec& spec, const std::string& name, Api* api) {
    SharedLibrary library;
    std::string missing;
    FST_RETURN_IF_ERROR(OpenNamed(spec, name, &library));
    api->Bind(library, &missing);
    api->library = library.path();
    return CheckComplete(spec, library, missing);
  }

  // Load(NameOf(spec)), once per process and name: a failure is remembered, too, unless it was that no descriptor was
  // left. *api is valid until the process ends.
  template <class Api>
  static Status LoadOnce(const LibrarySpec& spec, const Api** api) {
    struct Entry {
      Status status;
      Api api;
    };
    static auto* mutex = new std::mutex;
    static auto* entries = new std::map<std::string, std::unique_ptr<Entry>>;  // outlives threads that hold an api
    const std::string name = NameOf(spec);
    std::lock_guard<std::mutex> lock(*mutex);
    std::unique_ptr<Entry>& entry = (*entries)[name];
    if (entry == nullptr || OutOfDescriptors(entry->status.os_error())) {
      entry = std::make_unique<Entry>();
      entry->status = Load(spec, name, &entry->api);
    }
    FST_RETURN_IF_ERROR(entry->status);
    *api = &entry->api;
    return Status::Ok();
  }

  // The files that this process has loaded, by whomever, whose name begins with `prefix`, in the order of loading.
  static std::vector<std::string> Loaded(const char* prefix);

  // The address of `symbol`, or null when the library lacks it.
  void* Find(const char* symbol) const;

  // Sets *function to `symbol`. When the library lacks it: to null, and appends its name to *missing (null for a
  // function that is optional).
  template <class Function>
  void Resolve(const char* symbol, Function* function, std::string* missing) const {
    *function = reinterpret_cast<Function>(Find(symbol));
    if (*function == nullptr && missing != nullptr) *missing += (missing->empty() ? "" : ", ") + std::string(symbol);
  }

  template <class Pointer, class Refused>
  void Resolve(const char* symbol, Gated<Pointer, Refused>* function, std::string* missing) const {
    Resolve(symbol, &function->pointer, missing);
  }

  // The file that was loaded.
  const std::string& path() const { return path_; }

 private:
  static Status OpenNamed(const LibrarySpec& spec, const std::string& name, SharedLibrary* out);
  static Status CheckComplete(const LibrarySpec& spec, const SharedLibrary& library, const std::string& missing);

  void* handle_ = nullptr;
  std::string path_;
};

}  // namespace fst
