#include "reader/open_file.h"

#include <fcntl.h>

#include <cerrno>

#include "base/header_fd_cache.h"
#include "base/io_error.h"

namespace fst {

Status OpenUnchanged(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out) {
  if (flags == 0) {
    *out = HeaderFdCache::Take(path, expected);
    if (out->valid()) return Status::Ok();
  }
  return OpenAnew(path, flags, expected, out);
}

Status OpenAnew(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out) {
  UniqueFd fd;
  FST_RETURN_IF_ERROR(OpenForReading(path, flags, &fd));
  FST_RETURN_IF_ERROR(expected.CheckUnchanged(fd.get(), path));
  *out = std::move(fd);
  return Status::Ok();
}

Status OpenDirect(const std::string& path, const FileIdentity& expected, UniqueFd* out, bool* direct) {
  Status opened = OpenUnchanged(path, O_DIRECT, expected, out);
  *direct = opened.os_error() != EINVAL;
  return *direct ? opened : OpenUnchanged(path, 0, expected, out);
}

Status ReadFailed(const ReaderFile& file, uint64_t offset, size_t length, int error) {
  return IoError(file.path(),
                 Format("%s: reading %zu bytes at offset %llu failed", file.path().c_str(), length,
                        static_cast<unsigned long long>(offset)),
                 error)
      .At(file.path(), {}, static_cast<int64_t>(offset));
}

Status EndedEarly(const ReaderFile& file, uint64_t offset, size_t got, size_t required) {
  const uint64_t end = offset + got;
  auto number = [](uint64_t n) { return static_cast<unsigned long long>(n); };
  if (end >= file.size()) {
    return Status(
               Code::UNEXPECTED_EOF,
               Format("%s ends at byte %llu, but its header promises bytes up to %llu; was it cut short while it was "
                      "read?",
                      file.path().c_str(), number(end), number(offset + required)))
        .At(file.path(), {}, static_cast<int64_t>(end));
  }
  return Status(
             Code::SHORT_READ,
             Format("%s: a read of %zu bytes at offset %llu gave %zu, although the file has %llu bytes: its store has "
                    "none from byte %llu on; is it still being written, or does it have a hole, which 3FS cannot "
                    "read? Write it again",
                    file.path().c_str(), required, number(offset), got, number(file.size()), number(end)))
      .At(file.path(), {}, static_cast<int64_t>(end));
}

}  // namespace fst
