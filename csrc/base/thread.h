// Detached threads. Nothing in this package is joined: a read that hangs on a dead mount must not hang close() or the
// exit of the process. What a thread touches it owns through shared pointers.
#pragma once
#include <cstddef>
#include <functional>

#include "base/status.h"

namespace fst {

// Starts a detached thread with all signals blocked but those of its own faults (the others belong to the program's own
// threads). `name` is cut to 15 characters. OUT_OF_HOST_MEMORY when the system refuses a thread (its limits, its
// memory).
Status StartThread(const char* name, std::function<void()> body, size_t stack_bytes = 1 << 20);

}  // namespace fst
