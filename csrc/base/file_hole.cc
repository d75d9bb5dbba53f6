#include "base/file_hole.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/fd.h"
#include "base/io_error.h"

namespace fst {

Status IsHole(const std::string& path, bool* out) {
  *out = false;
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat found;
  if (!fd.valid() || fstat(fd.get(), &found) != 0) return IoError(path, "cannot open " + path, errno);
  *out = S_ISREG(found.st_mode) && found.st_size > 0 && lseek(fd.get(), 0, SEEK_DATA) < 0 && errno == ENXIO;
  return Status::Ok();
}

}  // namespace fst
