// The link that all jobs share: each job's bytes occupy it one after the other.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace emu {

// CLOCK_MONOTONIC, the same for all processes.
uint64_t NowNs();

class LinkModel {
 public:
  struct Slot {
    uint64_t begin_ns, end_ns;  // when the first byte arrives, and the last
  };

  // `bandwidth` in bytes/s, 0 for no limit; `file` ("" for none) is mapped and shared. False when the file cannot be
  // used.
  bool Configure(double bandwidth, const std::string& file);

  // Takes the next free stretch of the link for a job that starts at `now_ns`. Any thread.
  Slot Reserve(uint64_t now_ns, uint64_t latency_ns, uint64_t bytes);

 private:
  double bandwidth_ = 0;
  std::string file_;
  std::atomic<uint64_t> own_{0};
  std::atomic<uint64_t>* free_at_ = &own_;  // when the link is free again, in this process or in the shared file
};

}  // namespace emu
