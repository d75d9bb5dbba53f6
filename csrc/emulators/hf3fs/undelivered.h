// What a failed or short read left of its buffer: a client that reads it has not looked at the completion's result.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

namespace emu {

// The pages of one iov. The engine's lock guards the calls; faults come on any thread.
class Undelivered {
 public:
  Undelivered(const uint8_t* base, size_t size);
  // Leaves the memory as it is: its owner unmaps it, or has done so.
  ~Undelivered();

  // From here on a read of a whole page in [begin, end) aborts and says `why`. A write makes its page ordinary memory
  // again: what reads as zeros is for the client to fill.
  void Withhold(uint8_t* begin, uint8_t* end, std::string why);

  // Pages of any iov that touch [begin, end) are ordinary memory again.
  static void Release(const uint8_t* begin, const uint8_t* end);

  // Gives faults back to whom they went to before.
  static void Unwatch();

 private:
  friend struct Faults;
  // Null for a page that was never withheld.
  std::atomic<const char*>* StateOf(uintptr_t address) const;

  const uintptr_t first_;  // the page that holds the iov's first byte
  const size_t pages_;
  const std::unique_ptr<std::atomic<const char*>[]> states_;  // null, kReleased, or why a page is withheld
  std::deque<std::string> whys_;
  bool watched_ = false;
};

}  // namespace emu
