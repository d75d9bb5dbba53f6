// How tests steer the emulated CUDA driver: C functions that libcuda.so.1 exports besides the driver's own, found by
// dlsym.
//
// The same can be set for a whole process by the environment, read at the first call into the library:
//   FST_EMU_CUDA_DEVICES=2           number of devices (0 to 8)
//   FST_EMU_CUDA_MEMORY=2147483648   bytes of memory of each device
//   FST_EMU_CUDA_PINNED=BYTES        most page-locked host memory (no limit)
//   FST_EMU_CUDA_BANDWIDTH=0         bytes a second that copies get, all streams of a device together (0: no limit)
//   FST_EMU_CUDA_BANDWIDTHS=1000000000;0    the same by device, 0: as above
//   FST_EMU_CUDA_DELAY_US=200        no operation on a stream runs earlier than this after it was issued
//   FST_EMU_CUDA_JITTER_US=0         ... and up to this much later
//   FST_EMU_CUDA_ATTRIBUTES=18:1     CUdevice_attribute:value, for all devices, separated by semicolons
//   FST_EMU_CUDA_FAIL=cuMemAlloc_v2:3:2;execute:1:700    function:nth call:CUresult, see set_fail
//   FST_EMU_CUDA_STRICT=1            1: misuse that a GPU may survive (or not) aborts the process with a reason
//                                    0: it does what the driver does
//   FST_EMU_CUDA_LEAKS=report        what is alive at exit: off, report (to stderr), abort (report, then abort),
//                                    abort-memory (abort for device memory only; contexts may stay retained)
//   FST_EMU_CUDA_VERBOSE=0           1: the reason of every refused call to stderr
#pragma once

// X(name after fst_emu_cuda_, return type, parameters)
#define FST_EMU_CUDA_CONTROL(X)                                                                                        \
  /* Back to the settings of the environment, without its failures; forgets counts, peaks, failures and sticky errors, \
     ends a hold. What is allocated stays. */                                                                          \
  X(reset, void, (void))                                                                                               \
  /* The nth call of `function` from now on (1: the next; 0: every one) fails with the CUresult `code`, once.          \
     "execute" counts the copies and fills that streams carry out: the nth is not done, and `code` becomes the         \
     context's sticky error. A release (free, destroy) that is made to fail still releases, as if it told of an        \
     earlier error; after cuMemHostUnregister the memory stays registered. With a sticky code nothing works on the     \
     context any more. Returns 0, or -1 when there is no such function. */                                             \
  X(set_fail, int, (const char* function, unsigned long long nth, int code))                                           \
  /* Calls of `function` since the start or the last reset. */                                                         \
  X(call_count, unsigned long long, (const char* function))                                                            \
  /* The names of all functions, those that the core calls first; null past the end. */                                \
  X(function_name, const char*, (int index))                                                                           \
  X(set_bandwidth, void, (unsigned long long bytes_per_second))                                                        \
  /* Of one device, in place of the other; 0: the other. */                                                            \
  X(set_device_bandwidth, void, (int device, unsigned long long bytes_per_second))                                     \
  X(set_delay_us, void, (unsigned long long microseconds))                                                             \
  X(set_jitter_us, void, (unsigned long long microseconds))                                                            \
  X(set_memory_limit, void, (int device, unsigned long long bytes))                                                    \
  X(set_pinned_limit, void, (unsigned long long bytes))                                                                \
  X(set_attribute, void, (int device, int attribute, int value))                                                       \
  X(set_strict, void, (int on))                                                                                        \
  /* While held, streams start no operation: what is pending stays pending. */                                         \
  X(hold, void, (int on))                                                                                              \
  /* Device allocations (managed ones too) and their bytes, of all devices; the most bytes at one time since the       \
   * reset. */                                                                                                         \
  X(live_allocations, unsigned long long, (void))                                                                      \
  X(live_bytes, unsigned long long, (void))                                                                            \
  X(peak_bytes, unsigned long long, (void))                                                                            \
  X(device_peak_bytes, unsigned long long, (int device))                                                               \
  /* Handles of cuMemCreate and ranges of cuMemAddressReserve. */                                                      \
  X(live_virtual, unsigned long long, (void))                                                                          \
  /* Page-locked host ranges, allocated or registered. */                                                              \
  X(live_pinned, unsigned long long, (void))                                                                           \
  X(live_pinned_bytes, unsigned long long, (void))                                                                     \
  X(peak_pinned_bytes, unsigned long long, (void))                                                                     \
  /* The NUMA node preferred for the memory that was page-locked last, -1: none. */                                    \
  X(pinned_node, int, (void))                                                                                          \
  X(live_streams, unsigned long long, (void))                                                                          \
  X(live_events, unsigned long long, (void))                                                                           \
  /* Retains of primary contexts less releases. */                                                                     \
  X(retained_contexts, unsigned long long, (void))                                                                     \
  /* Asynchronous copies from or to host memory that was not page-locked, and so were none. */                         \
  X(unpinned_async_copies, unsigned long long, (void))                                                                 \
  /* Copies and fills carried out, those that wait, and the bytes carried out. */                                      \
  X(executed, unsigned long long, (void))                                                                              \
  X(pending, unsigned long long, (void))                                                                               \
  X(copied_bytes, unsigned long long, (void))                                                                          \
  /* Why the last refused call of this thread was refused; "" when none was. Valid until the thread's next call of     \
   * this. */                                                                                                          \
  X(last_refusal, const char*, (void))                                                                                 \
  /* For the emulated cuFile: marks `bytes` from `pointer` as in use by an operation, so that freeing them is caught.  \
     The thread's context must be the memory's. Returns a CUresult; the reason of a refusal is in last_refusal. */     \
  X(acquire, int, (unsigned long long pointer, unsigned long long bytes))                                              \
  X(release, void, (unsigned long long pointer))                                                                       \
  /* Writes to device memory that is acquired, and reads it: that the emulated NCCL does. */                           \
  X(write, void, (unsigned long long pointer, const void* from, unsigned long long bytes))                             \
  X(read, void, (unsigned long long pointer, void* to, unsigned long long bytes))

#ifdef __cplusplus
extern "C" {
#define X(name, result, parameters) __attribute__((visibility("default"))) result fst_emu_cuda_##name parameters;
FST_EMU_CUDA_CONTROL(X)
#undef X
}
#endif
