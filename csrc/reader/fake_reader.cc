#include "reader/fake_reader.h"

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>

#include "base/thread.h"
#include "reader/open_file.h"

namespace fst {
namespace {

// One modelled store: its bandwidth serves reads one after another, and each takes its latency on top.
struct Store {
  FakeReaderOptions options;
  std::shared_ptr<CompletionQueue> queue;
  std::mutex mutex;
  std::condition_variable wake;
  struct Read {
    ReadRequest request;
    uint64_t tag;
    int number;
  };
  std::multimap<Clock::time_point, Read> due;
  std::vector<Read> stalled;
  Clock::time_point link_free = Clock::now();
  int reads = 0;
  bool stopping = false;

  void Run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stopping || !due.empty()) {
      if (due.empty()) {
        wake.wait(lock);
        continue;
      }
      auto next = due.begin();
      if (next->first > Clock::now() && !stopping) {
        wake.wait_until(lock, next->first);
        continue;
      }
      Read read = std::move(next->second);
      due.erase(next);
      lock.unlock();
      Finish(std::move(read));
      lock.lock();
    }
  }

  void Finish(Read read) {
    const auto& file = static_cast<const FdFile&>(*read.request.file);
    Status status;
    if (read.number == options.fail_at) {
      status = Status(Code::IO_ERROR,
                      Format("%s: the fake reader was told to fail its read %d", file.path().c_str(), read.number));
    } else if (read.number == options.short_at) {
      status = Status(Code::SHORT_READ, Format("%s: %zu of %zu bytes arrived", file.path().c_str(),
                                               read.request.required / 2, read.request.required));
    } else {
      status = Deliver(read.request, file);
    }
    status = status.At(file.path(), {}, static_cast<int64_t>(read.request.offset));
    read.request.file.reset();
    queue->Put({Completion::Kind::kRead, read.tag, std::move(status)});
  }

  static Status Deliver(const ReadRequest& request, const FdFile& file) {
    uint64_t offset = request.offset;
    size_t left = request.required;
    for (const ReadPiece& piece : request.pieces) {
      for (size_t done = 0; done < piece.length && left > 0;) {
        size_t part = std::min(piece.length - done, left);
        ssize_t got = pread(file.fd(), reinterpret_cast<char*>(piece.address) + done, part, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return Status(Code::UNEXPECTED_EOF, "the file ends early");
        done += static_cast<size_t>(got);
        offset += static_cast<size_t>(got);
        left -= static_cast<size_t>(got);
      }
    }
    if (left > 0) return Status(Code::SHORT_READ, "the pieces of the read are shorter than what it requires");
    return file.CheckUnchanged();
  }
};

class FakeReader : public Reader {
 public:
  explicit FakeReader(const FakeReaderOptions& options) : store_(std::make_shared<Store>()) {
    store_->options = options;
    needs_.chunk = options.chunk;
    needs_.in_flight = options.in_flight;
    needs_.slots = options.in_flight * 2;
    needs_.offset_alignment = needs_.length_alignment = needs_.memory_alignment = options.alignment;
    needs_.fills_host = options.fills_host;
    needs_.scatters = true;
  }
  ~FakeReader() override {
    std::lock_guard<std::mutex> lock(store_->mutex);
    for (Store::Read& read : store_->stalled) store_->due.emplace(Clock::now(), std::move(read));
    store_->stalled.clear();
    store_->stopping = true;
    store_->wake.notify_all();
  }

  const ReaderNeeds& needs() const override { return needs_; }

  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>&) override {
    store_->queue = std::move(queue);
    return StartThread("fst-fake-read", [store = store_] { store->Run(); });
  }

  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    UniqueFd fd;
    FST_RETURN_IF_ERROR(OpenUnchanged(path, 0, expected, &fd));
    *out = std::make_shared<FdFile>(path, expected, std::move(fd));
    return Status::Ok();
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    const FakeReaderOptions& options = store_->options;
    if (request.offset % options.alignment != 0 || request.length % options.alignment != 0 ||
        request.pieces.front().address % options.alignment != 0) {
      return Status(Code::IO_ERROR,
                    Format("the fake reader wants multiples of %zu, got offset %llu, length %zu", options.alignment,
                           static_cast<unsigned long long>(request.offset), request.length));
    }
    if (options.poison) {
      for (const ReadPiece& piece : request.pieces) memset(reinterpret_cast<void*>(piece.address), 0x5A, piece.length);
    }
    std::lock_guard<std::mutex> lock(store_->mutex);
    auto now = Clock::now();
    if (options.gb_per_second > 0) {
      auto busy =
          std::chrono::nanoseconds(static_cast<int64_t>(static_cast<double>(request.required) / options.gb_per_second));
      store_->link_free = std::max(store_->link_free, now) + busy;
    } else {
      store_->link_free = now;
    }
    int number = ++store_->reads;
    auto due = store_->link_free + std::chrono::nanoseconds(static_cast<int64_t>(options.ms_per_io * 1e6));
    if (options.reorder) due += std::chrono::microseconds((number * 7919) % 5 * 400);
    if (number == options.stall_at) {
      store_->stalled.push_back({std::move(request), tag, number});
      return Status::Ok();
    }
    store_->due.emplace(due, Store::Read{std::move(request), tag, number});
    store_->wake.notify_all();
    return Status::Ok();
  }

 private:
  std::shared_ptr<Store> store_;
  ReaderNeeds needs_;
};

}  // namespace

std::unique_ptr<Reader> NewFakeReader(const FakeReaderOptions& options) {
  return std::make_unique<FakeReader>(options);
}

}  // namespace fst
