#include "reader/file_reader.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "base/header_fd_cache.h"
#include "base/task_pool.h"

namespace fst {
namespace {

constexpr size_t kPage = 4096;

class OpenedFile : public ReaderFile {
 public:
  OpenedFile(const std::string& path, const FileIdentity& identity, UniqueFd fd)
      : ReaderFile(path, identity), fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

Status TooShort(const ReadRequest& request, size_t got) {
  const std::string& path = request.file->path();
  return Status(
             Code::UNEXPECTED_EOF,
             Format(
                 "%s ends at byte %llu, but its header promises bytes up to %llu; was it cut short while it was read?",
                 path.c_str(), static_cast<unsigned long long>(request.offset + got),
                 static_cast<unsigned long long>(request.offset + request.required)))
      .At(path, {}, static_cast<int64_t>(request.offset + got));
}

// Reads until every required byte has arrived. A file that got shorter is FILE_CHANGED before it is UNEXPECTED_EOF:
// that names the reason.
Status ReadFully(const ReadRequest& request) {
  const auto& file = static_cast<const OpenedFile&>(*request.file);
  std::vector<iovec> vectors;
  vectors.reserve(request.pieces.size());
  for (const ReadPiece& piece : request.pieces) {
    vectors.push_back({reinterpret_cast<void*>(piece.address), piece.length});  // NOLINT(performance-no-int-to-ptr)
  }
  size_t done = 0, first = 0;
  Status failed;
  while (done < request.required) {
    int count = static_cast<int>(std::min<size_t>(vectors.size() - first, IOV_MAX));
    ssize_t got = preadv(file.fd(), &vectors[first], count, static_cast<off_t>(request.offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      int error = errno;
      failed =
          Status(Code::IO_ERROR,
                 Format("%s: reading %zu bytes at offset %llu failed: %s", file.path().c_str(), request.required - done,
                        static_cast<unsigned long long>(request.offset + done), ErrnoText(error).c_str()))
              .At(file.path(), {}, static_cast<int64_t>(request.offset + done));
      break;
    }
    if (got == 0) {
      failed = TooShort(request, done);
      break;
    }
    done += static_cast<size_t>(got);
    for (size_t left = static_cast<size_t>(got); left > 0;) {
      iovec& vector = vectors[first];
      size_t part = std::min(left, vector.iov_len);
      vector.iov_base = static_cast<char*>(vector.iov_base) + part;
      vector.iov_len -= part;
      left -= part;
      if (vector.iov_len == 0) ++first;
    }
  }
  FileIdentity now;
  FST_RETURN_IF_ERROR(FileIdentity::Of(file.fd(), file.path(), &now));
  FST_RETURN_IF_ERROR(file.identity().CheckSame(now, file.path()));
  return failed;
}

class FileReader : public Reader {
 public:
  explicit FileReader(const FileReaderOptions& options)
      : options_(options),
        threads_(options.threads > 0 ? options.threads : DefaultThreads()),
        pool_("fst-read", threads_) {
    needs_.chunk = options.chunk > 0 ? options.chunk : size_t{4} << 20;
    // Two more than there are threads: a thread that has finished finds its next read waiting.
    needs_.in_flight = threads_ + 2;
    needs_.slots = threads_ + 4;
    needs_.slots_at_first = 2;
    needs_.scatters = !options.direct;
    if (options.direct) {
      needs_.offset_alignment = needs_.length_alignment = needs_.memory_alignment = kPage;
      needs_.chunk = std::max(needs_.chunk / kPage * kPage, kPage);
      needs_.fills_host = false;
    }
  }

  const ReaderNeeds& needs() const override { return needs_; }

  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>&) override {
    queue_ = std::move(queue);
    return Status::Ok();
  }

  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    UniqueFd fd;
    errno = 0;  // other failures than open's leave it alone
    Status opened = OpenUnchanged(path, options_.direct ? O_DIRECT : 0, expected, &fd);
    bool refused = !opened.ok() && options_.direct && errno == EINVAL;
    if (refused) opened = OpenUnchanged(path, 0, expected, &fd);
    FST_RETURN_IF_ERROR(opened);
    if (refused) {
      std::lock_guard<std::mutex> lock(mutex_);
      fallbacks_.push_back({path, "direct", "buffered", "the file system refuses O_DIRECT"});
    }
    *out = std::make_shared<OpenedFile>(path, expected, std::move(fd));
    return Status::Ok();
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    bool drop = options_.drop_cache;
    return pool_.Post([queue = queue_, request = std::move(request), tag, drop]() mutable {
      Status status = ReadFully(request);
      if (drop && request.last) {
        // A hint: what other processes have mapped stays.
        posix_fadvise(static_cast<const OpenedFile&>(*request.file).fd(), 0, 0, POSIX_FADV_DONTNEED);
      }
      request.file.reset();  // before the completion: who sees it may count open files
      queue->Put({Completion::Kind::kRead, tag, std::move(status)});
    });
  }

  std::vector<Fallback> TakeFallbacks() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::move(fallbacks_);
  }

 private:
  // Some CPUs are left to the threads that issue, copy and take: with 16 of 16 a load from memory took 9 % longer than
  // with 12 (H200).
  static int DefaultThreads() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) - 4, 4, 16); }

  const FileReaderOptions options_;
  const int threads_;
  ReaderNeeds needs_;
  std::shared_ptr<CompletionQueue> queue_;
  TaskPool pool_;
  std::mutex mutex_;
  std::vector<Fallback> fallbacks_;
};

}  // namespace

Status OpenUnchanged(const std::string& path, int flags, const FileIdentity& expected, UniqueFd* out) {
  if (flags == 0) {
    UniqueFd kept = HeaderFdCache::Take(path, expected);
    if (kept.valid()) {
      *out = std::move(kept);
      return Status::Ok();
    }
  }
  UniqueFd fd = OpenForReading(path, flags);
  if (!fd.valid()) {
    int error = errno;
    const char* remedy = error == EMFILE ? "; raise the limit of open files (ulimit -n)" : "";
    Status status(Code::IO_ERROR, Format("%s cannot be opened: %s%s", path.c_str(), ErrnoText(error).c_str(), remedy));
    errno = error;
    return status.At(path);
  }
  FileIdentity now;
  FST_RETURN_IF_ERROR(FileIdentity::Of(fd.get(), path, &now));
  FST_RETURN_IF_ERROR(expected.CheckSame(now, path));
  *out = std::move(fd);
  return Status::Ok();
}

std::unique_ptr<Reader> NewFileReader(const FileReaderOptions& options) {
  return std::make_unique<FileReader>(options);
}

}  // namespace fst
