// Random numbers that nobody outside the process knows.
#pragma once
#include <cstdint>

namespace fst {

// Any thread. Takes no descriptor and does not fail: std::random_device of a static libc++ opens /dev/urandom, and ends
// the process where no more files may be opened.
uint64_t RandomSecret();

}  // namespace fst
