// The emulated cuFile's state: one mutex guards it, reads drop it while they sleep and move bytes.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulators/failures.h"
#include "reader/gds/cufile_api.h"

namespace fst::emu_cufile {

using cufile::CUfileError;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

struct Handle {
  ~Handle();
  int fd = -1;      // the caller's, which must stay open
  int reader = -1;  // the same file, opened without O_DIRECT
  dev_t device = 0;
  ino_t inode = 0;
  std::string path;
  int in_flight = 0;
};

struct Buffer {
  size_t bytes = 0;
  int in_flight = 0;
};

// The emulated CUDA driver's part; null pointers where the driver is another one.
struct Driver {
  int (*acquire)(unsigned long long pointer, unsigned long long bytes) = nullptr;
  void (*release)(unsigned long long pointer) = nullptr;
  void (*write)(unsigned long long pointer, const void* from, unsigned long long bytes) = nullptr;
  const char* (*last_refusal)() = nullptr;
};

struct Counters {
  unsigned long long bytes_read = 0, unaligned_reads = 0, unregistered_reads = 0, buffered_files = 0, in_flight = 0;
};

// Those that can be made to fail.
std::vector<std::string> Functions();

struct Emulator {
  static Emulator& Get();

  std::mutex mutex;
  std::condition_variable changed;

  // settings
  bool compat = false, allow_compat = true, require_direct = false, strict = true, held = false;
  std::string refuse, leaks = "report";
  int refuse_code = cufile::kInternalError;
  unsigned long long most_bytes = 0, end = 0, overstated = 0, open_ms = 0, delay_us = 0, bandwidth = 0;

  bool open = false, destroyed = false;
  std::atomic<int> inside{0};  // calls that have begun and not returned
  Driver driver;
  std::map<void*, std::shared_ptr<Handle>> handles;
  std::map<uintptr_t, std::shared_ptr<Buffer>> buffers;  // by base
  uintptr_t next_handle = 0xcf11e00000000;
  Clock::time_point busy_until{};
  Counters counters;
  emulators::Failures failures{Functions()};

  void ReadSettings();
  bool FindDriver();
  void ReportLeaks();
  // As libcufile, whose static objects exit() destroys: calls that are made meanwhile or later abort.
  void Destroy();
};

// "emulated cuFile: ..." to stderr, then abort().
[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One call into the library: takes the lock, counts, and fails on demand.
class Call {
 public:
  enum Sort { kNormal, kRelease };
  Call(const char* function, bool needs_open, Sort sort = kNormal);
  ~Call() { --emulator.inside; }

  // Remembers the reason and returns the code.
  int Refuse(int code, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // Misuse: aborts under strictness, else refuses.
  int Misuse(int code, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // A CUfileOpError for what the emulated CUDA driver said of a range.
  int FromDriver(int result);

  Emulator& emulator;
  Lock lock;
  const char* const function;
  int error = 0;  // return it at once when it is another
  int late = 0;   // kRelease: what to return in the end
};

const std::string& LastRefusal();

}  // namespace fst::emu_cufile

// cuFile's functions, with the signatures of the slice.
namespace fst::cufile {
#define X(member, symbol, result, parameters) \
  extern "C" __attribute__((visibility("default"))) result symbol parameters;
FST_CUFILE_API(X)
#undef X
}  // namespace fst::cufile
