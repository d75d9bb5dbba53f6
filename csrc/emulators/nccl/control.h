// How tests steer the emulated NCCL: C functions that libnccl.so.2 exports besides NCCL's own, found by dlsym.
//
// The same can be set for a whole process by the environment, read at the first call into the library:
//   FST_EMU_NCCL_VERSION=23007     what ncclGetVersion says
//   FST_EMU_NCCL_BANDWIDTH=0       bytes a second that a rank gets or gives in broadcasts (0: as fast as it goes)
//   FST_EMU_NCCL_INIT_MS=0         how long ranks take at least to connect
//   FST_EMU_NCCL_NOTICE=0          1: that a rank has died or aborted shows as ncclRemoteError; 0: nothing comes any
//                                  more, as between GPUs of one machine
//   FST_EMU_NCCL_HANG=0            the nth broadcast never ends on this rank (0: none)
//   FST_EMU_NCCL_FAIL=ncclGroupEnd:3:2;execute:1:1    function:nth call:ncclResult_t, see set_fail
//   FST_EMU_NCCL_STRICT=1          misuse aborts the process with a reason; 0: it is refused
#pragma once

// X(name after fst_emu_nccl_, return type, parameters)
#define FST_EMU_NCCL_CONTROL(X)                                                                                        \
  /* Back to the settings of the environment, without its failures; forgets counts and failures. */                    \
  X(reset, void, (void))                                                                                               \
  /* The nth call of `function` from now on (1: the next; 0: every one) fails with the ncclResult_t `code`, once.      \
     "execute" counts broadcasts that streams carry out: the nth is not done, and `code` becomes the communicator's    \
     asynchronous error; with ncclCommGetAsyncError the communicator has that error. ncclCommDestroy and ncclCommAbort \
     that are made to fail still free. Returns 0, or -1 when there is no such function. */                             \
  X(set_fail, int, (const char* function, unsigned long long nth, int code))                                           \
  /* Calls of `function` since the start or the last reset. */                                                         \
  X(call_count, unsigned long long, (const char* function))                                                            \
  /* The names of all functions; null past the end. */                                                                 \
  X(function_name, const char*, (int index))                                                                           \
  X(set_strict, void, (int on))                                                                                        \
  X(set_notice, void, (int on))                                                                                        \
  /* The nth broadcast from now on never ends on its rank. */                                                          \
  X(set_hang, void, (unsigned long long nth))                                                                          \
  X(set_version, void, (int version))                                                                                  \
  X(live_communicators, unsigned long long, (void))                                                                    \
  /* Bytes that this process's ranks have received. */                                                                 \
  X(received_bytes, unsigned long long, (void))                                                                        \
  /* Why the last refused call of this thread was refused; "" when none was. */                                        \
  X(last_refusal, const char*, (void))

#ifdef __cplusplus
extern "C" {
#define X(name, result, parameters) __attribute__((visibility("default"))) result fst_emu_nccl_##name parameters;
FST_EMU_NCCL_CONTROL(X)
#undef X
}
#endif
