// How many descriptors the process's table has room for.
#pragma once
#include <cstdint>

namespace fst {

// Makes the table long enough for `count` descriptors, on a thread of its own. It doubles by itself when it is full,
// and each time a process with several threads waits until all processors have left the old one (synchronize_rcu, 5 to
// 20 ms), and so does everyone who opens a file meanwhile; it never shrinks. Never blocks and never fails: without
// room, the table grows as before. Any thread.
void ExpectDescriptors(uint32_t count);

}  // namespace fst
