// The emulated CUDA driver for C++ tests: the driver's functions through LoadCuda, and the controls.
#pragma once
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "emulators/cuda/control.h"
#include "support/driver_api.h"

namespace fst::test {

struct CudaControl {
#define X(name, result, parameters) result(*name) parameters = nullptr;
  FST_EMU_CUDA_CONTROL(X)
#undef X
};

// Loads build/.../emulators/libcuda.so.1 as the process's driver. Null when it cannot be loaded (and the test has
// failed).
inline const cuda::DriverApi* LoadEmulatedCuda() {
  setenv("FASTSAFETENSORS_CUDA_LIB", FST_BINARY_DIR "/emulators/libcuda.so.1", 1);
  const cuda::DriverApi* api = nullptr;
  Status loaded = cuda::LoadDriver(&api);
  EXPECT_TRUE(loaded.ok()) << loaded.message();
  return api;
}

inline const CudaControl& EmulatedCudaControl() {
  static const CudaControl control = [] {
    CudaControl made;
    void* library = dlopen(FST_BINARY_DIR "/emulators/libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    EXPECT_NE(library, nullptr) << dlerror();
#define X(name, result, parameters) \
  made.name = reinterpret_cast<decltype(made.name)>(dlsym(library, "fst_emu_cuda_" #name));
    FST_EMU_CUDA_CONTROL(X)
#undef X
    return made;
  }();
  return control;
}

// A test with device 0's context current in its thread, an emulator reset before, and a check that nothing is left
// after.
class EmulatedCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // the emulator has threads
    cu = LoadEmulatedCuda();
    ASSERT_NE(cu, nullptr);
    ctl.reset();
    ASSERT_EQ(cu->DevicePrimaryCtxRetain(&context, 0), cuda::kSuccess);
    ASSERT_EQ(cu->CtxSetCurrent(context), cuda::kSuccess);
  }
  void TearDown() override {
    ctl.reset();
    EXPECT_EQ(ctl.live_allocations(), 0u);
    EXPECT_EQ(ctl.live_pinned(), 0u);
    EXPECT_EQ(ctl.live_streams(), 0u);
    EXPECT_EQ(ctl.live_events(), 0u);
    EXPECT_EQ(cu->DevicePrimaryCtxRelease(0), cuda::kSuccess);
    EXPECT_EQ(cu->CtxSetCurrent(nullptr), cuda::kSuccess);
    EXPECT_EQ(ctl.retained_contexts(), 0u);
  }

  const cuda::DriverApi* cu = nullptr;
  const CudaControl& ctl = EmulatedCudaControl();
  cuda::CUcontext context = nullptr;
};

using Bytes = std::vector<unsigned char>;

inline Bytes Pattern(size_t bytes, unsigned seed) {
  Bytes made(bytes);
  for (size_t i = 0; i < bytes; ++i) made[i] = static_cast<unsigned char>((i * 2654435761u + seed) >> 7);
  return made;
}

}  // namespace fst::test
