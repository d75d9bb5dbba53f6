#include "base/file_identity.h"

#include <sys/stat.h>

#include <cerrno>

namespace fst {

Status FileIdentity::Of(int fd, const std::string& path, FileIdentity* out) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return Status(Code::IO_ERROR, Format("%s: fstat failed: %s", path.c_str(), ErrnoText(errno).c_str())).At(path);
  }
  out->dev = info.st_dev;
  out->ino = info.st_ino;
  out->size = static_cast<uint64_t>(info.st_size);
  out->mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec;
  return Status::Ok();
}

Status FileIdentity::Compare(const FileIdentity& now, const std::string& path) const {
  std::string what;
  if (now.size != size) {
    what = Format("its size was %llu and is %llu bytes", static_cast<unsigned long long>(size),
                  static_cast<unsigned long long>(now.size));
  } else if (now.ino != ino || now.dev != dev) {
    what = "another file stands under this name";
  } else if (now.mtime_ns != mtime_ns) {
    what = "its modification time moved";
  } else {
    return Status::Ok();
  }
  return Status(Code::FILE_CHANGED, Format("%s changed since its header was read: %s; load it again when nobody writes to it",
                                           path.c_str(), what.c_str()))
      .At(path);
}

}  // namespace fst
