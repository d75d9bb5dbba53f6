// The slice of 3FS's C API (hf3fs_usrbio.h, libhf3fs_api_shared.so) that the reader uses, declared by hand and found by
// dlopen, so that the addon links to nothing of 3FS. Source of layouts and meanings: deepseek-ai/3FS,
// src/lib/api/hf3fs_usrbio.h and UsrbIo.cc, commit e2cef82.
#pragma once
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "base/shared_library.h"
#include "base/status.h"

namespace fst::usrbio {

// struct hf3fs_iov: memory that client and daemon share.
struct Iov {
  uint8_t* base;
  void* handle;  // null for a wrapped iov
  char id[16];   // the uuid of its link in <mount>/3fs-virt/iovs
  char mount_point[256];
  size_t size, block_size;
  int numa;
};

// struct hf3fs_ior: a ring. Plain data around a handle, so it may be moved, but only one copy may be destroyed.
struct Ior {
  Iov iov;
  void* handle;
  char mount_point[256];
  bool for_read;
  int io_depth, priority, timeout;
  uint64_t flags;
};

// struct hf3fs_cqe: one completion. `result` is a byte count or -errno; `reserved` is never written.
struct Cqe {
  int32_t index, reserved;
  int64_t result;
  const void* userdata;
};

static_assert(sizeof(Iov) == 312 && offsetof(Iov, size) == 288, "hf3fs_iov");
static_assert(sizeof(Ior) == 600 && offsetof(Ior, for_read) == 576 && offsetof(Ior, flags) == 592, "hf3fs_ior");
static_assert(sizeof(Cqe) == 24, "hf3fs_cqe");

// The functions that the core calls, and no other: a library without one of them is refused. X(name without hf3fs_)
#define FST_USRBIO_API(X) \
  X(iovwrap) X(iorcreate4) X(iordestroy) X(reg_fd) X(dereg_fd) X(prep_io) X(submit_ios) X(wait_for_ios)

// Bad arguments may abort the process or raise a signal: check everything before a call. No pointer may be null, no
// mount point longer than 255 characters, no size 0, no block_size > size.
struct UsrbioApi {
  // What a call on the thread of exit() gives: ECANCELED.
  using Refused = std::integral_constant<int, -ECANCELED>;
  using RefusedFd = std::integral_constant<int, ECANCELED>;
  // 0 | -errno. The caller has made the memory and its link, and removes both itself: iovdestroy refuses such an iov.
  Gated<int (*)(Iov*, void* base, const uint8_t id[16], const char* mount, size_t size, size_t block_size, int numa),
        Refused>
      iovwrap;
  // 0 | -errno. timeout 0 and flags < 2 always: with others the library hangs or leaks.
  Gated<int (*)(Ior*, const char* mount, int entries, bool for_read, int io_depth, int timeout, int numa,
                uint64_t flags),
        Refused>
      iorcreate4;
  Gated<void (*)(Ior*), Refused> iordestroy;
  Gated<int (*)(int fd, uint64_t flags), RefusedFd> reg_fd;  // <= 0 is success, > 0 is an errno
  Gated<void (*)(int fd), Refused> dereg_fd;                 // before close(fd)
  // >= 0 | -errno. -EAGAIN is possible with one io in flight, since the ring's slots retire in order. One thread per
  // ring prepares and submits.
  Gated<int (*)(const Ior*, const Iov*, bool read, void* ptr, int fd, size_t off, uint64_t len, const void* userdata),
        Refused>
      prep_io;
  Gated<int (*)(const Ior*), Refused> submit_ios;  // 0 | -errno
  // The number of completions (0 at the deadline) | -errno. abs_timeout is CLOCK_REALTIME. One thread per ring waits.
  Gated<int (*)(const Ior*, Cqe*, int capacity, int min_results, const timespec* abs_timeout), Refused> wait_for_ios;

  std::string library;  // the file that was loaded
  std::string note;     // what loading changed in the process, worth a log line; "" for nothing

  void Bind(const SharedLibrary& from, std::string* missing);  // for SharedLibrary::Load
};

// Finds the library without loading it; "" when there is none. Looks, in this order, at the file
// FASTSAFETENSORS_3FS_LIB, the folder HF3FS_LIB_DIR, LD_LIBRARY_PATH, the system's library folders, and the folders of
// an installed hf3fs_py_usrbio wheel: its .libs, the site-packages, its own (PYTHONPATH, VIRTUAL_ENV, CONDA_PREFIX,
// ~/.local, /usr/local/lib, /usr/lib; a newer python first). The file is libhf3fs_api_shared.so, or has a hash or a
// version in it. Any thread.
std::string FindHf3fsLibrary();

// Loads the library once per process. On OK, *out stays valid until the process ends. COPIER_UNAVAILABLE when there is
// none, when it cannot be loaded or lacks functions (each is named), or when the limit of open files makes loading
// dangerous. A failure is not remembered: the next call tries again. Any thread. The functions go through the exit
// gate: once exit() has begun they do not return, or fail with ECANCELED on its thread. May lower the process's hard
// limit of open files (then api->note says so).
Status LoadUsrbio(const UsrbioApi** out);

// The library's static initialisation allocates a slot for every descriptor that the *hard* limit of RLIMIT_NOFILE
// allows: 2^30 takes many seconds and GiBs, and infinity aborts the process.
constexpr rlim_t kMaxOpenFilesLimit = rlim_t{1} << 22;      // above it, loading is dangerous
constexpr rlim_t kLoweredOpenFilesLimit = rlim_t{1} << 20;  // what it is lowered to

// True when `limit` is dangerous; *lowered is then the limit to set. Pure.
bool OpenFilesLimitIsDangerous(const rlimit& limit, rlimit* lowered);

// Lowers this process's limit where it is dangerous and says so in *note (else ""). COPIER_UNAVAILABLE, naming limit,
// danger and remedy, when `set` refuses. `set` is setrlimit except in tests.
Status LowerOpenFilesLimit(const rlimit& current, int (*set)(const rlimit*), std::string* note);

}  // namespace fst::usrbio
