// What readers of ordinary descriptors share: opening the file that the header was read from, and the errors of a read.
#pragma once
#include <string>

#include "base/fd.h"
#include "reader/reader.h"

namespace fst {

// A file that is read through a descriptor.
class FdFile : public ReaderFile {
 public:
  FdFile(const std::string& path, const FileIdentity& identity, UniqueFd fd)
      : ReaderFile(path, identity), fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }
  // IO_ERROR, FILE_CHANGED. Any thread.
  Status CheckUnchanged() const { return identity().CheckUnchanged(fd(), path()); }

 private:
  UniqueFd fd_;
};

// Opens `path` for reading and compares it with `expected`: IO_ERROR, FILE_CHANGED. `flags` is added to open(2)'s; with
// none, takes the descriptor that the header was read through where that is cached. Any thread; blocks.
Status OpenUnchanged(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out);

// The same, with a descriptor of its own in any case.
Status OpenAnew(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out);

// OpenUnchanged with O_DIRECT, or without it where the file system refuses that; `*direct` says which.
Status OpenDirect(const std::string& path, const FileIdentity& expected, UniqueFd* out, bool* direct);

// IO_ERROR: a read of `length` bytes at `offset` failed with the errno `error`.
Status ReadFailed(const ReaderFile& file, uint64_t offset, size_t length, int error);

// `got` bytes came of a read at `offset` that had to bring `required`, and the file is as it was: UNEXPECTED_EOF at its
// end, SHORT_READ before that.
Status EndedEarly(const ReaderFile& file, uint64_t offset, size_t got, size_t required);

}  // namespace fst
