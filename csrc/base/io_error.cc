#include "base/io_error.h"

#include <sys/resource.h>

#include <cerrno>

#include "base/mounts.h"

namespace fst {

bool OutOfDescriptors(int error) { return error == EMFILE || error == ENFILE; }

std::string DescriptorRemedy(int error) {
  if (error == ENFILE) return "; no process of this system can open more: raise fs.file-max";
  rlimit limit;
  if (error != EMFILE || getrlimit(RLIMIT_NOFILE, &limit) != 0) return "";
  return Format("; this process may have %llu open: raise the limit of open files (ulimit -n)",
                static_cast<unsigned long long>(limit.rlim_cur));
}

Status IoError(const std::string& path, const std::string& what, int error) {
  const std::string dead = DeadThreeFs(path, error);
  if (!dead.empty()) {
    return Status(Code::THREEFS_DISCONNECTED,
                  Format("%s: %s; the 3FS mount %s has lost its daemon: restart hf3fs_fuse and load again",
                         what.c_str(), ErrnoText(error).c_str(), dead.c_str()),
                  error)
        .At(path);
  }
  return Status(Code::IO_ERROR, what + ": " + ErrnoText(error) + DescriptorRemedy(error), error).At(path);
}

}  // namespace fst
