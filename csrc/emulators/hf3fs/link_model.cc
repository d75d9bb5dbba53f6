#include "emulators/hf3fs/link_model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace emu {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared between processes");

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

bool LinkModel::Configure(double bandwidth, const std::string& file) {
  bandwidth_ = bandwidth;
  if (file == file_) return true;
  if (free_at_ != &own_) munmap(free_at_, sizeof *free_at_);
  free_at_ = &own_;
  file_.clear();
  if (file.empty()) return true;
  int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  // Growing a file to the size it has leaves another process's value alone.
  void* memory = ftruncate(fd, sizeof *free_at_) == 0
                     ? mmap(nullptr, sizeof *free_at_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                     : MAP_FAILED;
  close(fd);
  if (memory == MAP_FAILED) return false;
  free_at_ = static_cast<std::atomic<uint64_t>*>(memory);
  file_ = file;
  return true;
}

LinkModel::Slot LinkModel::Reserve(uint64_t now_ns, uint64_t latency_ns, uint64_t bytes) {
  uint64_t first = now_ns + latency_ns;
  if (bandwidth_ <= 0) return {first, first};
  uint64_t duration = static_cast<uint64_t>(static_cast<double>(bytes) / bandwidth_ * 1e9);
  uint64_t free_at = free_at_->load();
  for (;;) {
    // A file from before a reboot holds a time that is far ahead.
    uint64_t begin = free_at > now_ns + 600ull * 1000000000 ? first : std::max(first, free_at);
    if (free_at_->compare_exchange_weak(free_at, begin + duration)) return {begin, begin + duration};
  }
}

}  // namespace emu
