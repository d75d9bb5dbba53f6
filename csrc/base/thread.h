// Detached threads. Nothing in this package joins a thread: a read that hangs on a dead mount must not hang close() or
// the exit of the process. A thread owns what it touches, through shared pointers.
#pragma once
#include <cstddef>
#include <functional>

#include "base/status.h"

namespace fst {

// Starts a detached thread. All signals are blocked in it but those of its own faults: the others are for the program's
// threads. `name` is cut to 15 characters. OUT_OF_HOST_MEMORY when the system's limits or memory allow no thread.
Status StartThread(const char* name, std::function<void()> body, size_t stack_bytes = 1 << 20);

}  // namespace fst
