#include "reader/usrbio/usrbio_pool.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <mutex>
#include <vector>

#include "base/completion_queue.h"
#include "base/exit_gate.h"
#include "base/thread.h"

namespace fst::usrbio {
namespace {

constexpr size_t kRoomLeft = size_t{64} << 20;  // of /dev/shm: enough for a loader of another process
constexpr auto kLongestAtExit = std::chrono::seconds(1);

bool LeavesRoomInShm() {
  struct statvfs fs;
  return statvfs("/dev/shm", &fs) == 0 && uint64_t{fs.f_bavail} * fs.f_frsize >= kRoomLeft;
}

using Channels = std::vector<std::unique_ptr<Channel>>;

class Pool {
 public:
  // Never destroyed: threads that outlive main() may still use it.
  static Pool& Get() {
    static Pool* pool = new Pool;
    return *pool;
  }

  std::unique_ptr<Channel> Take(const ChannelKind& kind) {
    for (;;) {
      std::unique_ptr<Channel> found = Find(kind);
      if (found == nullptr || found->StillGood()) return found;
      // What its mount has forgotten is nobody's; the others that were made on it neither.
      Channels gone;
      if (!found->OnSameMount()) {
        std::lock_guard<std::mutex> lock(mutex_);
        MoveIf(&kept_, &gone, [&](const Kept& kept) { return kept.channel->kind().mount == kind.mount; });
        MoveIf(&unremovable_, &gone, [&](const Kept& kept) { return kept.channel->kind().mount == kind.mount; });
      }
    }
  }

  bool Keeps(size_t bytes, int numa) {
    const auto fits = [=](const Kept& kept) {
      return kept.channel->kind().bytes == bytes && kept.channel->kind().numa == numa;
    };
    std::lock_guard<std::mutex> lock(mutex_);
    return std::any_of(kept_.begin(), kept_.end(), fits) || std::any_of(unremovable_.begin(), unremovable_.end(), fits);
  }

  void Return(std::unique_ptr<Channel> channel, bool worth_keeping) {
    if (worth_keeping && channel->kind().bytes <= kMaxIdleBytes && LeavesRoomInShm()) {
      std::lock_guard<std::mutex> lock(mutex_);
      // What the thread does not get done, its daemon being stopped, does not grow.
      if (!exiting_ && condemned_.size() < kMaxIdle && EnsureThread()) {
        kept_.push_back({std::move(channel), Clock::now() + kIdleTime});
        while (kept_.size() > kMaxIdle || Bytes() > kMaxIdleBytes) {
          condemned_.push_back(std::move(kept_.front().channel));
          kept_.pop_front();
        }
        changed_.notify_all();
        return;
      }
    }
    GiveBack(std::move(channel));
  }

  size_t Drop(std::chrono::milliseconds longest, bool exiting) {
    std::unique_lock<std::mutex> lock(mutex_);
    exiting_ |= exiting;
    const uint64_t before = given_back_;
    MoveIf(&kept_, &condemned_, [](const Kept&) { return true; });
    MoveIf(&unremovable_, &condemned_, [](const Kept&) { return true; });
    if (condemned_.empty() && !giving_back_) return 0;
    if (!EnsureThread()) return 0;
    changed_.notify_all();
    changed_.wait_for(lock, longest, [this] { return condemned_.empty() && !giving_back_; });
    return given_back_ - before;
  }

 private:
  struct Kept {
    std::unique_ptr<Channel> channel;
    Clock::time_point until;
  };

  // The newest of this kind: its pages are warm.
  std::unique_ptr<Channel> Find(const ChannelKind& kind) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (std::list<Kept>* list : {&kept_, &unremovable_}) {
      auto found =
          std::find_if(list->rbegin(), list->rend(), [&](const Kept& kept) { return kept.channel->kind() == kind; });
      if (found == list->rend()) continue;
      std::unique_ptr<Channel> channel = std::move(found->channel);
      list->erase(std::next(found).base());
      return channel;
    }
    return nullptr;
  }

  size_t Bytes() const {
    size_t bytes = 0;
    for (const Kept& kept : kept_) bytes += kept.channel->kind().bytes;
    return bytes;
  }

  template <class Condition>
  static void MoveIf(std::list<Kept>* from, Channels* to, const Condition& condition) {
    for (auto kept = from->begin(); kept != from->end();) {
      if (!condition(*kept)) {
        ++kept;
        continue;
      }
      to->push_back(std::move(kept->channel));
      kept = from->erase(kept);
    }
  }

  // With the lock held. False where no thread can be started.
  bool EnsureThread() {
    if (running_) return true;
    static const bool at_exit = [] {
      ExitGate::BeforeClosing([] { Get().Drop(kLongestAtExit, /*exiting=*/true); });
      return true;
    }();
    (void)at_exit;
    running_ = StartThread("fst-3fs-idle", [this] { Run(); }).ok();
    return running_;
  }

  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const Clock::time_point now = Clock::now();
      MoveIf(&kept_, &condemned_, [now](const Kept& kept) { return kept.until <= now; });
      if (!condemned_.empty()) {
        Channels channels = std::move(condemned_);
        condemned_.clear();
        giving_back_ = true;
        lock.unlock();
        for (std::unique_ptr<Channel>& channel : channels) GiveBack(std::move(channel));
        lock.lock();
        giving_back_ = false;
        changed_.notify_all();
      } else if (kept_.empty()) {
        running_ = false;
        return;
      } else {
        const Clock::time_point until = kept_.front().until;  // a copy: the entry may go meanwhile
        changed_.wait_until(lock, until);
      }
    }
  }

  // Without the lock: may block on the daemon.
  void GiveBack(std::unique_ptr<Channel> channel) {
    const bool removable = channel->Unlink();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!removable && !exiting_) {
        unremovable_.push_back({std::move(channel), {}});
        return;
      }
    }
    channel.reset();
    std::lock_guard<std::mutex> lock(mutex_);
    ++given_back_;
  }

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::list<Kept> kept_;  // the one that is to go first is at the front
  std::list<Kept> unremovable_;
  Channels condemned_;  // for the thread to give back
  bool running_ = false, giving_back_ = false, exiting_ = false;
  uint64_t given_back_ = 0;
};

}  // namespace

std::unique_ptr<Channel> TakeIdleChannel(const ChannelKind& kind) { return Pool::Get().Take(kind); }

bool KeepsIdleChannel(size_t bytes, int numa) { return Pool::Get().Keeps(bytes, numa); }

void ReturnChannel(std::unique_ptr<Channel> channel, bool worth_keeping) {
  Pool::Get().Return(std::move(channel), worth_keeping);
}

size_t DropIdleChannels(std::chrono::milliseconds longest) { return Pool::Get().Drop(longest, /*exiting=*/false); }

}  // namespace fst::usrbio
