// How many descriptors the process's table has room for.
#pragma once
#include <cstddef>

namespace fst {

// Makes the table long enough for `count` descriptors, or for as many as the process may have; it never shrinks. By
// itself it doubles when it is full, and each time a process with several threads waits until all processors have left
// the old one (synchronize_rcu, 5 to 20 ms), and so does everyone who needs a longer one. Never fails: without room it
// grows as before. Any thread; blocks.
void GrowFdTable(size_t count);

}  // namespace fst
