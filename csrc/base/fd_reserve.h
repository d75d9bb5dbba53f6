// Room in the table of descriptors for work that comes later, when others may have taken the rest.
#pragma once
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstddef>
#include <vector>

namespace fst {

// One thread at a time. Metrics do not count these descriptors.
class FdReserve {
 public:
  explicit FdReserve(size_t count) : count_(count) {}
  ~FdReserve() { Give(); }
  FdReserve(const FdReserve&) = delete;
  FdReserve& operator=(const FdReserve&) = delete;

  // Holds `count` descriptors, or as many as there are.
  void Take() {
    while (held_.size() < count_) {
      int fd = eventfd(0, EFD_CLOEXEC);
      if (fd < 0) return;
      held_.push_back(fd);
    }
  }
  // Whether `count` more could be taken now.
  bool HasRoomFor(size_t count) {
    FdReserve more(count);
    more.Take();
    return held_.size() == count_ && more.held_.size() == count;
  }
  // Leaves them to the next opener.
  void Give() {
    for (int fd : held_) close(fd);
    held_.clear();
  }

 private:
  const size_t count_;
  std::vector<int> held_;
};

}  // namespace fst
