// The emulated CUDA driver's state: devices, memory, streams, injected failures. Built for strictness, not for speed:
// one mutex guards everything below, streams run on a thread each and drop it while they sleep and copy.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "device/cuda_api.h"
#include "emulators/cuda/extra_api.h"
#include "emulators/failures.h"

namespace fst::emu {

using cuda::CUcontext;
using cuda::CUdevice;
using cuda::CUdeviceptr;
using cuda::CUevent;
using cuda::CUresult;
using cuda::CUstream;
using cuda::kSuccess;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

constexpr int kMostDevices = 8;

struct Stream;

// A primary context; its address is the handle. One a device, never freed.
struct Context {
  int device = 0;
  int retained = 0;              // 0: not active
  CUresult sticky = kSuccess;    // what every call on it returns from now on
  std::shared_ptr<Stream> null;  // the legacy default stream, made when first used
};

// Memory of cuMemCreate: a memfd, so that other processes can have it, too.
struct Physical {
  ~Physical();
  int fd = -1;
  size_t bytes = 0;
  int device = 0;
  bool exportable = false;
  bool counts = false;  // on its device: in the process that made it
  int users = 0;        // handles and mappings
};

// Memory that the driver knows: the caller's address range and where the emulator reaches it.
struct Block {
  enum Kind { kDevice, kManaged, kHostAllocated, kHostRegistered };
  Block(Kind kind, uintptr_t base, size_t bytes, char* memory, size_t mapped, Context* context, bool portable)
      : kind(kind), base(base), bytes(bytes), memory(memory), mapped(mapped), context(context), portable(portable) {}
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  bool host() const { return kind == kHostAllocated || kind == kHostRegistered; }
  // Memory of cuMemHostAlloc has a page behind it that nobody may touch.
  bool WrittenPastItsEnd() const;
  char* At(uintptr_t address) const { return memory + (address - base); }

  const Kind kind;
  const uintptr_t base;  // device memory: in a PROT_NONE reservation that is never used twice
  const size_t bytes;
  char* const memory;
  const size_t mapped;  // bytes to unmap at `memory` in the end; 0 for memory of the caller
  Context* const context;
  const bool portable;
  std::shared_ptr<Physical> physical;  // of what cuMemMap has mapped
  int access = 3;                      // CUmemAccess_flags; 0 until cuMemSetAccess there
  bool read_only = false;              // registered as such: a mapping that may be one of a file
  int pending = 0;                     // operations that read or write it and have not run
};

// A point in a stream that is reached or not.
struct Mark {
  bool done = false;
};

struct Operation {
  enum Kind { kCopy, kFill, kHostFunction, kWait, kMark };
  Kind kind = kMark;
  char* to = nullptr;
  const char* from = nullptr;
  size_t bytes = 0;
  unsigned char value = 0;
  bool from_read_only = false;      // kCopy: see ReadMapping
  std::vector<char> staged;         // kCopy from pageable memory: what it held when the call was made
  std::shared_ptr<Block> holds[2];  // counted in their `pending`
  std::shared_ptr<Mark> wait_for;   // kWait
  std::shared_ptr<Mark> mark = std::make_shared<Mark>();  // done when the operation is
  cuda::CUhostFn function = nullptr;
  void* argument = nullptr;
  Clock::time_point ready;  // does not run earlier
};

struct Stream {
  Context* context = nullptr;
  unsigned flags = 0;
  std::deque<Operation> queue;  // the front one may be running
  std::shared_ptr<Mark> tail;   // of the last operation ever issued
  Clock::time_point not_before{};
  bool stop = false;
  std::condition_variable work;
  std::thread thread;
};

struct Event {
  Context* context = nullptr;
  std::shared_ptr<Mark> mark;  // of the latest record
};

struct Device {
  Context context;
  size_t limit = 0, used = 0, peak = 0;
  unsigned long long bandwidth = 0;  // of its copies; 0: that of all
  std::map<int, int> attributes;
  Clock::time_point busy_until{};  // of the modelled bus
};

struct Counters {
  unsigned long long unpinned_async_copies = 0, executed = 0, copied_bytes = 0;
  size_t peak_bytes = 0, peak_pinned_bytes = 0;
  int pinned_node = -1;
};

// Those that can be made to fail.
std::vector<std::string> Functions();

struct Emulator {
  static Emulator& Get();

  std::mutex mutex;
  std::condition_variable changed;  // an operation ended, a hold ended

  // settings
  int device_count = 2;
  unsigned long long bandwidth = 0, delay_us = 200, jitter_us = 0;
  size_t pinned_limit = SIZE_MAX;
  bool strict = true, held = false, verbose = false;
  std::string leaks = "report";

  bool initialised = false, reported = false;
  enum { kAlive, kEnding, kEnded } life = kAlive;
  std::multiset<const char*> inside;  // calls that have the lock, or have dropped it to wait
  Device devices[kMostDevices];
  std::map<uintptr_t, std::shared_ptr<Block>> blocks;  // by base; ranges do not overlap
  std::map<cuda::CUmemGenericAllocationHandle, std::shared_ptr<Physical>> handles;
  std::map<uintptr_t, size_t> ranges;                   // of cuMemAddressReserve, bytes by base
  std::map<CUstream, std::shared_ptr<Stream>> streams;  // without the null streams
  std::map<CUevent, std::shared_ptr<Event>> events;
  uintptr_t next_handle = 0x7e57000000000;
  size_t pinned_bytes = 0;
  Counters counters;
  emulators::Failures failures{Functions()};
  unsigned long long random = 88172645463325252ull;

  // emulator.cc. Settings by the environment.
  void ReadSettings();
  size_t LiveBytes() const;
  // "2 allocations (512 bytes), 1 stream" of a context (null: of all); "" for none.
  std::string Living(const Context* context, bool with_registered = true) const;
  void ReportLeaks();       // once, without ranges that were registered
  void ReportRegistered();  // when the library goes: memory of callers, who may unlock it in exit handlers of their own
  // To be called whenever something is made: what is alive when exit() begins is reported, after a second in which
  // callers may still give it back. Callers that gate their calls register their gate before that.
  void ReportLeaksAtExit();
  // In cuInit. As with the driver, calls fail with kDeinitialized once exit() has run what cuInit registered; what
  // calls meanwhile may crash there, and aborts here under strictness.
  void DeinitialiseAtExit();

  // memory.cc
  CUresult AddDeviceMemory(Context* context, size_t bytes, bool managed, uintptr_t* base);
  CUresult AddMapping(uintptr_t base, const std::shared_ptr<Physical>& physical);
  void DropUser(Physical& physical);
  CUresult AddHostMemory(Context* context, void* registered, size_t bytes, bool portable, uintptr_t* base);
  void RemoveBlock(const std::shared_ptr<Block>& block);  // out of the books; unmapped when the last operation lets go
  std::shared_ptr<Block> Find(uintptr_t address) const;   // the block that holds this byte, or null
  bool Overlaps(uintptr_t address, size_t bytes) const;

  // stream.cc
  std::shared_ptr<Stream> NewStream(Context* context, unsigned flags);
  const std::shared_ptr<Stream>& NullStream(Context* context);
  // Puts an operation on a stream, after what it has to wait for by the rules of default streams. Returns its mark.
  std::shared_ptr<Mark> Issue(const std::shared_ptr<Stream>& stream, Operation operation);
  void WaitFor(Lock& lock, const std::shared_ptr<Mark>& mark);
  void WaitIdle(Lock& lock, const Context* context);
  bool Idle(const Stream& stream) const { return stream.queue.empty(); }
  void StopStream(Lock& lock, std::shared_ptr<Stream> stream);  // after what is queued; drops the lock
  void DropContext(Lock& lock, Context* context);               // and all that lives in it
};

// The next unused device address, 0 for none; the caller has the lock.
uintptr_t ReserveDeviceAddress(size_t bytes);

// "emulated CUDA: ..." to stderr, then abort().
[[noreturn]] void Abort(const char* format, ...) __attribute__((format(printf, 1, 2)));

std::string FormatText(const char* format, ...) __attribute__((format(printf, 1, 2)));

// One call into the library: takes the lock, counts, checks initialisation, context and sticky errors, and fails on
// demand.
class Call {
 public:
  enum Needs { kNothing, kInitialised, kContext };
  enum Sort { kNormal, kRelease };  // see set_fail in control.h
  Call(const char* function, Needs needs, Sort sort = kNormal);
  ~Call();  // with the lock

  // Remembers the reason and returns the code.
  CUresult Refuse(CUresult code, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // Misuse: aborts under strictness, else refuses.
  CUresult Misuse(CUresult code, const char* format, ...) __attribute__((format(printf, 3, 4)));

  // The stream or event of a handle when it may be used by the current context, else null with `error` set. Handle 0 is
  // the null stream.
  std::shared_ptr<Stream> FindStream(CUstream handle);
  std::shared_ptr<Event> FindEvent(CUevent handle);
  // The block that holds [address, address + bytes) of memory that a device of the current context can use, else null
  // with `error` set.
  // `access`: CUmemAccess_flags that are needed.
  std::shared_ptr<Block> FindDeviceMemory(CUdeviceptr address, size_t bytes, int access = cuda::kMemAccessRead);

  // True when the context is lost: a release then lets go of its object, although it fails.
  bool lost() const { return context != nullptr && context->sticky != kSuccess; }

  Emulator& emulator;
  Lock lock;
  const char* const function;
  Context* context = nullptr;  // the thread's, when there is a live one
  CUresult error = kSuccess;   // return it at once when it is another
  CUresult late = kSuccess;    // kRelease: what to return in the end
};

Context* CurrentContext();
void SetCurrentContext(Context* context);
const std::string& LastRefusal();

// True on a stream's thread while it runs a host function, which must make no CUDA call.
extern thread_local bool in_host_function;

// The driver's functions, with the signatures of the slice.
#define X(member, symbol, parameters) extern "C" __attribute__((visibility("default"))) CUresult symbol parameters;
}  // namespace fst::emu
namespace fst::cuda {
FST_CUDA_API(X)
FST_CUDA_SHARING_API(X)
FST_CUDA_EXTRA_API(X)
}  // namespace fst::cuda
#undef X
