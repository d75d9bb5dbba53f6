// Memory that a driver knows by a registration of its own. Until that has ended the driver may still write to the
// memory or copy from it, whatever an error says: it must neither be freed nor used for anything else.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace fst {

// Ends a registration with `release`, which returns false where it failed and may be called again, and then calls
// `free`. It is tried twice, since drivers report errors of earlier work there. After that the memory is kept, and
// `bytes` of it count in `*bytes_counter` (of Metrics; may be null), until a later try succeeds or the process ends:
// the next ReleaseMemory tries, and so does RetryReleases. Any thread; neither function may call this one.
void ReleaseMemory(std::function<bool()> release, std::function<void()> free, size_t bytes,
                   std::atomic<int64_t>* bytes_counter);

// Tries once more to release what is kept. Any thread; blocks as `release` does.
void RetryReleases();

}  // namespace fst
