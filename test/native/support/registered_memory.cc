// Stands for the CUDA emulator in the test of unmapping registered memory: says that all memory is registered while
// FST_TEST_REGISTERED is set.
#include <cstddef>
#include <cstdlib>

extern "C" __attribute__((visibility("default"))) int fst_emu_cuda_is_registered(const void*, size_t) {
  return getenv("FST_TEST_REGISTERED") != nullptr;
}
