#include "base/file_identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "base/io_error.h"
#include "base/mounts.h"

namespace fst {

namespace {

Status CheckRegular(mode_t mode, const std::string& path) {
  if (S_ISREG(mode)) return Status::Ok();
  const char* kind = S_ISDIR(mode) ? "a folder" : "not a regular file";
  return Status(Code::IO_ERROR, path + " is " + kind + ", expected a regular file").At(path);
}

FileIdentity IdentityOf(const struct statx& info) {
  return {makedev(info.stx_dev_major, info.stx_dev_minor), info.stx_ino, info.stx_size,
          info.stx_mtime.tv_sec * 1000000000 + info.stx_mtime.tv_nsec};
}

}  // namespace

Status FileIdentity::Of(int fd, const std::string& path, FileIdentity* out) {
  struct stat info;
  if (fstat(fd, &info) != 0) return IoError(path, "cannot stat " + path, errno);
  FST_RETURN_IF_ERROR(CheckRegular(info.st_mode, path));
  *out = {info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size),
          static_cast<int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec};
  return Status::Ok();
}

Status FileIdentity::OfServer(int fd, const std::string& path, FileIdentity* out) {
  struct statx info;
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &info) != 0) {
    const int error = errno;
    // Where a container forbids statx.
    return error == ENOSYS || error == EPERM ? Of(fd, path, out) : IoError(path, "cannot stat " + path, error);
  }
  FST_RETURN_IF_ERROR(CheckRegular(info.stx_mode, path));
  *out = IdentityOf(info);
  return Status::Ok();
}

bool FileIdentity::OfPath(const std::string& path, FileIdentity* out) {
  struct statx info;
  if (statx(AT_FDCWD, path.c_str(), AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &info) != 0) return false;
  *out = IdentityOf(info);
  return true;
}

Status FileIdentity::CheckSame(const FileIdentity& now, const std::string& path) const {
  if (*this == now) return Status::Ok();
  FileIdentity here = now;
  here.dev = dev;
  if (*this == here && IsOnThreeFs(path)) return Status::Ok();
  std::string what;
  if (dev != now.dev || ino != now.ino) {
    what = "it was replaced by another file";
  } else if (size != now.size) {
    what = "its size went from " + std::to_string(size) + " to " + std::to_string(now.size) + " bytes";
  } else {
    what = "its modification time moved";
  }
  return Status(Code::FILE_CHANGED,
                path + " changed while it was read: " + what + "; load it again when its writer is done")
      .At(path);
}

Status FileIdentity::CheckUnchanged(int fd, const std::string& path) const {
  FileIdentity now;
  FST_RETURN_IF_ERROR(Of(fd, path, &now));
  if (*this != now) FST_RETURN_IF_ERROR(OfServer(fd, path, &now));
  return CheckSame(now, path);
}

}  // namespace fst
