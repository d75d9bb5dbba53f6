#include "emulators/hf3fs/engine.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "emulators/hf3fs/mounts.h"

namespace emu {
namespace {

constexpr size_t kPoisonSize = 1 << 20;
constexpr uint64_t kStopCheckNs = 2000000;

constexpr int kPoison = 0xA5;

// A file of poison: the kernel copies it, and answers EFAULT where memset would crash without a reason. -1 where this
// process may open no more: that is no limit of the daemon.
int PoisonFile() {
  std::vector<uint8_t> poison(kPoisonSize, kPoison);
  int fd = memfd_create("poison", MFD_CLOEXEC);
  if (fd < 0 && errno == EMFILE) return -1;
  if (fd < 0 || write(fd, poison.data(), poison.size()) != static_cast<ssize_t>(poison.size())) {
    Die("memfd_create: %s", strerror(errno));
  }
  return fd;
}

bool IsMapped(uint8_t* at, uint64_t length) {
  const auto page = static_cast<uintptr_t>(getpagesize());
  uint8_t* first = at - reinterpret_cast<uintptr_t>(at) % page;
  std::vector<unsigned char> pages((static_cast<uintptr_t>(at + length - first) + page - 1) / page);
  return mincore(first, static_cast<size_t>(at + length - first), pages.data()) == 0;
}

// False when the memory is not there.
bool FillWithPoison(uint8_t* to, uint64_t length) {
  static const int fd = PoisonFile();
  if (fd < 0) {
    if (!IsMapped(to, length)) return false;
    memset(to, kPoison, length);
    return true;
  }
  while (length > 0) {
    ssize_t n = pread(fd, to, std::min<uint64_t>(length, kPoisonSize), 0);
    if (n <= 0) return false;
    to += n;
    length -= static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace

Engine& Engine::Get() {
  static Engine* engine = new Engine;  // threads use it until Finish, callers until the end of the process
  return *engine;
}

Engine::Engine() : settings(FromEnvironment()), pid_(getpid()) {
  (void)FillWithPoison(nullptr, 0);  // opens its file now: a daemon's descriptors are not the process's
  if (!Apply()) Die("FST_EMU_HF3FS_LINK=%s cannot be mapped: %s", settings.link.c_str(), strerror(errno));
}

void Engine::Misuse(const std::string& reason) {
  if (settings.strict) Die("%s", reason.c_str());
}

bool Engine::ShallFail(const char* function, int* result) {
  if (stopping_ && getpid() == pid_) Die("%s after exit() destroyed the tables of the library", function);
  return Injected(function, ++counters.calls[function], result);
}

bool Engine::Injected(const std::string& function, uint64_t call, int* result) const {
  auto range = settings.failures.equal_range(function);
  for (auto failure = range.first; failure != range.second; ++failure) {
    if (failure->second.call != call) continue;
    *result = failure->second.result;
    return true;
  }
  return false;
}

bool Engine::Apply() {
  random_.seed(settings.shuffle);
  if (!settings.root.empty()) MakeIovsFolder(settings.root, true);
  return link_.Configure(settings.bandwidth, settings.link);
}

void Engine::AddRing(std::shared_ptr<Ring> ring) {
  rings.insert(std::move(ring));
  for (; threads_ < settings.threads; threads_++) std::thread(&Engine::Work, this).detach();
}

void Engine::RemoveRing(const std::shared_ptr<Ring>& ring, std::unique_lock<std::mutex>& lock) {
  ring->destroyed = true;
  touched_.wait(lock, [&ring] { return ring->touching == 0; });
  for (const std::shared_ptr<Io>& io : ring->slots) {
    if (io != nullptr) Untrack(io);
  }
  ring->slots.clear();
  ring->queue.clear();
  ring->completions.clear();
  rings.erase(ring);
}

void Engine::CheckMaker(const char* function, const std::string& mount) {
  const pid_t thread = gettid();
  const pid_t first = makers_.emplace(mount, thread).first->second;
  if (first == thread) return;
  Misuse(std::string(function) + " on thread " + std::to_string(thread) + ", the first on this mount was thread " +
         std::to_string(first) + ": after a crash the daemon takes back what the first one made, the rest stays");
}

bool Engine::HasRing(Ring* ring, std::unique_lock<std::mutex>& lock) {
  if (!ring->lost && !ring->destroyed) {
    bool exists;
    {
      Unlocked asking(lock);
      exists = LinkExists(ring->link);
    }
    ring->lost |= !exists;
  }
  return !ring->lost && !ring->destroyed;
}

int Engine::InFlight(const Ring& ring) {
  if (ring.lost) return 0;
  return static_cast<int>(std::count_if(ring.slots.begin(), ring.slots.end(),
                                        [](const auto& io) { return io != nullptr && !io->stalled; }));
}

std::shared_ptr<Io> Engine::FindOverlap(const uint8_t* to, uint64_t length) const {
  auto next = busy_.lower_bound(to);
  if (next != busy_.end() && next->first < to + length) return next->second;
  if (next == busy_.begin()) return nullptr;
  const std::shared_ptr<Io>& before = std::prev(next)->second;
  return before->to + before->length > to ? before : nullptr;
}

void Engine::Prepare(const std::shared_ptr<Ring>& ring, std::shared_ptr<Io> io) {
  Undelivered::Release(io->to, io->to + io->length);
  io->number = ++counters.ios;
  counters.max_in_flight = std::max(counters.max_in_flight, ++counters.in_flight);
  io->iov->in_flight++;
  io->file->in_flight++;
  busy_[io->to] = io;
  ring->slots[static_cast<size_t>(io->slot)] = io;
  ring->queue.push_back(std::move(io));
  ring->head++;
}

void Engine::Submit(const std::shared_ptr<Ring>& ring) {
  ring->submitted = ring->head;
  Wake();
}

void Engine::Wake() {
  for (const auto& ring : rings) Cut(ring);
  StartQueued();
}

void Engine::Retire(Ring* ring, const std::shared_ptr<Io>& io, std::unique_lock<std::mutex>& lock) {
  ring->slots[static_cast<size_t>(io->slot)] = nullptr;
  Untrack(io);
  Withhold(*io, lock);
}

void Engine::Withhold(const Io& io, std::unique_lock<std::mutex>& lock) {
  const uint64_t arrived = static_cast<uint64_t>(std::max<int64_t>(io.result, 0));
  if (!settings.strict || arrived >= io.length) return;
  bool linked;
  {
    Unlocked asking(lock);
    linked = LinkExists(io.iov->link);
  }
  // Without its link a wrapped iov may be unmapped.
  if (iovs.Find(io.iov->id) != io.iov || !linked) return;
  auto& undelivered = io.iov->undelivered;
  if (undelivered == nullptr) undelivered = std::make_unique<Undelivered>(io.iov->base, io.iov->size);
  undelivered->Withhold(io.to + arrived, io.to + io.length,
                        "an unchecked completion result: bytes are read that io " + std::to_string(io.number) +
                            " did not bring; it was to read " + std::to_string(io.length) + " bytes at offset " +
                            std::to_string(io.offset) + " of " + io.file->path + ", and its result was " +
                            std::to_string(io.result));
}

void Engine::Untrack(const std::shared_ptr<Io>& io) {
  counters.in_flight--;
  io->iov->in_flight--;
  io->file->in_flight--;
  auto entry = busy_.find(io->to);
  if (entry != busy_.end() && entry->second == io) busy_.erase(entry);
}

// As the daemon's IoRing::jobsToProc: by io_depth, and never more than the completion queue has room for. A timeout
// with a negative depth never runs a partial batch.
void Engine::Cut(const std::shared_ptr<Ring>& ring) {
  if (ring->destroyed || ring->lost) return;
  for (;;) {
    int announced = static_cast<int>(ring->head - ring->cut);
    int room = ring->entries - ring->processing - static_cast<int>(ring->completions.size());
    int count = ring->depth > 0 ? ring->depth : std::min(announced, room);
    if (ring->depth < 0) count = std::min(count, -ring->depth);
    if (count <= 0 || count > announced || count > room) break;
    auto job = std::make_shared<Job>();
    job->ring = ring;
    job->begin = ring->cut;
    job->ios.assign(ring->queue.begin(), ring->queue.begin() + count);
    ring->queue.erase(ring->queue.begin(), ring->queue.begin() + count);
    ring->cut += static_cast<uint64_t>(count);
    ring->claims[job->begin] = {ring->cut, false};
    ring->processing += count;
    queued_.push_back(std::move(job));
  }
}

void Engine::StartQueued() {
  while (!queued_.empty() && in_service_ < settings.jobs) {
    std::shared_ptr<Job> job = queued_.front();
    queued_.pop_front();
    bool stalled = std::any_of(job->ios.begin(), job->ios.end(),
                               [this](const auto& io) { return settings.stall_ios.count(io->number) != 0; });
    for (const auto& io : job->ios) {
      io->stalled = stalled;
      Inject(io.get(), job->ring.get());
    }
    if (stalled || job->ring->destroyed || job->ring->lost) continue;
    uint64_t now = NowNs(), bytes = 0;
    for (const auto& io : job->ios) bytes += io->length;
    job->when = link_.Reserve(now, static_cast<uint64_t>(settings.latency_ms * 1e6), bytes);
    counters.jobs++;
    in_service_++;
    Schedule(now, Step::kStart, std::move(job));
  }
}

// Losses that happen when a certain io starts.
void Engine::Inject(Io* io, Ring* ring) {
  if (io->number == settings.ring_lost) {
    for (const auto& any : rings) any->lost = RemoveLink(any->link) || any->lost;
  }
  if (io->number == settings.daemon_dead) KillDaemon(ring->mount);
  if (io->number == settings.daemon_stopped) StopDaemon(ring->mount);
  if (io->number == settings.forget) ForgetFiles(ring->mount);
}

void Engine::Schedule(uint64_t at_ns, Step step, std::shared_ptr<Job> job) {
  timers_.emplace(at_ns, Task{step, std::move(job)});
  timer_changed_.notify_one();
}

void Engine::Work() {
  prctl(PR_SET_NAME, "hf3fs-emulator");
  prctl(PR_SET_TIMERSLACK, 1000);
  std::unique_lock<std::mutex> lock(mutex);
  while (!stopping_) {
    if (timers_.empty()) {
      timer_changed_.wait(lock);
      continue;
    }
    uint64_t at = timers_.begin()->first, now = NowNs();
    if (at > now) {
      timer_changed_.wait_until(lock, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(at)));
      continue;
    }
    Task task = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    if (!timers_.empty()) timer_changed_.notify_one();  // another thread takes over the wait for the next one
    Run(std::move(task), lock);
  }
  threads_--;
  ended_.notify_all();
}

void Engine::Run(Task task, std::unique_lock<std::mutex>& lock) {
  const std::shared_ptr<Job>& job = task.job;
  if (IsStopped(job->ring->mount)) return Schedule(NowNs() + kStopCheckNs, task.step, job);
  if (!HasRing(job->ring.get(), lock)) {
    Drop(job);
    return ReleaseReady(lock);
  }
  switch (task.step) {
    case Step::kStart:
      Poison(job.get(), lock);
      if (NowNs() < job->when.begin_ns) return Schedule(job->when.begin_ns, Step::kRead, job);
      [[fallthrough]];
    case Step::kRead:
      Read(job.get(), lock);
      if (NowNs() < job->when.end_ns) return Schedule(job->when.end_ns, Step::kPost, job);
      [[fallthrough]];
    case Step::kPost:
      ready_.push_back(job);
      ReleaseReady(lock);
  }
}

void Engine::Poison(Job* job, std::unique_lock<std::mutex>& lock) {
  if (!settings.poison) return;
  job->ring->touching++;
  lock.unlock();
  for (const auto& io : job->ios) {
    if (!FillWithPoison(io->to, io->length)) {
      Die("the buffer of io %llu was unmapped while the io was in flight", static_cast<unsigned long long>(io->number));
    }
  }
  lock.lock();
  job->ring->touching--;
  touched_.notify_all();
}

// When completions are shuffled, a few jobs are held back; the last ones in service are let go at once, so nothing is
// late for ever.
void Engine::ReleaseReady(std::unique_lock<std::mutex>& lock) {
  while (!ready_.empty() && (settings.shuffle == 0 || ready_.size() >= 4 || ready_.size() >= in_service_)) {
    size_t pick = settings.shuffle == 0 ? 0 : random_() % ready_.size();
    std::shared_ptr<Job> next = ready_[pick];
    ready_.erase(ready_.begin() + static_cast<ptrdiff_t>(pick));
    if (HasRing(next->ring.get(), lock)) {
      Post(next);
    } else {
      Drop(next);
    }
  }
}

void Engine::Post(const std::shared_ptr<Job>& job) {
  Ring* ring = job->ring.get();
  in_service_--;
  ring->claims[job->begin].second = true;
  while (!ring->claims.empty() && ring->claims.begin()->second.second) {  // slots retire in order
    ring->tail = ring->claims.begin()->second.first;
    ring->claims.erase(ring->claims.begin());
  }
  for (const auto& io : job->ios) {
    ring->completions.push_back(io);
  }
  ring->processing -= static_cast<int>(job->ios.size());
  ring->completed.notify_all();
  Cut(job->ring);  // with no post: a worker that has done a job looks for the next one of its ring
  StartQueued();
}

// Its ring is gone: it never completes.
void Engine::Drop(const std::shared_ptr<Job>& job) {
  (void)job;
  in_service_--;
  StartQueued();
}

std::string Engine::Finish() {
  if (getpid() != pid_) return "";  // a fork owns neither the threads nor the links
  struct Answer {
    std::mutex mutex;
    std::condition_variable ready;
    bool done = false;
    std::string left;
  };
  {
    std::unique_lock<std::mutex> lock(mutex);
    if (waiters > 0) Die("exit() destroys the tables of the library while a thread is in wait_for_ios");
    stopping_ = true;
    timer_changed_.notify_all();
    ended_.wait_for(lock, std::chrono::seconds(1), [this] { return threads_ == 0; });
  }
  auto answer = std::make_shared<Answer>();
  std::thread([this, answer] {
    std::string left = Leftovers();
    std::lock_guard<std::mutex> lock(answer->mutex);
    answer->left = std::move(left);
    answer->done = true;
    answer->ready.notify_all();
  }).detach();
  std::unique_lock<std::mutex> lock(answer->mutex);
  answer->ready.wait_for(lock, std::chrono::seconds(1), [&answer] { return answer->done; });
  return answer->left;
}

// A daemon that lets nobody remove a link makes its client keep what that is for.
std::string Engine::Leftovers() {
  std::unique_lock<std::mutex> lock(mutex);
  iovs.Prune(lock);
  std::string left;
  for (const auto& ring : rings) {
    if (RemoveLink(ring->link)) left += " ring " + ring->link;
  }
  left += iovs.RemoveLinks() + files.Leftovers();
  std::string traces;
  RemoveTraces(&traces);
  return left + traces;
}

}  // namespace emu
