// What steers the emulator, how it refuses, and what it counts.
//
// Each setting is the variable FST_EMU_HF3FS_<NAME> at load (an unknown name aborts), and fst_emu_hf3fs_set("<name>",
// value) later. "The nth" counts from load or from the call that set it; lists are "3,7".
// clang-format off
//   STRICT=1          abort on misuse, with one line that says why; 0: behave as the real library does
//   LEFT=1            abort when rings, iovs or files are left at exit; 0: the process ends in the middle of a load
//   ROOT=folder       the one folder that is a mount (3fs-virt is made in it and removed at exit). Without it, every
//                     folder with a folder 3fs-virt in it is a mount
//   LATENCY_MS=0      from the start of a job to its first byte
//   BANDWIDTH=0       bytes/s of the link that all jobs share; 0: no limit
//   LINK=file         the link is shared with all processes that name the same file (made if absent; the caller
//                     removes it)
//   JOBS=32           jobs in service at a time
//   THREADS=4         threads that read files
//   POISON=1          fill a buffer with 0xA5 before its read, so that what was not read shows
//   SHUFFLE=seed      complete jobs in random order (0: off)
//   EAGAIN_EVERY=n    every nth prep_io answers -EAGAIN
//   EARLY=n           every nth prep_io is followed by another client's post: what is prepared starts before submit_ios
//   SHORT=list  SHORT_EVERY=n               these ios give half of what they should
//   EIO=list  EIO_EVERY=n  EIO_PATH=text    these ios, or ios on files with this in their path, give -EIO
//   STALL=list        these ios never complete, and so neither do their jobs
//   RING_LOST=n       when the nth io starts, the links of all rings vanish: no io of them completes any more
//   DAEMON_DEAD=n     when the nth io starts, the daemon dies: 3fs-virt vanishes from the mount (lstat says ENOENT,
//                     where a real dead mount says ENOTCONN), prep and submit still succeed, wait returns 0.
//                     fst_emu_hf3fs_revive() brings it back, without links and knowing no file of before (EBADF)
//   DAEMON_STOPPED=n  when the nth io starts, the daemon is stopped: no io completes, and calls that ask it (reg_fd,
//                     dereg_fd, what makes iovs and rings) wait for fst_emu_hf3fs_continue(), a minute at most
//   FORGET=n          when the nth io starts, the daemon forgets all files: their ios give -EBADF until the files are
//                     opened and registered anew, as with one that was restarted in a moment
//   MEMLOCK=bytes     more iov memory than this fails to be registered: its ios give -EACCES
//   FAIL=list         "prep_io:2:-5,reg_fd:1:24": the nth call of a function answers this; "iorwrap:1:-2": the nth
//                     iorcreate fails after it made its link, and leaves it, as where the semaphores are not found;
//                     "io:3:-121": the result of the third io (EREMOTEIO: an RPC that failed)
// clang-format on
//
// What happens to a result that is not checked: a failed io leaves its whole buffer poisoned and a short one its tail.
// Reading a page of that aborts (undelivered.h); less than a page shows as wrong bytes.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace emu {

struct Settings {
  bool strict = true, poison = true, left = true;
  std::string root, link, eio_path;
  double latency_ms = 0, bandwidth = 0;
  uint64_t jobs = 32, threads = 4, shuffle = 0, eagain_every = 0, early = 0, short_every = 0, eio_every = 0;
  uint64_t memlock = 0;
  uint64_t ring_lost = 0, daemon_dead = 0, daemon_stopped = 0, forget = 0;  // ios are numbered from 1; 0: never
  std::set<uint64_t> short_ios, eio_ios, stall_ios;
  struct Failure {
    uint64_t call;
    int result;
  };
  std::multimap<std::string, Failure> failures;  // function -> call number, result
};

struct Counters {
  uint64_t ios = 0, jobs = 0, bytes = 0, submits = 0, waits = 0, eagain = 0, in_flight = 0, max_in_flight = 0;
  std::map<std::string, uint64_t> calls;
};

// Sets one setting by its lower-case name; false when the name or the value is wrong.
bool Set(Settings* settings, const Counters& counters, const std::string& name, const std::string& value);

// The settings that the environment makes. Aborts on an unknown FST_EMU_HF3FS_ variable.
Settings FromEnvironment();

// Prints "hf3fs emulator: <reason>", removes what this process made in /dev/shm and in mounts, and aborts.
[[noreturn]] void Die(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emu
