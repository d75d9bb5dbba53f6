// The emulated NCCL's state: one mutex guards it. Ranks, of one process or several of a machine, are connected in pairs
// by abstract Unix sockets, which leave nothing behind.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device/nccl_api.h"
#include "emulators/failures.h"

namespace fst::emu_nccl {

using nccl::ncclComm_t;
using nccl::ncclResult_t;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

// The emulated CUDA driver's part.
struct Driver {
  int (*acquire)(unsigned long long pointer, unsigned long long bytes) = nullptr;
  void (*release)(unsigned long long pointer) = nullptr;
  void (*write)(unsigned long long pointer, const void* from, unsigned long long bytes) = nullptr;
  void (*read)(unsigned long long pointer, void* to, unsigned long long bytes) = nullptr;
  const char* (*last_refusal)() = nullptr;
  cuda::CUresult (*current_device)(cuda::CUdevice* device) = nullptr;
  cuda::CUresult (*launch)(cuda::CUstream stream, void (*function)(void*), void* argument) = nullptr;
};

// The sockets of one rank, to each of the others.
class Peers {
 public:
  ~Peers();
  // Connects to the other ranks, whenever they come; false when aborted. Sets *why for ranks that do not fit.
  bool Connect(const nccl::ncclUniqueId& id, int rank, int ranks, int device, std::string* why);
  // False where the peer is gone, or when aborted.
  bool Send(int peer, const void* bytes, size_t count);
  bool Receive(int peer, void* bytes, size_t count);
  // Ends all calls, on any thread.
  void Abort();
  bool aborted() const { return aborted_; }

 private:
  bool Accept(int listener, int rank, int ranks, int device, std::string* why);
  void Set(int peer, int fd);
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;      // of setting fds_
  std::vector<int> fds_;  // by rank; -1
};

// A communicator. Its threads and the operations on streams hold it, too.
struct Comm {
  ncclComm_t handle = nullptr;
  int rank = 0, ranks = 0, device = 0;
  Peers peers;
  std::atomic<ncclResult_t> state{nccl::kInProgress};
  std::atomic<int> pending{0};  // broadcasts on streams
  bool finalized = false;
  int inside = 0;  // calls
  unsigned long long issued = 0;
  Clock::time_point busy_until{};  // of the link; used by one stream's thread
};

struct Broadcast {
  std::shared_ptr<Comm> comm;
  unsigned long long from, to, bytes, number;
  int root;
  cuda::CUstream stream;
};

// Those that can be made to fail.
std::vector<std::string> Functions();

struct Emulator {
  static Emulator& Get();

  std::mutex mutex;
  // settings
  bool strict = true, notice = false;
  int version = 0;
  unsigned long long bandwidth = 0, init_ms = 0, hang = 0;

  bool destroyed = false;
  Driver driver;
  std::map<ncclComm_t, std::shared_ptr<Comm>> comms;
  uintptr_t next_handle = 0xacc100000000;
  std::atomic<unsigned long long> received_bytes{0};
  emulators::Failures failures{Functions()};

  void ReadSettings();
  bool FindDriver();
};

// "emulated NCCL: ..." to stderr, then abort().
[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One call into the library: takes the lock, counts, and fails on demand.
class Call {
 public:
  enum Sort { kNormal, kRelease };
  explicit Call(const char* function, Sort sort = kNormal);
  // The same of a communicator, which no other thread may be in.
  Call(const char* function, ncclComm_t handle, Sort sort = kNormal);
  ~Call();

  // Remembers the reason and returns the code.
  int Refuse(int code, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // Misuse: aborts under strictness, else refuses.
  int Misuse(int code, const char* format, ...) __attribute__((format(printf, 3, 4)));

  Emulator& emulator;
  Lock lock;
  const char* const function;
  std::shared_ptr<Comm> comm;
  int error = 0;  // return it at once when it is another
  int late = 0;   // kRelease: what to return in the end
};

const std::string& LastRefusal();

}  // namespace fst::emu_nccl

// NCCL's functions, with the signatures of the slice.
namespace fst::nccl {
#define X(member, symbol, result, parameters) \
  extern "C" __attribute__((visibility("default"))) result symbol parameters;
FST_NCCL_API(X)
#undef X
}  // namespace fst::nccl
