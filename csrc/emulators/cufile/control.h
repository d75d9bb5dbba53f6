// How tests steer the emulated cuFile: C functions that libcufile.so.0 exports besides cuFile's own, found by dlsym.
//
// The same can be set for a whole process by the environment, read at the first call into the library:
//   FST_EMU_CUFILE_COMPAT=0          1: there is no nvidia-fs driver, reads go through the CPU (compatibility mode)
//   FST_EMU_CUFILE_ALLOW_COMPAT=1    what cufile.json says of that mode; 0 with COMPAT=1: the driver does not open
//   FST_EMU_CUFILE_REFUSE=PATTERN    files whose path matches (fnmatch) cannot be registered
//   FST_EMU_CUFILE_REFUSE_CODE=5030  ... with this CUfileOpError
//   FST_EMU_CUFILE_REQUIRE_DIRECT=0  1: files opened without O_DIRECT cannot be registered
//   FST_EMU_CUFILE_SHORT=0           a read gives at most so many bytes (0: all)
//   FST_EMU_CUFILE_OPEN_MS=0         how long the driver takes to open
//   FST_EMU_CUFILE_DELAY_US=0        how long every read takes at least
//   FST_EMU_CUFILE_BANDWIDTH=0       bytes a second that reads get together (0: as fast as it goes)
//   FST_EMU_CUFILE_FAIL=cuFileRead:3:-5;cuFileHandleRegister:1:5008    function:nth call:code, see set_fail
//   FST_EMU_CUFILE_STRICT=1          misuse aborts the process with a reason; 0: it is refused
//   FST_EMU_CUFILE_LEAKS=report      handles and buffers that are still registered at exit: off, report, abort
#pragma once

// X(name after fst_emu_cufile_, return type, parameters)
#define FST_EMU_CUFILE_CONTROL(X)                                                                                      \
  /* Back to the settings of the environment, without its failures; forgets counts and failures, ends a hold. What is  \
     open and registered stays. */                                                                                     \
  X(reset, void, (void))                                                                                               \
  /* The nth call of `function` from now on (1: the next; 0: every one) fails with `code`, once: a CUfileOpError, and  \
     for cuFileRead also a negative errno (-5: EIO), as which the call returns -1. A release (deregister, close) that  \
     is made to fail still releases, but for cuFileBufDeregister: the memory stays registered. Returns 0, or -1 when   \
     there is no such function. */                                                                                     \
  X(set_fail, int, (const char* function, unsigned long long nth, int code))                                           \
  /* Calls of `function` since the start or the last reset. */                                                         \
  X(call_count, unsigned long long, (const char* function))                                                            \
  /* The names of all functions; null past the end. */                                                                 \
  X(function_name, const char*, (int index))                                                                           \
  X(set_compat, void, (int compat, int allowed))                                                                       \
  X(set_refuse, void, (const char* pattern, int code))                                                                 \
  X(set_require_direct, void, (int on))                                                                                \
  X(set_short_reads, void, (unsigned long long most_bytes))                                                            \
  /* Reads find the end of every file at this byte (0: where it is). */                                                \
  X(set_end, void, (unsigned long long offset))                                                                        \
  /* Reads say that they gave so many bytes more than they did, against cuFile's promise. */                           \
  X(set_overstated, void, (unsigned long long bytes))                                                                  \
  X(set_delay_us, void, (unsigned long long microseconds))                                                             \
  X(set_bandwidth, void, (unsigned long long bytes_per_second))                                                        \
  X(set_strict, void, (int on))                                                                                        \
  /* While held, reads do not end. */                                                                                  \
  X(hold, void, (int on))                                                                                              \
  X(in_flight, unsigned long long, (void))                                                                             \
  X(driver_open, int, (void))                                                                                          \
  X(live_handles, unsigned long long, (void))                                                                          \
  X(live_buffers, unsigned long long, (void))                                                                          \
  X(bytes_read, unsigned long long, (void))                                                                            \
  /* Reads whose file offset, size or device address is no multiple of 4096 (sizes at the end of a file apart): cuFile \
     takes its slow way with these. */                                                                                 \
  X(unaligned_reads, unsigned long long, (void))                                                                       \
  /* Reads into memory that is not registered, and files registered without O_DIRECT: likewise. */                     \
  X(unregistered_reads, unsigned long long, (void))                                                                    \
  X(buffered_files, unsigned long long, (void))                                                                        \
  /* Why the last refused call of this thread was refused; "" when none was. Valid until the thread's next call of     \
   * this. */                                                                                                          \
  X(last_refusal, const char*, (void))

#ifdef __cplusplus
extern "C" {
#define X(name, result, parameters) __attribute__((visibility("default"))) result fst_emu_cufile_##name parameters;
FST_EMU_CUFILE_CONTROL(X)
#undef X
}
#endif
