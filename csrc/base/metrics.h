// What this process holds now: nativeMetrics() in JavaScript. All are 0 when everything is closed and disposed, but for
// what is kept idle, which nativeMetrics() leaves out.
#pragma once
#include <atomic>
#include <cstdint>

namespace fst {

struct Metrics {
  std::atomic<int64_t> device_bytes{0};   // allocated for tensors in device memory
  std::atomic<int64_t> host_bytes{0};     // allocated for tensors in host memory
  std::atomic<int64_t> mapped_bytes{0};   // of tensors that are views of mapped files: memory of the page cache
  std::atomic<int64_t> staging_bytes{0};  // allocated for staging slots: host, shared (iov) and device memory
  std::atomic<int64_t> open_files{0};     // file descriptors owned by UniqueFd: headers, data, shared memory
  std::atomic<int64_t> rings{0};          // USRBIO rings in use
  std::atomic<int64_t> idle_rings{0};     // USRBIO rings kept for the next loader
  std::atomic<int64_t> idle_bytes{0};     // of the shared memory (iov) kept with them
  std::atomic<int64_t> in_flight{0};      // files being opened; chunks being read, converted, copied

  // Process-wide, never destroyed: threads that outlive main() may still count.
  static Metrics& Get();
};

}  // namespace fst
