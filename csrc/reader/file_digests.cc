#include "reader/file_digests.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/io_error.h"
#include "reader/open_file.h"

namespace fst {
namespace {

constexpr size_t kDigestedAtOnce = 1 << 20;  // bytes: it stays in the second-level cache between read and digest

Status DigestRange(const FdFile& file, FileRange range, Digester& digester, char* piece,
                   std::atomic<uint64_t>& progress) {
  while (range.length > 0) {
    const size_t some = std::min<uint64_t>(range.length, kDigestedAtOnce);
    const ssize_t got = pread(file.fd(), piece, some, static_cast<off_t>(range.offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ReadFailed(file, range.offset, some, errno);
    if (got == 0) return EndedEarly(file, range.offset, 0, some);
    digester.Update(piece, static_cast<size_t>(got));
    range.offset += static_cast<uint64_t>(got);
    range.length -= static_cast<uint64_t>(got);
    progress.fetch_add(static_cast<uint64_t>(got), std::memory_order_relaxed);
  }
  return Status::Ok();
}

}  // namespace

Status DigestFile(const std::string& path, const FileIdentity& expected, DigestKind kind,
                  const std::vector<FileRange>& ranges, std::atomic<uint64_t>* progress, std::vector<Digest>* out) {
  UniqueFd fd;
  FST_RETURN_IF_ERROR(OpenUnchanged(path, 0, expected, &fd));
  const FdFile file(path, expected, std::move(fd));
  const std::unique_ptr<char[]> piece(new char[kDigestedAtOnce]);
  for (const FileRange& range : ranges) {
    auto digester = Digester::New(kind);
    FST_RETURN_IF_ERROR(DigestRange(file, range, *digester, piece.get(), *progress));
    out->push_back(digester->Finish());
  }
  return file.CheckUnchanged();
}

}  // namespace fst
