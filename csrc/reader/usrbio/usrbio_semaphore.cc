#include "reader/usrbio/usrbio_semaphore.h"

#include <map>
#include <mutex>

#include "reader/usrbio/usrbio_mount.h"

namespace fst::usrbio {

std::shared_ptr<SubmitSemaphore> SubmitSemaphore::Of(const std::string& mount) {
  static std::mutex* mutex = new std::mutex;
  static auto* by_mount = new std::map<std::string, std::shared_ptr<SubmitSemaphore>>;  // of the daemons seen last
  const std::string prefix = "/dev/shm/sem.";
  Link link;
  if (ReadLink(mount + "/3fs-virt/iovs/submit-ios", &link) != 0 || link.target.compare(0, prefix.size(), prefix) != 0)
    return nullptr;
  const std::string name = "/" + link.target.substr(prefix.size());
  std::lock_guard<std::mutex> lock(*mutex);
  std::shared_ptr<SubmitSemaphore>& last = (*by_mount)[mount];
  if (last == nullptr || last->name_ != name) {
    sem_t* own = sem_open(name.c_str(), 0);
    last.reset(own == SEM_FAILED ? nullptr : new SubmitSemaphore(name, own));
  }
  return last;
}

SubmitSemaphore::~SubmitSemaphore() {
  // A library that closes it itself has done so by now: then this fails at once.
  while (opened_ > 0 && sem_close(own_) == 0) --opened_;
}

}  // namespace fst::usrbio
