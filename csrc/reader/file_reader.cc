#include "reader/file_reader.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "base/file_system.h"
#include "base/page.h"
#include "base/task_pool.h"
#include "device/strided_copy.h"
#include "reader/open_file.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace fst {
namespace {

// Direct reads wait for the disk and take hardly any of the CPU: many small ones keep its queues full (2.5 GB/s of one
// virtual NVMe disk, where 4 of 4 MiB brought 2.0).
constexpr int kDirectThreads = 16;
constexpr size_t kDirectChunk = size_t{1} << 20;
// A GPU has its first bytes after 0.2 ms, where those of a whole read come after 2.
constexpr size_t kFirstChunk = size_t{512} << 10;
// Bytes that a thread reads at a time to pick short runs out of them: they stay in the second-level cache.
constexpr size_t kPickedFrom = size_t{240} << 10;
// The same where it tells of bytes that have arrived.
constexpr size_t kArriving = size_t{256} << 10;
// Bytes of runs that go past the caches: fewer are likely to be used while they are there.
constexpr size_t kStreamed = size_t{256} << 10;
// A shorter hole between two runs is read as well: it lies in their pages, and costs less than another system call.
constexpr size_t kPickedHole = kPage;
// The same for what converts, between two tensors, and through a slot: these bytes are copied once more.
constexpr size_t kGapInCache = 2048;

// Reads pieces that lie together in the file, from `offset` on, until `required` bytes have arrived.
Status ReadTogether(const FdFile& file, std::vector<iovec>* vectors, uint64_t offset, size_t required) {
  size_t done = 0, first = 0;
  while (done < required) {
    int count = static_cast<int>(std::min<size_t>(vectors->size() - first, IOV_MAX));
    ssize_t got = preadv(file.fd(), &(*vectors)[first], count, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ReadFailed(file, offset + done, required - done, errno);
    if (got == 0) return EndedEarly(file, offset, done, required);
    done += static_cast<size_t>(got);
    for (size_t left = static_cast<size_t>(got); left > 0;) {
      iovec& vector = (*vectors)[first];
      size_t part = std::min(left, vector.iov_len);
      vector.iov_base = static_cast<char*>(vector.iov_base) + part;
      vector.iov_len -= part;
      left -= part;
      if (vector.iov_len == 0) ++first;
    }
  }
  return Status::Ok();
}

// How many pieces from this one on follow each other in the file. One of several runs is read by itself.
size_t Together(const std::vector<ReadPiece>& pieces, size_t first) {
  if (pieces[first].runs > 1) return 1;
  size_t count = 1;
  while (first + count < pieces.size() && pieces[first + count].skip == 0 && pieces[first + count].runs == 1) ++count;
  return count;
}

// Bytes of the file that these pieces are.
size_t LengthOf(const ReadPiece* pieces, size_t count) {
  size_t length = 0;
  for (size_t i = 0; i < count; ++i) length += pieces[i].file_length();
  return length;
}

// Copies runs that lie `stride` bytes apart past the caches, which so need not read what is overwritten: a tenth of the
// time of picking. False: not these, or not here.
bool StreamRuns(size_t count, size_t stride, size_t run, const char* from, char* to) {
#if defined(__x86_64__)
  constexpr size_t kStore = sizeof(__m128i);
  if (run % kStore != 0 || reinterpret_cast<uintptr_t>(to) % kStore != 0) return false;
  for (size_t i = 0; i < count; ++i, from += stride) {
    for (size_t at = 0; at < run; at += kStore, to += kStore)
      _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
  }
  _mm_sfence();  // other threads see them with what is told afterwards
  return true;
#else
  (void)count, (void)stride, (void)run, (void)from, (void)to;
  return false;
#endif
}

// Reads the runs of a piece, which begins at `offset`, until `required` bytes have arrived: as many at a time, along
// with their holes, as the cache and `buffer` hold.
Status ReadRuns(const FdFile& file, const ReadPiece& piece, uint64_t offset, size_t required, char* buffer) {
  const size_t run = piece.run(), stride = piece.stride;
  const size_t most = run + stride > kPickedFrom ? 1 : (kPickedFrom - run) / stride + 1;
  std::vector<iovec> vectors;
  for (size_t first = 0; first < piece.runs && first * stride < required; first += most) {
    const size_t at = first * stride, count = std::min(most, piece.runs - first);
    const size_t length = std::min((count - 1) * stride + run, required - at);
    auto* memory = reinterpret_cast<char*>(piece.address + first * run);  // NOLINT(performance-no-int-to-ptr)
    vectors.clear();
    vectors.push_back({most == 1 ? memory : buffer, length});
    FST_RETURN_IF_ERROR(ReadTogether(file, &vectors, offset + at, length));
    if (most == 1) continue;
    const size_t whole = length < run ? 0 : (length - run) / stride + 1;
    if (piece.length < kStreamed || !StreamRuns(whole, stride, run, buffer, memory))
      CopyRow({whole, static_cast<int64_t>(stride), static_cast<int64_t>(run)}, run, buffer, memory);
    const size_t done = whole * stride;
    if (whole < count && length > done) memcpy(memory + whole * run, buffer + done, length - done);
  }
  return Status::Ok();
}

// Whether a file's next byte needs no store.
bool IsInMemory(const FdFile& file, uint64_t offset) {
  char byte = 0;
  iovec vector{&byte, 1};
  // By number: musl has had the function only since 1.2.5.
  const long at_once = syscall(SYS_preadv2, file.fd(), &vector, 1, static_cast<long>(offset), 0,
                               RWF_NOWAIT);  // NOLINT(google-runtime-int)
  if (at_once == 1) return true;
  FileSystemTraits traits;
  return at_once < 0 && errno == EOPNOTSUPP && FileSystemOf(file.fd(), &traits) == 0 && traits.in_memory;
}

// The store gets all parts of a read that skips bytes at once, where the first one is not in the page cache: one after
// the other would take its latency each time. A hint: what goes wrong the reads tell.
void ReadAhead(const FdFile& file, const ReadRequest& request) {
  if (IsInMemory(file, request.offset)) return;
  uint64_t at = request.offset;
  for (size_t i = 0; i < request.pieces.size();) {
    const size_t count = Together(request.pieces, i), length = LengthOf(&request.pieces[i], count);
    at += request.pieces[i].skip;
    // As it is read: of a longer hint the kernel takes no more than its read-ahead.
    const size_t step = request.pieces[i].runs > 1 ? kPickedFrom : length;
    for (size_t done = 0; done < length; done += step) {
      posix_fadvise(file.fd(), static_cast<off_t>(at + done), static_cast<off_t>(std::min(step, length - done)),
                    POSIX_FADV_WILLNEED);
    }
    at += length;
    i += count;
  }
}

// Reads pieces that all lie together, and tells of what has arrived.
Status ReadAndTell(const FdFile& file, const ReadRequest& request) {
  std::vector<iovec> vectors;
  size_t piece = 0, done = 0;  // of the piece
  for (size_t arrived = 0; arrived < request.required;) {
    vectors.clear();
    size_t length = 0;
    while (piece < request.pieces.size() && length < kArriving) {
      const ReadPiece& from = request.pieces[piece];
      const size_t some = std::min(from.length - done, kArriving - length);
      vectors.push_back({reinterpret_cast<void*>(from.address + done), some});  // NOLINT(performance-no-int-to-ptr)
      length += some;
      done += some;
      if (done < from.length) break;
      ++piece;
      done = 0;
    }
    const size_t required = std::min(length, request.required - arrived);
    FST_RETURN_IF_ERROR(ReadTogether(file, &vectors, request.offset + arrived, required));
    arrived += required;
    request.on_arrival(arrived);
  }
  return Status::Ok();
}

// Reads until every required byte has arrived. A file that became shorter is FILE_CHANGED, which names the reason.
Status ReadFully(const ReadRequest& request) {
  const auto& file = static_cast<const FdFile&>(*request.file);
  const std::vector<ReadPiece>& pieces = request.pieces;
  const uint64_t end = request.offset + request.required;
  auto skips = [](const ReadPiece& piece) { return piece.skip > 0 || piece.runs > 1; };
  if (std::any_of(pieces.begin(), pieces.end(), skips)) {
    ReadAhead(file, request);
  } else if (request.on_arrival && IsInMemory(file, request.offset)) {
    Status read = ReadAndTell(file, request);
    FST_RETURN_IF_ERROR(file.CheckUnchanged());
    return read;
  }
  std::vector<iovec> vectors;
  std::unique_ptr<char[]> buffer;
  Status failed;
  uint64_t at = request.offset;
  for (size_t i = 0; i < pieces.size() && failed.ok();) {
    const size_t count = Together(pieces, i), length = LengthOf(&pieces[i], count);
    at += pieces[i].skip;
    const size_t required = std::min<uint64_t>(length, end - at);
    if (pieces[i].runs > 1) {
      if (buffer == nullptr) buffer.reset(new char[kPickedFrom]);
      failed = ReadRuns(file, pieces[i], at, required, buffer.get());
    } else {
      vectors.clear();
      for (size_t k = i; k < i + count; ++k) {
        vectors.push_back(
            {reinterpret_cast<void*>(pieces[k].address), pieces[k].length});  // NOLINT(performance-no-int-to-ptr)
      }
      failed = ReadTogether(file, &vectors, at, required);
    }
    at += length;
    i += count;
  }
  FST_RETURN_IF_ERROR(file.CheckUnchanged());
  return failed;
}

class OpenedFile : public FdFile {
 public:
  OpenedFile(const std::string& path, const FileIdentity& identity, UniqueFd fd, bool by_ring)
      : FdFile(path, identity, std::move(fd)), by_ring(by_ring) {}
  const bool by_ring;
};

// A file that leaves the page cache when its last read has ended, whichever of them that is.
class DroppedFile : public OpenedFile {
 public:
  using OpenedFile::OpenedFile;
  // The I/O thread.
  void Begin(bool last) {
    reads_.fetch_add(1, std::memory_order_relaxed);
    if (last) last_begun_.store(true, std::memory_order_relaxed);
  }
  // Any thread, once for each Begin.
  void End() {
    if (reads_.fetch_sub(1, std::memory_order_acq_rel) > 1 || !last_begun_.load(std::memory_order_relaxed)) return;
    posix_fadvise(fd(), 0, 0, POSIX_FADV_DONTNEED);  // a hint only: pages that a process has mapped stay
  }

 private:
  std::atomic<int> reads_{0};
  std::atomic<bool> last_begun_{false};
};

class FileReader : public Reader {
 public:
  explicit FileReader(const FileReaderOptions& options)
      : options_(options),
        threads_(options.threads > 0 ? options.threads
                 : options.direct    ? kDirectThreads
                                     : DefaultThreads()),
        pool_(std::make_shared<TaskPool>("fst-read", threads_)) {
    needs_.chunk = options.chunk > 0 ? options.chunk : options.direct ? kDirectChunk : size_t{4} << 20;
    // Two more than threads, so that a thread that has finished a read finds the next one queued.
    needs_.in_flight = threads_ + 2;
    needs_.slots = threads_ + 4;
    needs_.slots_at_first = 2;
    needs_.scatters = needs_.skips = !options.direct;
    if (!options.direct) {
      needs_.first_chunk = kFirstChunk;
      needs_.largest_gap = kGapInCache;
      needs_.picks_holes = kPickedHole;
    }
    needs_.maps = !options.direct && !options.drop_cache;
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
    bool direct = options_.direct;
    FST_RETURN_IF_ERROR(direct ? OpenDirect(path, expected, &fd, &direct) : OpenUnchanged(path, 0, expected, &fd));
    if (direct != options_.direct) {
      std::lock_guard<std::mutex> lock(mutex_);
      fallbacks_.push_back({path, "direct", "buffered", "the file system refuses O_DIRECT"});
    }
    if (options_.drop_cache) {
      *out = std::make_shared<DroppedFile>(path, expected, std::move(fd), /*by_ring=*/false);
    } else {
      FileSystemTraits traits;
      const bool by_ring = direct && FileSystemOf(fd.get(), &traits) == 0 && traits.on_disk && traits.answers_at_once;
      *out = std::make_shared<OpenedFile>(path, expected, std::move(fd), by_ring);
    }
    return Status::Ok();
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    auto* dropped = options_.drop_cache ? static_cast<DroppedFile*>(request.file.get()) : nullptr;
    if (dropped != nullptr) dropped->Begin(request.last);
    // A buffered reader also gets files that are mapped, which are none of its own.
    const bool by_ring = options_.direct && static_cast<const OpenedFile&>(*request.file).by_ring;
    if (by_ring && HasRing() && ring_->Read(&request, tag)) return Status::Ok();
    return ReadByThread(*pool_, queue_, std::move(request), tag, dropped);
  }

  std::vector<Fallback> TakeFallbacks() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::move(fallbacks_);
  }

 private:
  static Status ReadByThread(TaskPool& pool, std::shared_ptr<CompletionQueue> queue, ReadRequest request, uint64_t tag,
                             DroppedFile* dropped) {
    return pool.Post([queue = std::move(queue), request = std::move(request), tag, dropped]() mutable {
      Status status = ReadFully(request);
      if (dropped != nullptr) dropped->End();
      request.file.reset();  // before the completion, as its receiver may count open files
      queue->Put({Completion::Kind::kRead, tag, std::move(status)});
    });
  }

  // Made for the first read that can use it. The I/O thread.
  bool HasRing() {
    if (ring_ != nullptr || ring_refused_ || !options_.ring) return ring_ != nullptr;
    auto by_thread = [pool = pool_, queue = queue_](ReadRequest request, uint64_t tag) {
      Status posted = ReadByThread(*pool, queue, std::move(request), tag, nullptr);
      if (!posted.ok()) queue->Put({Completion::Kind::kRead, tag, std::move(posted)});
    };
    const int error =
        RingReads::Open(static_cast<unsigned>(needs_.in_flight), queue_, by_thread, &ring_, options_.ring_setup);
    ring_refused_ = error != 0;
    if (error == 0) return true;
    std::lock_guard<std::mutex> lock(mutex_);
    fallbacks_.push_back({"", "by io_uring", "direct reads by threads", ErrnoText(error)});
    return false;
  }

  // Leaves some CPUs to the threads that issue reads, copy and consume: with 16 of 16, a load from the page cache took
  // 9 % longer than with 12 (H200). More than there are CPUs only delay those: with 4 on 2 CPUs such a load took 5 %
  // longer than with 2, and JavaScript was held up twice as long.
  static int DefaultThreads() {
    const int cpus = std::max(static_cast<int>(std::thread::hardware_concurrency()), 2);
    return std::clamp(cpus - 4, std::min(cpus, 4), 16);
  }

  const FileReaderOptions options_;
  const int threads_;
  ReaderNeeds needs_;
  std::shared_ptr<CompletionQueue> queue_;
  const std::shared_ptr<TaskPool> pool_;
  std::unique_ptr<RingReads> ring_;
  bool ring_refused_ = false;
  std::mutex mutex_;
  std::vector<Fallback> fallbacks_;
};

}  // namespace

std::unique_ptr<Reader> NewFileReader(const FileReaderOptions& options) {
  return std::make_unique<FileReader>(options);
}

}  // namespace fst
