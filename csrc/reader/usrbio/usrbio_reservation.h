// Pages of /dev/shm for the buffer of a reader that is about to be made: to allocate them takes milliseconds, and needs
// neither library nor mount nor headers, so that it is done while those are found and read.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "base/fd.h"

namespace fst::usrbio {

// All functions: any thread.
class ShmReservation {
 public:
  // Nothing is done early where descriptors are few.
  static bool MayTakeFds();

  // Allocates `bytes` on `numa` (-1: anywhere), once, and blocks meanwhile. Nothing where descriptors or /dev/shm are
  // short, or after Take or Drop: the reader makes its buffer then, and says what it lacks.
  void Fill(size_t bytes, int numa);
  // A file of exactly `bytes`, all of them allocated on `numa`: waits for a Fill that runs. Not valid where there is
  // none; the next Take finds none.
  UniqueFd Take(size_t bytes, int numa);
  // Gives the pages back: waits for a Fill that runs. Later ones allocate nothing.
  void Drop();

 private:
  std::mutex mutex_;  // guards what follows
  std::condition_variable filled_;
  bool filling_ = false, over_ = false;  // over: nobody will take it
  size_t bytes_ = 0;
  int numa_ = -1;
  UniqueFd fd_;
};

}  // namespace fst::usrbio
