#include "base/random.h"

#include <sys/auxv.h>
#include <sys/random.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace fst {

uint64_t RandomSecret() {
  uint64_t secret = 0;
  ssize_t got;
  do {
    got = getrandom(&secret, sizeof secret, 0);
  } while (got < 0 && errno == EINTR);
  if (got == sizeof secret) return secret;
  // Where a sandbox refuses the call: what the kernel gave this process at its start, another part of it each time.
  static std::atomic<uint64_t> calls{0};
  const uint64_t call = calls.fetch_add(1, std::memory_order_relaxed);
  const auto* given = reinterpret_cast<const uint8_t*>(getauxval(AT_RANDOM));  // 16 bytes, or null
  if (given != nullptr) memcpy(&secret, given + (call % 2) * sizeof secret, sizeof secret);
  const auto now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  return secret ^ (now + call) * 0x9E3779B97F4A7C15U;
}

}  // namespace fst
