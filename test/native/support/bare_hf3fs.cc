// A 3FS client library with the functions that the core calls and no other: enough to be loaded. See bare_cuda.cc.
#define FUNCTION(name) \
  extern "C" __attribute__((visibility("default"))) int name() { return 0; }
FUNCTION(hf3fs_iovwrap)
FUNCTION(hf3fs_iorcreate4)
FUNCTION(hf3fs_iordestroy)
FUNCTION(hf3fs_reg_fd)
FUNCTION(hf3fs_dereg_fd)
FUNCTION(hf3fs_prep_io)
FUNCTION(hf3fs_submit_ios)
FUNCTION(hf3fs_wait_for_ios)
