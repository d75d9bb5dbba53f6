// exit() while threads call into the CUDA driver and cuFile. The emulators are taken down as the libraries are, and end
// the process where those may crash: what goes past the gate shows that they do.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "device/cuda_device.h"
#include "emulated_cuda.h"
#include "emulated_cufile.h"
#include "reader/gds/cufile_driver.h"

namespace fst {
namespace {

// Constructed before any library was loaded, so destroyed after all of them.
void (*at_the_end)() = nullptr;
struct AtTheEnd {
  ~AtTheEnd() {
    if (at_the_end != nullptr) at_the_end();
  }
} at_the_end_object;

class CudaExitDeathTest : public test::EmulatedCudaTest {
 protected:
  void SetUp() override {
    setenv("FST_EMU_CUDA_LEAKS", "off", 1);
    EmulatedCudaTest::SetUp();
  }
  void TearDown() override {
    unsetenv("FST_EMU_CUDA_LEAKS");
    EmulatedCudaTest::TearDown();
  }

  // On threads, in the context, for ever.
  template <class Body>
  void Repeat(Body body) {
    std::thread([this, body] {
      cu->CtxSetCurrent(context);
      for (;; ++rounds) body();
    }).detach();
  }

  static inline std::atomic<int> rounds{0};
  static inline const cuda::DriverApi* driver = nullptr;
};

TEST_F(CudaExitDeathTest, ThreadsInTheDriverDoNotChangeTheCode) {
  EXPECT_EXIT(
      {
        Repeat([this] {
          cuda::CUdeviceptr memory = 0;
          if (cu->MemAlloc(&memory, 4096) != 0 || cu->MemFree(memory) != 0) abort();
        });
        Repeat([this] {  // synchronizes most of the time
          static cuda::CUdeviceptr memory = 0;
          char bytes[4096] = {};
          if (memory == 0 && cu->MemAlloc(&memory, sizeof bytes) != 0) abort();
          if (cu->MemcpyHtoD(memory, bytes, sizeof bytes) != 0 || cu->CtxSynchronize() != 0) abort();
        });
        while (rounds < 40) usleep(100);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "^$");
}

TEST_F(CudaExitDeathTest, TheEmulatedDriverAbortsWhenACallIsInside) {
  EXPECT_EXIT(
      {
        cuda::CUstream stream = nullptr;
        cuda::CUdeviceptr memory = 0;
        static char bytes[64];
        if (cu->StreamCreate(&stream, 0) != 0 || cu->MemAlloc(&memory, sizeof bytes) != 0) abort();
        ctl.hold(1);
        std::thread([=] {
          cu->CtxSetCurrent(context);
          cu->MemcpyHtoDAsync(memory, bytes, sizeof bytes, stream);
          cu->StreamSynchronize.pointer(stream);
        }).detach();
        while (ctl.call_count("cuStreamSynchronize") == 0) usleep(100);
        exit(0);
      },
      ::testing::KilledBySignal(SIGABRT),
      "emulated CUDA: exit\\(\\) ends the driver while cuStreamSynchronize is inside");
}

// As the driver was seen to do (535.261): 4 from each function, cuInit and cuDriverGetVersion included.
TEST_F(CudaExitDeathTest, TheEmulatedDriverRefusesAllAfterIt) {
  EXPECT_EXIT(
      {
        driver = cu;
        at_the_end = [] {
          int number = 0;
          const bool refused = driver->CtxSynchronize.pointer() == cuda::kDeinitialized &&
                               driver->DriverGetVersion.pointer(&number) == cuda::kDeinitialized &&
                               driver->Init.pointer(0) == cuda::kDeinitialized;
          _exit(refused ? 17 : 1);
        };
        exit(0);
      },
      ::testing::ExitedWithCode(17), "^$");
}

// Destructors of others may release what is ours, and may even ask for more.
TEST_F(CudaExitDeathTest, WhatRunsWithinExitGetsErrorsAtOnce) {
  EXPECT_EXIT(
      {
        static auto& device = *new std::shared_ptr<Device>;
        static auto& buffer = *new std::shared_ptr<DeviceBuffer>;
        static auto& staging = *new std::unique_ptr<StagingMemory>;
        if (!CudaDevice::Open(0, false, &device).ok() || !device->Allocate(4096, &buffer).ok() ||
            !device->AllocateStaging(4096, &staging).ok())
          abort();
        at_the_end = [] {
          alarm(10);
          buffer.reset();
          staging.reset();
          std::shared_ptr<CompletionQueue> queue = std::make_shared<CompletionQueue>();
          std::unique_ptr<CopyStream> stream;
          std::shared_ptr<Device> other;
          for (const Status& status :
               {device->Allocate(4096, &buffer), device->CheckAvailable(1), device->AllocateStaging(4096, &staging),
                device->NewStream(queue, &stream), device->Synchronize(), CudaDevice::Open(1, false, &other)}) {
            if (status.code() != Code::CUDA_ERROR ||
                status.message().find("CUDA_ERROR_DEINITIALIZED") == std::string::npos) {
              fprintf(stderr, "%s\n", status.message().c_str());
              _exit(1);
            }
          }
          _exit(17);
        };
        exit(0);
      },
      ::testing::ExitedWithCode(17), "^$");
}

class CufileExitDeathTest : public CudaExitDeathTest {
 protected:
  void SetUp() override {
    setenv("FST_EMU_CUFILE_LEAKS", "off", 1);
    CudaExitDeathTest::SetUp();
    const test::CufileControl& control = test::EmulatedCufileControl();
    ASSERT_TRUE(cufile::LoadCufile(&gds).ok());
    control.reset();
    cufile::Mode mode = {};
    ASSERT_TRUE(cufile::OpenDriver(*gds, &mode).ok());
    ASSERT_EQ(cu->MemAlloc(&memory, kReaders * kBytes), cuda::kSuccess);
    fd = fileno(tmpfile());
    ASSERT_EQ(ftruncate(fd, kBytes), 0);
    cufile::CUfileDescr description = {};
    description.type = cufile::kHandleTypeOpaqueFd;
    description.handle.fd = fd;
    ASSERT_EQ(gds->HandleRegister(&handle, &description).err, 0);
  }
  void TearDown() override {
    unsetenv("FST_EMU_CUFILE_LEAKS");
    gds->HandleDeregister(handle);
    close(fd);
    EXPECT_EQ(cu->MemFree(memory), cuda::kSuccess);
    cufile::CloseDriver();
    CudaExitDeathTest::TearDown();
  }

  static constexpr size_t kBytes = 4096;
  static constexpr int kReaders = 3;
  static inline const cufile::CufileApi* gds = nullptr;
  cuda::CUdeviceptr memory = 0;
  int fd = -1;
  void* handle = nullptr;
};

TEST_F(CufileExitDeathTest, ThreadsInCufileDoNotChangeTheCode) {
  EXPECT_EXIT(
      {
        test::EmulatedCufileControl().set_delay_us(2000);
        for (int i = 0; i < kReaders; ++i) {  // each to memory of its own
          Repeat([this, i] {
            if (gds->Read(handle, reinterpret_cast<void*>(memory), kBytes, 0, i * kBytes) != kBytes) abort();
          });
        }
        while (rounds < 20) usleep(100);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "^$");
}

TEST_F(CufileExitDeathTest, TheEmulatedCufileAbortsWhenACallIsInside) {
  EXPECT_EXIT(
      {
        test::EmulatedCufileControl().hold(1);
        std::thread([this] {
          cu->CtxSetCurrent(context);
          gds->Read.pointer(handle, reinterpret_cast<void*>(memory), kBytes, 0, 0);
        }).detach();
        while (test::EmulatedCufileControl().in_flight() == 0) usleep(100);
        exit(0);
      },
      ::testing::KilledBySignal(SIGABRT), "emulated cuFile: exit\\(\\) destroys .* while 1 calls are inside");
}

TEST_F(CufileExitDeathTest, TheEmulatedCufileAbortsAtCallsAfterIt) {
  EXPECT_EXIT(
      {
        at_the_end = [] { gds->BufDeregister.pointer(nullptr); };
        exit(0);
      },
      ::testing::KilledBySignal(SIGABRT), "emulated cuFile: cuFileBufDeregister after exit\\(\\) destroyed");
}

TEST_F(CufileExitDeathTest, WhatRunsWithinExitIsRefused) {
  EXPECT_EXIT(
      {
        at_the_end = [] {
          gds->HandleDeregister(nullptr);
          const bool refused = gds->BufDeregister(nullptr).err == cufile::kDriverClosing &&
                               gds->Read(nullptr, nullptr, 1, 0, 0) == -cufile::kDriverClosing;
          _exit(refused ? 17 : 1);
        };
        exit(0);
      },
      ::testing::ExitedWithCode(17), "^$");
}

}  // namespace
}  // namespace fst
