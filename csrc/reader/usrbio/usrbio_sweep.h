// What dead processes left in /dev/shm.
#pragma once
#include <cstddef>

namespace fst::usrbio {

// Removes the shared memory of 3FS clients (hf3fs-iov-…, of whatever program) that belongs to this user and that nobody
// has open or mapped: a client has had its memory open from before its first byte until it ends. The kernel says so,
// for processes of other PID namespaces, too. Returns how many of this user's are left, which are in use or not surely
// abandoned. Any thread; takes microseconds a file.
size_t SweepShm();

}  // namespace fst::usrbio
