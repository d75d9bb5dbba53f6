// An owned file descriptor, counted in nativeMetrics().openFiles.
#pragma once
#include <unistd.h>

#include <utility>

#include "base/metrics.h"

namespace fst {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {
    if (fd_ >= 0) Metrics::Get().open_files.fetch_add(1, std::memory_order_relaxed);
  }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ < 0) return;
    close(fd_);
    Metrics::Get().open_files.fetch_sub(1, std::memory_order_relaxed);
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives the descriptor up: it is not closed, and metrics do not count it any more.
  int Release() {
    if (fd_ >= 0) Metrics::Get().open_files.fetch_sub(1, std::memory_order_relaxed);
    return std::exchange(fd_, -1);
  }

 private:
  int fd_ = -1;
};

}  // namespace fst
