// What the process holds at this moment. All zero when everything is closed and disposed.
#pragma once
#include <atomic>
#include <cstdint>

namespace fst {

struct Metrics {
  std::atomic<int64_t> device_bytes{0};   // tensors in device memory
  std::atomic<int64_t> host_bytes{0};     // tensors in host memory
  std::atomic<int64_t> staging_bytes{0};  // slots that data passes through
  std::atomic<int64_t> open_files{0};
  std::atomic<int64_t> rings{0};      // 3FS and io_uring rings
  std::atomic<int64_t> in_flight{0};  // reads and copies that were started and have not completed

  // Process-wide, never destroyed: threads that outlive main() may still count.
  static Metrics& Get();
};

}  // namespace fst
