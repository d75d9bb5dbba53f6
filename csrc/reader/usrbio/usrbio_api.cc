#include "reader/usrbio/usrbio_api.h"

#include <dirent.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "base/text.h"

namespace fst::usrbio {
namespace {

constexpr char kBaseName[] = "libhf3fs_api_shared";
constexpr LibrarySpec kLibrary = {
    Code::COPIER_UNAVAILABLE,
    "the 3FS client library",
    "FASTSAFETENSORS_3FS_LIB",
    "libhf3fs_api_shared.so",
    "install the 3FS client with all libraries that it needs, or set FASTSAFETENSORS_3FS_LIB to its library",
    "install a newer 3FS client",
};

std::string Env(const char* name) {
  const char* value = getenv(name);
  return value ? value : "";
}

bool IsFile(const std::string& path) {
  struct stat st;
  return stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode);
}

// "libhf3fs_api_shared.so", "….so.1" and, as auditwheel names its copies, "libhf3fs_api_shared-1a2b3c4d.so".
bool IsLibraryName(const std::string& name) {
  size_t length = strlen(kBaseName);
  if (name.compare(0, length, kBaseName) != 0) return false;
  size_t so = name.find(".so", length);
  if (so == std::string::npos || (so != length && name[length] != '-')) return false;
  return so + 3 == name.size() || name[so + 3] == '.';
}

// The library in `folder`, the plain name first; "" when there is none.
std::string InFolder(const std::string& folder) {
  std::string plain = folder + "/" + kLibrary.soname;
  if (IsFile(plain)) return plain;
  DIR* dir = opendir(folder.c_str());
  if (dir == nullptr) return "";
  std::vector<std::string> names;
  while (dirent* entry = readdir(dir)) {
    if (IsLibraryName(entry->d_name) && IsFile(folder + "/" + entry->d_name)) names.emplace_back(entry->d_name);
  }
  closedir(dir);
  if (names.empty()) return "";
  return folder + "/" + *std::min_element(names.begin(), names.end());
}

// Numbers within names count as numbers: python3.12 comes after python3.9.
bool VersionLess(const std::string& a, const std::string& b) { return strverscmp(a.c_str(), b.c_str()) < 0; }

std::vector<std::string> Glob(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  std::sort(paths.begin(), paths.end(), [](const std::string& a, const std::string& b) { return VersionLess(b, a); });
  return paths;
}

// The folders that /etc/ld.so.conf adds to the loader's own. ld.so.cache is not read: it names no other folder.
void ConfiguredFolders(const std::string& file, int depth, std::vector<std::string>* folders) {
  for (const std::string& line : Split(ReadText(file.c_str()), "\n")) {
    std::vector<std::string> words = Split(line.substr(0, line.find('#')), " \t,:");
    if (words.empty()) continue;
    if (words[0] == "include" && depth < 4) {
      for (size_t i = 1; i < words.size(); i++) {
        std::string pattern = words[i][0] == '/' ? words[i] : "/etc/" + words[i];
        for (const std::string& included : Glob(pattern)) ConfiguredFolders(included, depth + 1, folders);
      }
    } else if (words[0][0] == '/') {
      folders->push_back(words[0]);
    }
  }
}

std::vector<std::string> SystemFolders() {
  std::vector<std::string> folders;
  ConfiguredFolders("/etc/ld.so.conf", 0, &folders);
#if defined(__aarch64__)
  const char* multiarch = "aarch64-linux-gnu";
#else
  const char* multiarch = "x86_64-linux-gnu";
#endif
  for (const char* base : {"/lib/", "/usr/lib/"}) folders.push_back(base + std::string(multiarch));
  for (const char* folder : {"/lib64", "/usr/lib64", "/lib", "/usr/lib"}) folders.emplace_back(folder);
  return folders;
}

// Where installed hf3fs_py_usrbio wheels may have the library, in order of preference.
std::vector<std::string> WheelFolders() {
  std::vector<std::string> packages = Split(Env("PYTHONPATH"), ":");
  auto add = [&packages](const std::string& prefix) {
    for (const char* kind : {"/lib/python3*/site-packages", "/lib/python3*/dist-packages"}) {
      for (std::string& path : Glob(prefix + kind)) packages.push_back(std::move(path));
    }
  };
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    std::string prefix = Env(name);
    if (!prefix.empty()) add(prefix);
  }
  std::string home = Env("HOME");
  if (!home.empty()) add(home + "/.local");
  add("/usr/local");
  add("/usr");
  std::vector<std::string> folders;
  for (const std::string& package : packages) {
    for (const char* kind : {"/hf3fs_py_usrbio*.libs", "/hf3fs_py_usrbio/.libs", "/hf3fs_fuse/.libs", "",
                             "/hf3fs_py_usrbio/lib", "/hf3fs_py_usrbio"}) {
      for (std::string& path : Glob(package + kind)) folders.push_back(std::move(path));
    }
  }
  return folders;
}

// On OK, *out is not empty; else the status says where it searched.
Status Locate(std::string* out) {
  out->clear();
  std::string file = Env("FASTSAFETENSORS_3FS_LIB");
  if (!file.empty()) {
    // An explicit choice that fails is an error: no other library replaces it.
    if (!IsFile(file)) {
      return Status(
          Code::COPIER_UNAVAILABLE,
          Format("FASTSAFETENSORS_3FS_LIB names \"%s\", which is not a file; set it to the path of %s, or unset it",
                 file.c_str(), kLibrary.soname));
    }
    *out = file;
    return Status::Ok();
  }
  std::string folder = Env("HF3FS_LIB_DIR"), searched;
  if (!folder.empty() && !(*out = InFolder(folder)).empty()) return Status::Ok();
  if (!folder.empty()) searched = Format("HF3FS_LIB_DIR (%s), ", folder.c_str());
  for (const auto& folders : {Split(Env("LD_LIBRARY_PATH"), ":;"), SystemFolders(), WheelFolders()}) {
    for (const std::string& candidate : folders) {
      if (!(*out = InFolder(candidate)).empty()) return Status::Ok();
    }
  }
  return Status(
      Code::COPIER_UNAVAILABLE,
      Format("the 3FS client library %s was not found in %sLD_LIBRARY_PATH, the system's library folders or an "
             "installed hf3fs_py_usrbio wheel; install the 3FS client, or set FASTSAFETENSORS_3FS_LIB to the file",
             kLibrary.soname, searched.c_str()));
}

std::string LimitText(rlim_t limit) {
  return limit == RLIM_INFINITY ? "unlimited" : std::to_string(static_cast<unsigned long long>(limit));
}

}  // namespace

void UsrbioApi::Bind(const SharedLibrary& from, std::string* missing) {
#define X(name) from.Resolve("hf3fs_" #name, &name, missing);
  FST_USRBIO_API(X)
#undef X
}

std::string FindHf3fsLibrary() {
  std::string path;
  return Locate(&path).ok() ? path : "";
}

bool OpenFilesLimitIsDangerous(const rlimit& limit, rlimit* lowered) {
  *lowered = limit;
  if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max <= kMaxOpenFilesLimit) return false;
  lowered->rlim_max = kLoweredOpenFilesLimit;
  if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > kLoweredOpenFilesLimit)
    lowered->rlim_cur = kLoweredOpenFilesLimit;
  return true;
}

Status LowerOpenFilesLimit(const rlimit& current, int (*set)(const rlimit*), std::string* note) {
  note->clear();
  rlimit lowered;
  if (!OpenFilesLimitIsDangerous(current, &lowered)) return Status::Ok();
  std::string from = LimitText(current.rlim_max), to = LimitText(lowered.rlim_max);
  if (set(&lowered) != 0) {
    return Status(
        Code::COPIER_UNAVAILABLE,
        Format(
            "the hard limit of open files (RLIMIT_NOFILE) is %s: the 3FS client library allocates a slot for each when "
            "it is loaded, which takes minutes and GiBs or aborts the process; expected at most %llu, and lowering "
            "it to %s failed: %s; start the process with `ulimit -Hn %s`",
            from.c_str(), static_cast<unsigned long long>(kMaxOpenFilesLimit), to.c_str(), ErrnoText(errno).c_str(),
            to.c_str()));
  }
  *note = Format(
      "lowered the hard limit of open files from %s to %s, since the 3FS client library allocates a slot for each",
      from.c_str(), to.c_str());
  return Status::Ok();
}

Status LoadUsrbio(const UsrbioApi** out) {
  static std::mutex mutex;
  static const UsrbioApi* loaded = nullptr;  // never freed, like the library
  static auto& lowered = *new std::string;   // survives a failed dlopen, as the lowered limit does
  std::lock_guard<std::mutex> lock(mutex);
  if (loaded == nullptr) {
    std::string path, note;
    FST_RETURN_IF_ERROR(Locate(&path));
    rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
      return Status(Code::COPIER_UNAVAILABLE, "getrlimit(RLIMIT_NOFILE) failed: " + ErrnoText(errno));
    }
    FST_RETURN_IF_ERROR(LowerOpenFilesLimit(
        limit, [](const rlimit* l) { return setrlimit(RLIMIT_NOFILE, l); }, &note));
    if (!note.empty()) lowered = note;
    auto api = std::make_unique<UsrbioApi>();
    FST_RETURN_IF_ERROR(SharedLibrary::Load(kLibrary, path, api.get()));
    api->note = lowered;
    loaded = api.release();
  }
  *out = loaded;
  return Status::Ok();
}

}  // namespace fst::usrbio
