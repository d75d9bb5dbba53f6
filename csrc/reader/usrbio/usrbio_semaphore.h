// The semaphore by which rings wake their daemon.
#pragma once
#include <semaphore.h>

#include <memory>
#include <string>

namespace fst::usrbio {

// The 3FS client library opens it for each ring and never closes it, so that each daemon of a mount would leave a
// mapping. The C library counts how often it is opened in a process, and knows it by its name: this closes it as often
// as it was opened when no ring of a former daemon is left.
class SubmitSemaphore {
 public:
  // That of the daemon which serves `mount` now; null where it does not tell. Asks the daemon: on the mount's thread.
  static std::shared_ptr<SubmitSemaphore> Of(const std::string& mount);
  ~SubmitSemaphore();
  SubmitSemaphore(const SubmitSemaphore&) = delete;
  SubmitSemaphore& operator=(const SubmitSemaphore&) = delete;

  // The library has opened it for a ring, which holds this object as long as it lives. On the mount's thread.
  void CountOpening() { ++opened_; }

 private:
  SubmitSemaphore(std::string name, sem_t* own) : name_(std::move(name)), own_(own) {}
  const std::string name_;
  sem_t* const own_;  // the same memory as the library's
  int opened_ = 1;
};

}  // namespace fst::usrbio
