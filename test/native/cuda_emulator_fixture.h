// What the tests of the emulated CUDA driver share: one allocation, page-locked memory, a stream and an event.
#pragma once
#include "emulated_cuda.h"

namespace fst::cuda {

using test::Bytes;

constexpr size_t kBytes = 1 << 20;

class CudaEmulatorTest : public test::EmulatedCudaTest {
 protected:
  void SetUp() override {
    EmulatedCudaTest::SetUp();
    ASSERT_EQ(cu->MemAlloc(&device, kBytes), kSuccess);
    ASSERT_EQ(cu->MemHostAlloc(reinterpret_cast<void**>(&pinned), kBytes, kMemHostAllocPortable), kSuccess);
    ASSERT_EQ(cu->StreamCreate(&stream, kStreamNonBlocking), kSuccess);
    ASSERT_EQ(cu->EventCreate(&event, kEventDisableTiming), kSuccess);
  }
  void TearDown() override {
    ctl.reset();
    EXPECT_EQ(cu->StreamSynchronize(stream), kSuccess);
    EXPECT_EQ(cu->StreamDestroy(stream), kSuccess);
    EXPECT_EQ(cu->EventDestroy(event), kSuccess);
    EXPECT_EQ(cu->MemFreeHost(pinned), kSuccess);
    EXPECT_EQ(cu->MemFree(device), kSuccess);
    EmulatedCudaTest::TearDown();
  }

  Bytes Read(CUdeviceptr from, size_t bytes) {
    Bytes made(bytes);
    EXPECT_EQ(cu->MemcpyDtoH(made.data(), from, bytes), kSuccess);
    return made;
  }

  // A copy that is pending until the hold ends.
  void IssueHeld() {
    ctl.hold(1);
    ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, stream), kSuccess);
  }

  CUdeviceptr device = 0;
  unsigned char* pinned = nullptr;
  CUstream stream = nullptr;
  CUevent event = nullptr;
};

}  // namespace fst::cuda
