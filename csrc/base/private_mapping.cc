#include "base/private_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>

#include "base/mapped_pages.h"

namespace fst {
namespace {

constexpr uint64_t kPiece = 256 << 10;   // exchanged at a time: fits into a pipe of any user and into a CPU's cache
constexpr uint64_t kMapping = 32 << 20;  // of fresh pages

// To exchange pages by one thread of the process at a time: each page that is made private interrupts all processors
// that run this process, and two threads of a virtual machine with 2 of them took three times as long as one. Nobody
// waits long: a page may have to come from a disk that hangs.
class Turn {
 public:
  Turn() : lock_(Mutex(), std::chrono::milliseconds(50)) {}

 private:
  static std::timed_mutex& Mutex() {
    static auto* mutex = new std::timed_mutex;  // outlives threads that have it
    return *mutex;
  }
  std::unique_lock<std::timed_mutex> lock_;
};

uint64_t Down(uint64_t value) { return value / PageSize() * PageSize(); }
uint64_t Up(uint64_t value) { return Down(value + PageSize() - 1); }

// Whole pages, in order, without overlaps.
std::vector<PrivateMapping::Range> PagesOf(std::vector<PrivateMapping::Range> ranges) {
  for (auto& [begin, end] : ranges) {
    begin = Down(begin);
    end = Up(end);
  }
  std::sort(ranges.begin(), ranges.end());
  std::vector<PrivateMapping::Range> pages;
  for (const PrivateMapping::Range& range : ranges) {
    if (range.first == range.second) continue;
    if (!pages.empty() && range.first <= pages.back().second) {
      pages.back().second = std::max(pages.back().second, range.second);
    } else {
      pages.push_back(range);
    }
  }
  return pages;
}

void* MapMemory(size_t length) {
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

// Exchanges pages of a mapping. A page is copied, and then another page is put in its place by mremap(2), at once for
// every thread; what was written in between is in the old page alone. So that it can be found there, the page is first
// made this process's own (MADV_POPULATE_WRITE; a write does not replace it any more) and held by a pipe (vmsplice(2)),
// from which it is read when nobody can write to it any more. Where pipes cannot hold pages, such writes are lost.
// (MADV_POPULATE_WRITE alone would not do: truncation takes away private pages, too.)
class PageExchange {
 public:
  PageExchange() : scratch_(static_cast<char*>(MapMemory(2 * kPiece))) {
    if (pipe2(ends_, O_CLOEXEC | O_NONBLOCK) != 0) return;
    holds_ = fcntl(ends_[1], F_SETPIPE_SZ, static_cast<int>(kPiece)) >= static_cast<int>(kPiece);
  }
  ~PageExchange() {
    if (scratch_ != nullptr) munmap(scratch_, 2 * kPiece);
    for (int end : ends_)
      if (end >= 0) close(end);
  }
  PageExchange(const PageExchange&) = delete;
  PageExchange& operator=(const PageExchange&) = delete;

  // False when there is no memory to work with: Exchange must not be called then.
  bool ready() const { return scratch_ != nullptr; }

  // `pages`: at most kPiece bytes. `fresh`: as many in an anonymous mapping, which loses them. After an error both are
  // as they were.
  int Exchange(char* pages, char* fresh, size_t length) {
    if (int error = PopulatePagesForWrites(pages, length)) return error;
    if (int error = PopulatePagesForWrites(fresh, length)) return error;
    const bool held = Hold(pages, length);
    int error = Snapshot(pages, length);
    if (error == 0) {
      memcpy(fresh, before(), length);
      if (mremap(fresh, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, pages) == MAP_FAILED) error = errno;
    }
    const bool drained = held && Drain(length);
    if (error == 0 && drained) Merge(pages, length);
    return error;
  }

 private:
  char* before() const { return scratch_; }
  char* after() const { return scratch_ + kPiece; }

  // By the kernel, which tells of a page that is not there any more; to touch it would end the process.
  // NOLINTNEXTLINE(readability-non-const-parameter): an iovec has no const
  int Snapshot(char* pages, size_t length) {
    const iovec to = {before(), length}, from = {pages, length};
    const ssize_t got = process_vm_readv(getpid(), &to, 1, &from, 1, 0);
    if (got == static_cast<ssize_t>(length)) return 0;
    if (got >= 0) return EFAULT;
    if (errno != ENOSYS && errno != EPERM) return errno;
    // Where a container forbids it. By words, since other threads may write to them meanwhile.
    for (size_t i = 0; i < length; i += sizeof(uint64_t)) {
      const uint64_t word = __atomic_load_n(reinterpret_cast<const uint64_t*>(pages + i), __ATOMIC_RELAXED);
      memcpy(before() + i, &word, sizeof word);
    }
    return 0;
  }

  // NOLINTNEXTLINE(readability-non-const-parameter): an iovec has no const
  bool Hold(char* pages, size_t length) {
    for (size_t done = 0; holds_ && done < length;) {
      const iovec part = {pages + done, length - done};
      const ssize_t got = vmsplice(ends_[1], &part, 1, SPLICE_F_NONBLOCK);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        Drain(done);
        // A page that is not there is no fault of the pipe.
        if (got < 0 && errno == EFAULT) return false;
        holds_ = false;
      } else {
        done += static_cast<size_t>(got);
      }
    }
    return holds_;
  }

  // False, and holds no more pages, when they cannot be read.
  bool Drain(size_t length) {
    for (size_t done = 0; done < length;) {
      const ssize_t got = read(ends_[0], after() + done, length - done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return holds_ = false;
      done += static_cast<size_t>(got);
    }
    return true;
  }

  // Bytes that were written after they were copied; not over those that were written since.
  // NOLINTNEXTLINE(readability-non-const-parameter): the exchange writes
  void Merge(char* pages, size_t length) {
    if (memcmp(before(), after(), length) == 0) return;
    for (size_t i = 0; i < length; ++i) {
      char expected = before()[i];
      if (expected == after()[i]) continue;
      __atomic_compare_exchange_n(&pages[i], &expected, after()[i], false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
  }

  int ends_[2] = {-1, -1};
  bool holds_ = false;
  char* const scratch_;
};

// One exchange of many ranges.
class Detachment {
 public:
  explicit Detachment(const PrivateMapping& mapping) : mapping_(mapping) {}

  bool out_of_memory() const { return out_of_memory_; }
  // Exchanges the pages [begin, end) of the mapping; goes on after pages that cannot be kept, but not without memory.
  void Exchange(PageExchange& by, uint64_t begin, uint64_t end) {
    uint64_t most = kMapping;  // large, so that few are made
    while (begin < end) {
      const uint64_t length = std::min(most, end - begin);
      auto* fresh = static_cast<char*>(MapMemory(length));
      if (fresh == nullptr && length > kPiece) {
        most = std::max(kPiece, Up(length / 2));
        continue;
      }
      if (fresh == nullptr) return Leave({begin, end}, ENOMEM);
      for (const uint64_t stop = begin + length; begin < stop;) {
        const uint64_t piece = std::min(kPiece, stop - begin);
        const Turn turn;
        const uint64_t done = ExchangePiece(by, begin, fresh, piece);
        begin += done;
        fresh += done;
        if (done == piece) continue;
        munmap(fresh, stop - begin);
        return Leave({begin, end}, ENOMEM);
      }
    }
  }
  void Leave(PrivateMapping::Range range, int error) {
    left_.push_back(range);
    if (error_ != ENOMEM) error_ = error;
    if (error == ENOMEM) out_of_memory_ = true;
  }
  // When all are done.
  int Finish(std::vector<PrivateMapping::Range>* left) {
    *left = std::move(left_);
    return error_;
  }

 private:
  // How many of the bytes were exchanged, or are left for what their pages are: fewer than `length` without memory. So
  // many of `fresh` are used up.
  uint64_t ExchangePiece(PageExchange& by, uint64_t at, char* fresh, uint64_t length) {
    const int error = by.Exchange(mapping_.At(at), fresh, length);
    if (error == 0) return length;
    if (error == ENOMEM) return 0;
    if (length == PageSize()) {
      munmap(fresh, length);
      Leave({at, at + length}, error);
      return length;
    }
    uint64_t done = 0;
    while (done < length && ExchangePiece(by, at + done, fresh + done, PageSize()) > 0) done += PageSize();
    return done;
  }

  const PrivateMapping& mapping_;
  bool out_of_memory_ = false;
  std::vector<PrivateMapping::Range> left_;
  int error_ = 0;
};

}  // namespace

int PrivateMapping::Create(int fd, Range range, std::unique_ptr<PrivateMapping>* out) {
  const Range pages = PagesAround(range);
  void* address = mmap(nullptr, pages.second - pages.first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd,
                       static_cast<off_t>(pages.first));
  if (address == MAP_FAILED) return errno;
  out->reset(new PrivateMapping(static_cast<char*>(address), pages, TellsWhatIsResident(fd)));
  return 0;
}

PrivateMapping::~PrivateMapping() { munmap(address_, pages_.second - pages_.first); }

PrivateMapping::Range PrivateMapping::PagesAround(Range range) { return {Down(range.first), Up(range.second)}; }

double PrivateMapping::Resident(Range range) const {
  const auto [begin, end] = PagesAround(range);
  return ResidentPart(At(begin), end - begin);
}

bool PrivateMapping::AllResident(Range range) const {
  const auto [begin, end] = PagesAround(range);
  return fst::AllResident(At(begin), end - begin, told_);
}

int PrivateMapping::Populate(Range range) const {
  const auto [begin, end] = PagesAround(range);
  return PopulatePages(At(begin), end - begin, told_);
}

void PrivateMapping::Discard(Range range) const {
  const uint64_t begin = Up(range.first), end = Down(range.second);
  if (begin < end) DropPages(At(begin), end - begin);
}

int PrivateMapping::Detach(std::vector<Range>* ranges) const {
  const std::vector<Range> all = PagesOf(std::exchange(*ranges, {}));
  if (all.empty()) return 0;
  Detachment detachment(*this);
  PageExchange pages;
  for (const Range& range : all) {
    if (pages.ready() && !detachment.out_of_memory()) {
      detachment.Exchange(pages, range.first, range.second);
    } else {
      detachment.Leave(range, ENOMEM);
    }
  }
  return detachment.Finish(ranges);
}

}  // namespace fst
