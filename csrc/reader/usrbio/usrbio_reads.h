// The pending reads of a USRBIO reader, from Submit to their completion, whatever happens to the ring meanwhile.
#pragma once
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/completion_queue.h"
#include "base/task_pool.h"
#include "reader/reader.h"
#include "reader/usrbio/usrbio_files.h"
#include "reader/usrbio/usrbio_ring.h"

namespace fst::usrbio {

// Shared by the I/O thread, the rings' waiting threads, and the threads that check files and mounts. A generation is
// one ring with its iov: completions of an earlier one are ignored.
class Reads : public RingEvents, public std::enable_shared_from_this<Reads> {
 public:
  Reads(std::shared_ptr<CompletionQueue> queue, std::string mount);

  // ---- the I/O thread ----
  struct Next {
    uint32_t index;
    uint64_t userdata;
    uint8_t* to;
    std::shared_ptr<ReaderFile> file;
    std::shared_ptr<Descriptor> through;
    uint64_t offset, length;
  };
  void Add(ReadRequest request, uint64_t tag);
  // Takes the oldest read that waits; it then counts as submitted to the ring. False when none waits.
  bool TakeWaiting(Next* next);
  // The ring had no room for that read: it waits again, before the others.
  void PutBack(uint32_t index);
  void Fail(uint32_t index, Status status);
  bool HasAny() const;

  // From here on, completions and events of this generation's ring are ignored.
  void EndGeneration();
  // A new ring, with the links that Silent() checks. Every read that the former ring had waits again, in order.
  void BeginGeneration(std::vector<Link> links);
  // Completes every read with this status. What they went through is added to *open: it must stay open until the ring
  // is gone.
  void FailAll(const Status& status, std::vector<std::shared_ptr<Descriptor>>* open);
  // The same for one read; false when there is no such read.
  bool FailTag(uint64_t tag, const Status& status, std::vector<std::shared_ptr<Descriptor>>* open);

  // What was noticed since the last call. kLost: the ring is unusable. kDead: the daemon is gone; *why is the error.
  enum class Health : uint8_t { kGood, kLost, kDead };
  Health TakeHealth(Status* why);
  // How many reads have completed with OK so far.
  uint64_t completed() const;
  // Whether the daemon has answered a read with an error.
  bool refused() const;

  // ---- the ring's waiting thread ----
  void Completed(const Cqe* completions, int count) override;
  void Silent() override;
  void Retry() override;
  void Broken(int error) override;

 private:
  struct Read {
    enum State : uint8_t { kFree, kWaiting, kInRing, kChecking } state = kFree;
    uint64_t tag = 0, sequence = 0;
    int renewals = 0;                     // how often its file was opened anew
    std::shared_ptr<Descriptor> through;  // since it was last in the ring
    ReadRequest request;
  };

  // The lock is held. False when the read was repeated, failed or ended meanwhile.
  bool IsChecking(uint32_t index, uint64_t generation) const;
  Status ResultError(const Read& read, int64_t result) const;
  void CheckLinks(uint32_t index, uint64_t generation);
  void CheckFile(uint32_t index, uint64_t generation, int64_t result);
  void RenewFile(uint32_t index, uint64_t generation);
  void Finish(Read& read, uint32_t index, Status status);  // the lock is held
  void Notice(uint64_t generation, Health health, Status why);

  const std::shared_ptr<CompletionQueue> queue_;
  const std::string mount_;
  TaskPool checkers_{"fst-3fs-check", 4};
  TaskPool prober_{"fst-3fs-probe", 1};  // a dead mount may block it: nothing else runs on it

  mutable std::mutex mutex_;  // guards what follows
  std::vector<Read> reads_;
  std::vector<uint32_t> free_;
  std::deque<uint32_t> waiting_;
  std::vector<Link> links_;
  uint64_t generation_, sequence_ = 0, completed_ = 0;
  bool probing_ = false, refused_ = false;
  Health health_ = Health::kGood;
  Status why_;
};

}  // namespace fst::usrbio
