#include "reader/file_copy.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/io_error.h"
#include "base/page.h"
#include "reader/open_file.h"

namespace fst {
namespace {

// Bytes that stay in the second-level cache between read and write. With two threads ext4 took 0.3 s for 1 GiB so, and
// 0.5 s by copy_file_range(2) where the two offsets differ within pages, whose bytes it then moves one page at a time.
constexpr size_t kPiece = 1 << 20;
constexpr size_t kMaxCall = 8 << 20;  // of one copy_file_range(2), for the disk to begin with

// The file system then finds room for the whole range at once, and threads that write to one file wait less for each
// other: a quarter of the time. IO_ERROR for a full disk; where this is not supported, writing finds the room.
Status Reserve(const CopyRange& range, const FilePlace& target) {
  const auto position = static_cast<off_t>(range.position), length = static_cast<off_t>(range.length);
  while (fallocate(target.fd, 0, position, length) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
      return IoError(target.path, "cannot write " + target.path, errno);
    break;
  }
  return Status::Ok();
}

void Advance(CopyRange& range, uint64_t done, std::atomic<uint64_t>& progress) {
  range = {range.offset + done, range.length - done, range.position + done};
  progress.fetch_add(done, std::memory_order_relaxed);
}

// As much as the kernel copies by itself, or shares, from whole page to whole page. What it leaves, for whatever
// reason, is to be copied in the other way, which has the errors.
void CopyPages(const FdFile& source, CopyRange& range, const FilePlace& target, std::atomic<uint64_t>& progress) {
  while (range.length >= kPage) {
    auto from = static_cast<off_t>(range.offset), to = static_cast<off_t>(range.position);
    const off_t position = to;
    const size_t most = std::min<uint64_t>(range.length / kPage * kPage, kMaxCall);
    const ssize_t copied = copy_file_range(source.fd(), &from, target.fd, &to, most, 0);
    if (copied < 0 && errno == EINTR) continue;
    if (copied <= 0) return;
    if (target.write_back) (void)sync_file_range(target.fd, position, copied, SYNC_FILE_RANGE_WRITE);
    Advance(range, static_cast<uint64_t>(copied), progress);
    if (range.offset % kPage != 0) return;
  }
}

Status CopyBytes(const FdFile& source, CopyRange range, FilePlace& target, char* piece,
                 std::atomic<uint64_t>& progress) {
  if (range.length > kPiece) FST_RETURN_IF_ERROR(Reserve(range, target));
  while (range.length > 0) {
    const size_t some = std::min<uint64_t>(range.length, kPiece);
    const ssize_t got = pread(source.fd(), piece, some, static_cast<off_t>(range.offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ReadFailed(source, range.offset, some, errno);
    if (got == 0) {
      FST_RETURN_IF_ERROR(source.CheckUnchanged());
      return EndedEarly(source, range.offset, 0, some);
    }
    target.position = static_cast<off_t>(range.position);
    FST_RETURN_IF_ERROR(WriteFully(piece, static_cast<size_t>(got), target));
    Advance(range, static_cast<uint64_t>(got), progress);
  }
  return Status::Ok();
}

Status CopyRangeOf(const FdFile& source, CopyRange range, FilePlace& target, char* piece,
                   std::atomic<uint64_t>& progress) {
  const bool same_in_page = range.offset % kPage == range.position % kPage;
  if (same_in_page && range.length > kPiece) {
    const CopyRange head = {range.offset, (kPage - range.offset % kPage) % kPage, range.position};
    FST_RETURN_IF_ERROR(CopyBytes(source, head, target, piece, progress));
    range = {range.offset + head.length, range.length - head.length, range.position + head.length};
    CopyPages(source, range, target, progress);
  }
  return CopyBytes(source, range, target, piece, progress);
}

}  // namespace

Status CopyRanges(const std::string& path, const FileIdentity& expected, const std::vector<CopyRange>& ranges,
                  FilePlace target, std::atomic<uint64_t>* progress) {
  UniqueFd fd;
  FST_RETURN_IF_ERROR(OpenUnchanged(path, 0, expected, &fd));
  const FdFile source(path, expected, std::move(fd));
  const std::unique_ptr<char[]> piece(new char[kPiece]);
  for (const CopyRange& range : ranges) FST_RETURN_IF_ERROR(CopyRangeOf(source, range, target, piece.get(), *progress));
  return source.CheckUnchanged();
}

}  // namespace fst
