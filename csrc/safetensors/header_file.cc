#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <new>

#include "base/fd.h"
#include "base/fd_turn.h"
#include "base/io_error.h"
#include "base/mounts.h"
#include "safetensors/header.h"
#include "safetensors/other_format.h"
#include "safetensors/sums.h"

namespace fst {

namespace {

// Bytes of one read, of those that are counted.
constexpr uint64_t kLongestRead = 1 << 20;

// Bytes of the first read: most headers fit, and cost one round trip to the storage.
constexpr uint64_t kFirstRead = kFormatBytes;

// The file gave no byte at `offset`, which lies before the end that it had.
Status EndedEarly(int fd, uint64_t length, uint64_t offset, const FileIdentity& before, const std::string& path) {
  FileIdentity now;
  FST_RETURN_IF_ERROR(FileIdentity::OfServer(fd, path, &now));
  const bool shrank = now.size < before.size;
  return Status(shrank ? Code::UNEXPECTED_EOF : Code::SHORT_READ,
                Format("%s ends at byte %llu, expected %llu more bytes of its header: %s", path.c_str(),
                       static_cast<unsigned long long>(offset), static_cast<unsigned long long>(length),
                       shrank ? "it shrank while it was read"
                              : "its store has none there, although it says there are; does it have a hole, which 3FS "
                                "cannot read? Write it again"))
      .At(path, {}, static_cast<int64_t>(offset));
}

// Reads exactly `length` bytes at `offset`, and counts them in `bytes_read` unless it is null.
Status ReadExactly(int fd, uint8_t* to, uint64_t length, uint64_t offset, const FileIdentity& before,
                   const std::string& path, std::atomic<uint64_t>* bytes_read) {
  while (length > 0) {
    ssize_t got = pread(fd, to, std::min(length, kLongestRead), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      const int error = errno;
      return IoError(path,
                     Format("cannot read %llu bytes at byte %llu of %s", static_cast<unsigned long long>(length),
                            static_cast<unsigned long long>(offset), path.c_str()),
                     error)
          .At(path, {}, static_cast<int64_t>(offset));
    }
    if (got > 0 && bytes_read != nullptr) bytes_read->fetch_add(static_cast<uint64_t>(got));
    if (got == 0) return EndedEarly(fd, length, offset, before, path);
    to += got;
    offset += static_cast<uint64_t>(got);
    length -= static_cast<uint64_t>(got);
  }
  return Status::Ok();
}

}  // namespace

Status ReadHeader(const std::string& path, const HeaderOptions& options, Header* out, FileIdentity* identity,
                  HeaderFdCache* fd_cache) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    return Status(Code::INVALID_ARGUMENT, path.empty() ? "the path is empty" : "the path holds a NUL").At(path);
  }
  FdTurn turn;  // many headers are read at a time
  UniqueFd fd;
  FST_RETURN_IF_ERROR(turn.Open([&] { return OpenForReading(path, 0, &fd); }));
  FileIdentity before;
  FST_RETURN_IF_ERROR(FileIdentity::Of(fd.get(), path, &before));
  NoteDevice(before.dev);
  const uint64_t first = std::min(before.size, kFirstRead);
  auto allocate = [](uint64_t size) { return std::unique_ptr<uint8_t[]>(new (std::nothrow) uint8_t[size]); };
  std::unique_ptr<uint8_t[]> bytes = allocate(kFirstRead);
  uint64_t n = 0, total = first;
  if (bytes) {
    FST_RETURN_IF_ERROR(ReadExactly(fd.get(), bytes.get(), first, 0, before, path, options.bytes_read));
    // ParseHeader says what is wrong with a length.
    if (CheckHeaderLength(bytes.get(), before.size, path, &n).ok() && 8 + n > first) {
      total = 8 + n;
      std::unique_ptr<uint8_t[]> whole = allocate(total);
      if (whole) {
        std::copy(bytes.get(), bytes.get() + first, whole.get());
        FST_RETURN_IF_ERROR(
            ReadExactly(fd.get(), whole.get() + first, total - first, first, before, path, options.bytes_read));
      }
      bytes = std::move(whole);
    }
  }
  if (!bytes) {
    return Status(Code::OUT_OF_HOST_MEMORY, Format("no memory for the header of %s, %llu bytes", path.c_str(),
                                                   static_cast<unsigned long long>(total)))
        .At(path);
  }
  FST_RETURN_IF_ERROR(before.CheckUnchanged(fd.get(), path));
  FST_RETURN_IF_ERROR(ParseHeader(bytes.get(), total, before.size, options, path, out));
  // A link that leads nowhere, and what cannot be looked at, are there: who reads it will say what is wrong.
  struct stat sums;
  const bool absent =
      lstat((path + kSumsSuffix).c_str(), &sums) != 0 && (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG);
  out->has_sums_file = !absent;
  if (identity) *identity = before;
  if (fd_cache) fd_cache->Put(path, std::move(fd));
  return Status::Ok();
}

}  // namespace fst
