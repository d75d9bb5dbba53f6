#include "reader/usrbio/usrbio_reservation.h"

#include <sys/eventfd.h>
#include <sys/resource.h>

#include <utility>

#include "base/numa.h"
#include "reader/usrbio/usrbio_iov.h"

namespace fst::usrbio {
namespace {

// More than headers and a ring take: none of them may lack the one that is held here.
constexpr rlim_t kFdsForOthers = 32;

}  // namespace

bool ShmReservation::MayTakeFds() {
  // The lowest that is free, so that at least as many are in use. Others must not lack it, nor the rest of them here.
  const UniqueFd lowest(eventfd(0, EFD_CLOEXEC));
  rlimit limit;
  return lowest.valid() && getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
         limit.rlim_cur >= static_cast<rlim_t>(lowest.get()) + kFdsForOthers;
}

void ShmReservation::Fill(size_t bytes, int numa) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (over_ || filling_ || fd_.valid()) return;
    filling_ = true;
  }
  UniqueFd fd;
  if (MayTakeFds()) {
    PreferNode near(numa);
    if (!ReserveShm(bytes, &fd).ok()) fd = UniqueFd();
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    filling_ = false;
    fd_ = std::exchange(fd, UniqueFd());  // a Drop that has come meanwhile waits for it
    bytes_ = bytes;
    numa_ = numa;
  }
  filled_.notify_all();
}

UniqueFd ShmReservation::Take(size_t bytes, int numa) {
  UniqueFd taken;
  std::unique_lock<std::mutex> lock(mutex_);
  filled_.wait(lock, [this] { return !filling_; });
  over_ = true;
  if (fd_.valid()) taken = std::exchange(fd_, UniqueFd());
  return taken.valid() && bytes_ == bytes && numa_ == numa ? std::move(taken) : UniqueFd();
}

void ShmReservation::Drop() {
  UniqueFd dropped;  // closed without the lock: to free many pages takes long
  std::unique_lock<std::mutex> lock(mutex_);
  over_ = true;
  filled_.wait(lock, [this] { return !filling_; });
  dropped = std::exchange(fd_, UniqueFd());
}

}  // namespace fst::usrbio
