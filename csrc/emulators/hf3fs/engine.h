// The daemon's side: rings, jobs cut from them, the modelled link, and the threads that read files into iovs.
#pragma once
#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulators/hf3fs/files.h"
#include "emulators/hf3fs/link_model.h"
#include "emulators/hf3fs/memory.h"
#include "emulators/hf3fs/settings.h"

namespace emu {

struct Io {
  int slot = 0;
  uint64_t number = 0;  // of this process, from 1
  std::shared_ptr<IovEntry> iov;
  std::shared_ptr<RegisteredFile> file;
  uint8_t* to = nullptr;
  uint64_t offset = 0, length = 0;
  const void* userdata = nullptr;
  bool invalid = false;   // crosses a block
  bool overlaps = false;  // shares bytes with another
  bool stalled = false;   // its job never completes
  int64_t result = 0;
};

// A ring as its owner made it, and as the daemon sees it. Sequence numbers count ios from 0 and never wrap.
struct Ring {
  std::string mount, link;
  int entries = 0, depth = 0;
  uint64_t flags = 0;
  uint8_t* base = nullptr;  // its shared memory; nothing is in it, but it is as large as a real one
  size_t size = 0;
  bool lost = false, destroyed = false;
  int touching = 0;  // threads that use its ios' buffers without the lock
  pthread_t preparer = {}, waiter = {};
  bool has_preparer = false, has_waiter = false;

  std::vector<std::shared_ptr<Io>> slots;                // by index; set from prep until its completion is taken
  std::deque<std::shared_ptr<Io>> queue;                 // prepared, not yet in a job
  uint64_t head = 0, submitted = 0, cut = 0, tail = 0;   // prepared, submitted, in jobs, retired in order
  std::map<uint64_t, std::pair<uint64_t, bool>> claims;  // of jobs: begin -> end, done
  int processing = 0;
  std::deque<std::shared_ptr<Io>> completions;
  std::condition_variable completed;
};

struct Job {
  std::shared_ptr<Ring> ring;
  uint64_t begin = 0;
  std::vector<std::shared_ptr<Io>> ios;
  LinkModel::Slot when = {};
};

// Lets go of the lock while it lives: around what asks the daemon of a FUSE mount, which may be stopped.
class Unlocked {
 public:
  explicit Unlocked(std::unique_lock<std::mutex>& lock) : lock_(lock) { lock_.unlock(); }
  ~Unlocked() { lock_.lock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  std::unique_lock<std::mutex>& lock_;
};

class Engine {
 public:
  // The one engine; never destroyed. Its lock guards everything, settings and counters too.
  static Engine& Get();

  std::mutex mutex;
  Settings settings;
  Counters counters;
  IovTable iovs;
  FileTable files;
  std::set<std::shared_ptr<Ring>> rings;
  int waiters = 0;  // threads in wait_for_ios

  // Aborts when strict, else returns. Everything below wants the lock held.
  void Misuse(const std::string& reason);
  // Counts a call of `function`; true when it shall answer *result instead of working.
  // As the library, it has no tables any more once exit() has begun: aborts.
  bool ShallFail(const char* function, int* result);
  // Applies settings that live elsewhere; false when the link's file cannot be used.
  bool Apply();

  void AddRing(std::shared_ptr<Ring> ring);
  // Takes the ring from the daemon; waits until no thread touches its buffers.
  void RemoveRing(const std::shared_ptr<Ring>& ring, std::unique_lock<std::mutex>& lock);
  // An iov or a ring is made on `mount`: by the thread that was the first to do so, since the daemon of a process that
  // dies takes back what that one made and nothing else.
  void CheckMaker(const char* function, const std::string& mount);
  // Whether the daemon still has the ring. It is asked, without the lock.
  bool HasRing(Ring* ring, std::unique_lock<std::mutex>& lock);
  // Ios of this ring that still can write into their buffers; 0 where it is lost.
  static int InFlight(const Ring& ring);

  // The io whose buffer overlaps, or null.
  std::shared_ptr<Io> FindOverlap(const uint8_t* to, uint64_t length) const;
  void Prepare(const std::shared_ptr<Ring>& ring, std::shared_ptr<Io> io);
  void Submit(const std::shared_ptr<Ring>& ring);
  // A post on the daemon's semaphore, of whichever client: it takes what any ring has prepared, submitted or not.
  void Wake();
  // Its completion was taken: what did not arrive must not be read.
  void Retire(Ring* ring, const std::shared_ptr<Io>& io, std::unique_lock<std::mutex>& lock);

  // Stops the threads. What is left is described in the answer. Waits two seconds at most for a daemon that is stopped.
  std::string Finish();

 private:
  enum class Step { kStart, kRead, kPost };
  struct Task {
    Step step;
    std::shared_ptr<Job> job;
  };

  Engine();
  void Cut(const std::shared_ptr<Ring>& ring);
  void StartQueued();
  void Schedule(uint64_t at_ns, Step step, std::shared_ptr<Job> job);
  void Work();
  void Run(Task task, std::unique_lock<std::mutex>& lock);
  void Poison(Job* job, std::unique_lock<std::mutex>& lock);
  void Read(Job* job, std::unique_lock<std::mutex>& lock);
  void ReadOne(Io* io, Job* job, std::unique_lock<std::mutex>& lock);
  void JoinHoles(Job* job, std::unique_lock<std::mutex>& lock);
  void Withhold(const Io& io, std::unique_lock<std::mutex>& lock);
  void Inject(Io* io, Ring* ring);
  bool Injected(const std::string& function, uint64_t call, int* result) const;
  std::string Leftovers();
  void ReleaseReady(std::unique_lock<std::mutex>& lock);
  void Post(const std::shared_ptr<Job>& job);
  void Drop(const std::shared_ptr<Job>& job);
  void Untrack(const std::shared_ptr<Io>& io);

  const pid_t pid_;
  LinkModel link_;
  std::map<std::string, pid_t> makers_;                 // the thread that made the first iov or ring, by mount
  std::map<const uint8_t*, std::shared_ptr<Io>> busy_;  // by buffer, of all ios that are in flight or not yet reaped
  std::deque<std::shared_ptr<Job>> queued_;
  std::vector<std::shared_ptr<Job>> ready_;  // held back to be shuffled
  uint64_t in_service_ = 0;
  std::multimap<uint64_t, Task> timers_;
  std::condition_variable timer_changed_, touched_, ended_;
  uint64_t threads_ = 0;
  std::mt19937_64 random_;
  bool stopping_ = false;
};

}  // namespace emu
