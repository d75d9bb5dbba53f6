#include "reader/usrbio/usrbio_reads.h"

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "reader/open_file.h"

namespace fst::usrbio {
namespace {

constexpr int kIndexBits = 16;
constexpr int kMaxRenewals = 3;  // of one read

// Of no other ring in this process: one that is used by several readers after each other takes no completion of an
// earlier one for its own.
uint64_t NewGeneration() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

uint8_t* AddressOf(const ReadRequest& request) {
  return reinterpret_cast<uint8_t*>(request.pieces.front().address);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

Reads::Reads(std::shared_ptr<CompletionQueue> queue, std::string mount)
    : queue_(std::move(queue)), mount_(std::move(mount)), generation_(NewGeneration()) {}

void Reads::Add(ReadRequest request, uint64_t tag) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) {
    free_.push_back(static_cast<uint32_t>(reads_.size()));
    reads_.emplace_back();
  }
  uint32_t index = free_.back();
  free_.pop_back();
  Read& read = reads_[index];
  read.state = Read::kWaiting;
  read.tag = tag;
  read.sequence = sequence_++;
  read.renewals = 0;
  read.request = std::move(request);
  waiting_.push_back(index);
}

bool Reads::TakeWaiting(Next* next) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (waiting_.empty()) return false;
  uint32_t index = waiting_.front();
  waiting_.pop_front();
  Read& read = reads_[index];
  read.state = Read::kInRing;
  read.through = RegisteredFile::Of(*read.request.file).descriptor();
  *next = {index,
           generation_ << kIndexBits | index,
           AddressOf(read.request),
           read.request.file,
           read.through,
           read.request.offset,
           read.request.length};
  return true;
}

void Reads::PutBack(uint32_t index) {
  std::lock_guard<std::mutex> lock(mutex_);
  reads_[index].state = Read::kWaiting;
  waiting_.push_front(index);
}

void Reads::Fail(uint32_t index, Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  Finish(reads_[index], index, std::move(status));
}

bool Reads::HasAny() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return free_.size() < reads_.size();
}

void Reads::EndGeneration() {
  std::lock_guard<std::mutex> lock(mutex_);
  generation_ = NewGeneration();
  links_.clear();
}

void Reads::BeginGeneration(std::vector<Link> links) {
  std::lock_guard<std::mutex> lock(mutex_);
  links_ = std::move(links);
  health_ = Health::kGood;
  why_ = Status::Ok();
  for (uint32_t index = 0; index < reads_.size(); ++index) {
    Read& read = reads_[index];
    if (read.state != Read::kInRing && read.state != Read::kChecking) continue;
    read.state = Read::kWaiting;
    waiting_.push_back(index);
  }
  std::sort(waiting_.begin(), waiting_.end(),
            [this](uint32_t a, uint32_t b) { return reads_[a].sequence < reads_[b].sequence; });
}

void Reads::FailAll(const Status& status, std::vector<std::shared_ptr<Descriptor>>* open) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.clear();
  for (uint32_t index = 0; index < reads_.size(); ++index) {
    Read& read = reads_[index];
    if (read.state == Read::kFree) continue;
    open->push_back(read.through);
    Finish(read, index, status.At(read.request.file->path(), {}, static_cast<int64_t>(read.request.offset)));
  }
}

bool Reads::FailTag(uint64_t tag, const Status& status, std::vector<std::shared_ptr<Descriptor>>* open) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (uint32_t index = 0; index < reads_.size(); ++index) {
    Read& read = reads_[index];
    if (read.state == Read::kFree || read.tag != tag) continue;
    waiting_.erase(std::remove(waiting_.begin(), waiting_.end(), index), waiting_.end());
    open->push_back(read.through);
    Finish(read, index, status);
    return true;
  }
  return false;
}

Reads::Health Reads::TakeHealth(Status* why) {
  std::lock_guard<std::mutex> lock(mutex_);
  Health health = health_;
  health_ = Health::kGood;
  *why = why_;
  return health;
}

uint64_t Reads::completed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return completed_;
}

bool Reads::refused() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return refused_;
}

void Reads::Completed(const Cqe* completions, int count) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (int i = 0; i < count; ++i) {
    auto userdata = reinterpret_cast<uintptr_t>(completions[i].userdata);
    uint32_t index = userdata & ((1U << kIndexBits) - 1);
    if (userdata >> kIndexBits != generation_ || index >= reads_.size() || reads_[index].state != Read::kInRing)
      continue;
    Read& read = reads_[index];
    int64_t result = completions[i].result;
    refused_ |= result < 0;
    // EINVAL may also mean that the daemon has lost the iov, EBADF that it does not know the file.
    const bool unknown = result == -EINVAL || result == -EBADF;
    if (!unknown && (result < 0 || static_cast<uint64_t>(result) > read.request.length)) {
      Finish(read, index, ResultError(read, result));
      continue;
    }
    if (!unknown && static_cast<uint64_t>(result) >= read.request.required && !read.request.last) {
      Finish(read, index, Status::Ok());
      continue;
    }
    // Checking files and links may take a round trip: not on this thread.
    read.state = Read::kChecking;
    auto self = shared_from_this();
    uint64_t generation = generation_;
    Status posted = checkers_.Post([=] {
      if (result == -EINVAL) return self->CheckLinks(index, generation);
      if (result == -EBADF) return self->RenewFile(index, generation);
      self->CheckFile(index, generation, result);
    });
    if (!posted.ok()) Finish(read, index, posted);
  }
}

void Reads::CheckLinks(uint32_t index, uint64_t generation) {
  std::vector<Link> links;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    links = links_;
  }
  // The read will be repeated by the new ring.
  if (AnyGone(links)) return Notice(generation, Health::kLost, Status::Ok());
  std::lock_guard<std::mutex> lock(mutex_);
  if (!IsChecking(index, generation)) return;
  Finish(reads_[index], index, ResultError(reads_[index], -EINVAL));
}

bool Reads::IsChecking(uint32_t index, uint64_t generation) const {
  return generation == generation_ && reads_[index].state == Read::kChecking;
}

Status Reads::ResultError(const Read& read, int64_t result) const {
  const ReadRequest& request = read.request;
  const std::string& path = request.file->path();
  auto offset = static_cast<unsigned long long>(request.offset);
  std::string text;
  if (result >= 0) {
    text = Format("%s: the 3FS daemon says it read %lld bytes at offset %llu, asked for %zu", path.c_str(),
                  static_cast<long long>(result), offset, request.length);
  } else if (result == -EACCES) {
    text = Format(
        "%s: reading %zu bytes at offset %llu failed: the 3FS daemon could not register the shared buffer (EACCES): "
        "raise the limit of locked memory (ulimit -l unlimited, LimitMEMLOCK=infinity in the daemon's unit) or lower "
        "bufferSize",
        path.c_str(), request.length, offset);
  } else if (result == -EBADF) {
    text = Format(
        "%s: reading %zu bytes at offset %llu failed: the 3FS daemon does not know the file (EBADF), although it was "
        "opened anew %d times",
        path.c_str(), request.length, offset, kMaxRenewals);
  } else {
    text = Format("%s: reading %zu bytes at offset %llu through 3FS failed: %s", path.c_str(), request.length, offset,
                  ErrnoText(static_cast<int>(-result)).c_str());
  }
  return Status(Code::THREEFS_ERROR, text).At(path, {}, static_cast<int64_t>(request.offset));
}

void Reads::CheckFile(uint32_t index, uint64_t generation, int64_t result) {
  const auto got = static_cast<size_t>(result);
  std::shared_ptr<ReaderFile> file;
  uint64_t offset;
  size_t required;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!IsChecking(index, generation)) return;
    const ReadRequest& request = reads_[index].request;
    file = request.file;
    offset = request.offset;
    required = request.required;
  }
  Status status = RegisteredFile::Of(*file).CheckUnchanged();
  if (status.ok() && got < required) status = EndedEarly(*file, offset, got, required);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!IsChecking(index, generation)) return;
  file.reset();  // before the completion, as its receiver may count open files
  Finish(reads_[index], index, std::move(status));
}

// The read is repeated through a new descriptor.
void Reads::RenewFile(uint32_t index, uint64_t generation) {
  std::shared_ptr<ReaderFile> file;
  std::shared_ptr<Descriptor> known;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!IsChecking(index, generation)) return;
    Read& read = reads_[index];
    if (++read.renewals > kMaxRenewals) return Finish(read, index, ResultError(read, -EBADF));
    file = read.request.file;
    known = read.through;
  }
  Status renewed = RegisteredFile::Of(*file).Renew(*known);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!IsChecking(index, generation)) return;
  file.reset();
  known.reset();
  if (!renewed.ok()) return Finish(reads_[index], index, std::move(renewed));
  reads_[index].state = Read::kWaiting;
  waiting_.push_front(index);
  queue_->Wake();
}

void Reads::Finish(Read& read, uint32_t index, Status status) {
  completed_ += status.ok();
  read.request = ReadRequest();
  read.through.reset();
  read.state = Read::kFree;
  free_.push_back(index);
  queue_->Put({Completion::Kind::kRead, read.tag, std::move(status)});
}

void Reads::Silent() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (probing_ || links_.empty()) return;
  auto probe = [self = shared_from_this(), links = links_, generation = generation_] {
    Status alive = ProbeMount(self->mount_);
    if (!alive.ok()) {
      self->Notice(generation, Health::kDead, alive);
    } else if (AnyGone(links)) {
      self->Notice(generation, Health::kLost, Status::Ok());
    }
    std::lock_guard<std::mutex> done(self->mutex_);
    self->probing_ = false;
  };
  probing_ = prober_.Post(probe).ok();
}

void Reads::Retry() { queue_->Wake(); }

void Reads::Broken(int error) {
  (void)error;
  uint64_t generation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generation = generation_;
  }
  Notice(generation, Health::kLost, Status::Ok());
}

void Reads::Notice(uint64_t generation, Health health, Status why) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (generation != generation_) return;
    health_ = health;
    why_ = std::move(why);
  }
  queue_->Wake();
}

}  // namespace fst::usrbio
