#include "reader/usrbio/usrbio_reader.h"

#include <algorithm>
#include <cerrno>

#include "base/fd_reserve.h"
#include "base/page.h"
#include "device/kept_memory.h"
#include "reader/usrbio/usrbio_api.h"
#include "reader/usrbio/usrbio_channel.h"
#include "reader/usrbio/usrbio_files.h"
#include "reader/usrbio/usrbio_pool.h"
#include "reader/usrbio/usrbio_reads.h"

namespace fst {
namespace {

using usrbio::Reads;

constexpr size_t kChunk = size_t{1} << 20;
constexpr int kInFlight = 32, kSlots = 48, kMinSlots = 8, kMaxSlots = 4096;
constexpr int kEntriesPerRead = 4;  // the ring's entries retire in order: one slow read blocks those behind it
constexpr int kMaxFruitlessLosses = 5;
constexpr size_t kFdsOfARing = 3;  // at a time, while it is made
constexpr size_t kManyFds = 16;    // more than files that are being opened take
constexpr auto kLongestDrop = std::chrono::seconds(1);

int InFlightOf(int slots) { return std::max(1, slots - std::max(1, slots / 3)); }

ReaderNeeds NeedsOf(const UsrbioReaderOptions& options) {
  ReaderNeeds needs;
  needs.fills_host = false;
  needs.chunk = options.chunk > 0 ? options.chunk : kChunk;
  needs.slots = kSlots;
  needs.in_flight = kInFlight;
  if (options.block_bytes > 0 && options.block_bytes < needs.chunk && options.chunk == 0)
    needs.chunk = needs.chunk / options.block_bytes * options.block_bytes;
  if (options.block_bytes > needs.chunk) needs.boundary = options.block_bytes;
  if (options.buffer_bytes > 0) {
    // Rather small reads than few of them: the queue depth hides the daemon's latency.
    needs.chunk = std::min(needs.chunk, std::max(options.buffer_bytes / kMinSlots / kPage * kPage, kPage));
    size_t slots = options.buffer_bytes / std::max(needs.chunk, kPage);
    needs.slots = static_cast<int>(std::clamp<size_t>(slots, 2, kMaxSlots));
    needs.in_flight = InFlightOf(needs.slots);
  }
  if (options.entries > 0) needs.in_flight = std::min(needs.in_flight, std::max(options.entries / kEntriesPerRead, 1));
  return needs;
}

class UsrbioReader : public Reader {
 public:
  explicit UsrbioReader(const UsrbioReaderOptions& options) : options_(options), needs_(NeedsOf(options)) {}

  const ReaderNeeds& needs() const override { return needs_; }

  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) override {
    const std::string& mount = options_.mount_point;
    if (mount.empty() || mount.size() + 1 > sizeof(usrbio::Iov::mount_point)) {
      return Status(Code::INVALID_ARGUMENT, Format("mountPoint: expected the path of a 3FS mount of at most %zu bytes, "
                                                   "found \"%s\"",
                                                   sizeof(usrbio::Iov::mount_point) - 1, mount.c_str()));
    }
    FST_RETURN_IF_ERROR(usrbio::LoadUsrbio(&api_));
    device_ = device;
    files_ = std::make_unique<usrbio::Files>(*api_, mount);
    reads_ = std::make_shared<Reads>(std::move(queue), mount);
    reserve_.Take();  // files are opened before the ring is made
    return Status::Ok();
  }

  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    return files_->Open(path, expected, out);
  }

  Status AllocateSlots(Device& /*device*/, size_t bytes, std::unique_ptr<StagingMemory>* out) override {
    kind_.mount = options_.mount_point;
    kind_.device = device_;
    kind_.numa = options_.numa ? device_->numa_node() : -1;
    kind_.bytes = bytes;
    kind_.entries = std::max(options_.entries, needs_.in_flight * kEntriesPerRead);
    kind_.io_depth = options_.io_depth > 0 ? -options_.io_depth : options_.io_depth;
    channel_ = usrbio::TakeIdleChannel(kind_);
    if (channel_ != nullptr) {
      range_ = channel_->range();
      if (options_.pages != nullptr) options_.pages->Drop();
      Begin();
    } else {
      std::unique_ptr<usrbio::AddressRange> range;
      FST_RETURN_IF_ERROR(usrbio::AddressRange::Reserve(bytes, &range));
      range_ = std::move(range);
      Status built = Build();
      if (!built.ok()) {
        range_.reset();
        return built;
      }
    }
    *out = std::make_unique<Slots>(this, reinterpret_cast<uint64_t>(range_->base()), bytes);
    return Status::Ok();
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    reads_->Add(std::move(request), tag);
    Drive();
    return Status::Ok();
  }

  bool Poll(bool copies_idle) override {
    Status why;
    Reads::Health health = reads_->TakeHealth(&why);
    if (health == Reads::Health::kLost) why = TooManyLosses();
    if (!why.ok()) reads_->FailAll(why, &orphans_);
    if (health != Reads::Health::kGood) Suspend();
    const bool waits = suspended_ && polled_ && !copies_idle;
    if (suspended_ && polled_ && copies_idle) {
      TearDown();
      suspended_ = false;
    }
    if (suspended_ && !polled_) {
      polled_ = true;
      reads_->Retry();
    }
    Drive();
    return waits;
  }

  void Abandon(uint64_t tag) override {
    Status stalled(Code::STALLED, "the read was given up");
    if (reads_->FailTag(tag, stalled, &orphans_)) Suspend();
  }

 private:
  // The slots as the loop sees them: an address range. The iov behind it may be replaced.
  class Slots : public StagingMemory {
   public:
    Slots(UsrbioReader* reader, uint64_t address, size_t size)
        : StagingMemory(address, size, /*on_device=*/false), reader_(reader) {}
    ~Slots() override {
      reader_->GiveBack();
      reader_->range_.reset();
    }

   private:
    UsrbioReader* reader_;  // outlives the engine's slots
  };

  // Makes a channel over the range. What is kept of others makes room where there is too little.
  Status Build() {
    Status made = MakeChannel();
    if (!made.ok() && usrbio::DropIdleChannels(kLongestDrop) > 0) made = MakeChannel();
    if (made.ok()) Begin();
    return made;
  }

  Status MakeChannel() {
    RetryReleases();
    if (range_.use_count() > 1) {
      return Status(Code::CUDA_ERROR, Format("%s: the shared buffer that was lost is still page-locked, so that no new "
                                             "one can take its place; close this loader and load with another one",
                                             device_->name().c_str()));
    }
    // Where descriptors are few, no file that is being opened may take those of the ring.
    const bool few = !reserve_.HasRoomFor(kManyFds);
    if (few) files_->Pause();
    reserve_.Give();
    Status made = usrbio::Channel::Create(*api_, kind_, range_, options_.pages.get(), &channel_);
    reserve_.Take();
    if (few) files_->Resume();
    return made;
  }

  void Begin() {
    channel_->Attach(reads_);
    reads_->BeginGeneration(channel_->links());
  }

  // The ring is unusable: none of its completions counts from here on. Poll destroys it when no copy reads from its
  // slots and all earlier completions have been handled: by the second Poll, since they were put before the first.
  void Suspend() {
    if (suspended_) return;
    suspended_ = true;
    polled_ = false;
    reads_->EndGeneration();
    reads_->Retry();
  }

  // OK while it makes sense to build a new ring.
  Status TooManyLosses() {
    losses_ = reads_->completed() == completed_at_loss_ ? losses_ + 1 : 1;
    completed_at_loss_ = reads_->completed();
    if (losses_ <= kMaxFruitlessLosses) return Status::Ok();
    losses_ = 0;
    return Status(
        Code::THREEFS_ERROR,
        Format("the 3FS daemon of %s forgot the ring %d times before a read completed; does it run in another "
               "PID namespace than this process?",
               options_.mount_point.c_str(), kMaxFruitlessLosses + 1));
  }

  void TearDown() {
    if (channel_ != nullptr) reads_->EndGeneration();
    channel_.reset();
    orphans_.clear();
  }

  // The slots are gone: the next loader may have the channel, unless its ring is unusable.
  void GiveBack() {
    Status why;
    const bool usable = channel_ != nullptr && !suspended_ && reads_->TakeHealth(&why) == Reads::Health::kGood;
    if (usable && channel_->Detach()) {
      reads_->EndGeneration();
      usrbio::ReturnChannel(std::move(channel_), /*worth_keeping=*/!reads_->refused());
    }
    TearDown();
  }

  // Submits reads that wait, as many as the ring takes.
  void Drive() {
    if (suspended_ || !reads_->HasAny()) return;
    if (channel_ == nullptr) {
      Status built = Build();
      if (!built.ok()) return reads_->FailAll(built, &orphans_);
    }
    Reads::Next next;
    bool prepared = false;
    while (reads_->TakeWaiting(&next)) {
      int result = channel_->ring().Prepare(channel_->iov(), next.to, next.through->number, next.offset, next.length,
                                            next.userdata);
      if (result == -EAGAIN) {
        reads_->PutBack(next.index);
        // The next completion wakes the loop to try again. Where none is due, RetrySoon does.
        if (!prepared && channel_->ring().in_flight() == 0) channel_->ring().RetrySoon();
        break;
      }
      if (result == 0) {
        prepared = true;
        continue;
      }
      Status failed(Code::THREEFS_ERROR,
                    Format("%s: a read of %llu bytes at offset %llu was not taken by the 3FS client library: %s",
                           next.file->path().c_str(), static_cast<unsigned long long>(next.length),
                           static_cast<unsigned long long>(next.offset), ErrnoText(-result).c_str()));
      reads_->Fail(next.index, failed.At(next.file->path(), {}, static_cast<int64_t>(next.offset)));
    }
    if (!prepared) return;
    int submitted = channel_->ring().Submit();
    if (submitted != 0) reads_->Broken(-submitted);
  }

  const UsrbioReaderOptions options_;
  const ReaderNeeds needs_;
  const usrbio::UsrbioApi* api_ = nullptr;
  std::shared_ptr<Device> device_;
  std::unique_ptr<usrbio::Files> files_;  // destroyed after all references to its files
  std::shared_ptr<Reads> reads_;
  FdReserve reserve_{kFdsOfARing};
  usrbio::ChannelKind kind_;
  std::shared_ptr<usrbio::AddressRange> range_;  // stays while the slots do, whichever channel lies in it
  std::unique_ptr<usrbio::Channel> channel_;
  std::vector<std::shared_ptr<usrbio::Descriptor>> orphans_;  // of reads that were failed: closed after their ring
  bool suspended_ = false, polled_ = false;
  int losses_ = 0;
  uint64_t completed_at_loss_ = UINT64_MAX;
};

}  // namespace

size_t UsrbioBufferBytes(const UsrbioReaderOptions& options) {
  const ReaderNeeds needs = NeedsOf(options);
  return (needs.chunk + kPage - 1) / kPage * kPage * static_cast<size_t>(needs.slots);
}

std::unique_ptr<Reader> NewUsrbioReader(const UsrbioReaderOptions& options) {
  return std::make_unique<UsrbioReader>(options);
}

}  // namespace fst
