// The emulated driver's strictness: every misuse that it promises to catch is caught, and failures are made on demand.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "cuda_emulator_fixture.h"

namespace fst::cuda {
namespace {

using CudaEmulatorDeathTest = CudaEmulatorTest;

TEST_F(CudaEmulatorDeathTest, TheHostCannotTouchDeviceMemory) {
  EXPECT_DEATH(*reinterpret_cast<volatile char*>(device) = 1, "");
  EXPECT_DEATH((void)*reinterpret_cast<volatile char*>(device + kBytes - 1), "");
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_EQ(write(fds[1], reinterpret_cast<void*>(device), 1), -1) << "nor the kernel for it";
  EXPECT_EQ(errno, EFAULT);
  close(fds[0]);
  close(fds[1]);
}

// ---- misuse ----

TEST_F(CudaEmulatorDeathTest, FreesUnderPendingCopiesAbort) {
  IssueHeld();
  ASSERT_EQ(cu->EventRecord(event, stream), kSuccess);
  EXPECT_DEATH(cu->MemFree(device),
               "emulated CUDA: cuMemFree_v2 of 0x[0-9a-f]+ .* while 1 operations on it are pending");
  EXPECT_DEATH(cu->MemFreeHost(pinned), "cuMemFreeHost of 0x[0-9a-f]+ .* while 1 operations on it are pending");
  EXPECT_DEATH(cu->StreamDestroy(stream), "cuStreamDestroy_v2 of .* while 2 operations on it are pending");
  EXPECT_DEATH(cu->EventDestroy(event), "cuEventDestroy_v2 of .*, which is recorded and not reached");
}

TEST_F(CudaEmulatorDeathTest, UnregisteringUnderPendingCopiesAborts) {
  Bytes memory(kBytes);
  ASSERT_EQ(cu->MemHostRegister(memory.data(), kBytes, 0), kSuccess);
  ctl.hold(1);
  ASSERT_EQ(cu->MemcpyDtoHAsync(memory.data(), device, 10, stream), kSuccess);
  EXPECT_DEATH(cu->MemHostUnregister(memory.data()), "cuMemHostUnregister of .* while 1 operations on it are pending");
  ctl.hold(0);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(cu->MemHostUnregister(memory.data()), kSuccess);
}

TEST_F(CudaEmulatorDeathTest, ReleasingTheUnknownAborts) {
  CUdeviceptr gone = 0;
  ASSERT_EQ(cu->MemAlloc(&gone, 4096), kSuccess);
  ASSERT_EQ(cu->MemFree(gone), kSuccess);
  EXPECT_DEATH(cu->MemFree(gone), "cuMemFree_v2 of .*, which is not allocated");
  EXPECT_DEATH(cu->MemFree(device + 256), "which is not the start of a device allocation");
  EXPECT_DEATH(cu->MemFreeHost(&gone), "cuMemFreeHost of .*, which cuMemHostAlloc did not give");
  EXPECT_DEATH(cu->MemHostUnregister(pinned),
               "cuMemHostUnregister of .*, which is not the start of a registered range");
  EXPECT_DEATH(cu->DevicePrimaryCtxRelease(1), "of device 1, whose context is not retained");
  EXPECT_DEATH(cu->DevicePrimaryCtxRelease(0),
               "still has 1 allocations .*, 1 page-locked ranges .*, 1 streams, 1 events");
  CUevent other = nullptr;
  ASSERT_EQ(cu->EventCreate(&other, 0), kSuccess);
  ASSERT_EQ(cu->EventDestroy(other), kSuccess);
  EXPECT_DEATH(cu->EventQuery(other), "does not exist");
  EXPECT_DEATH(cu->StreamQuery(reinterpret_cast<CUstream>(other)), "does not exist");
}

TEST_F(CudaEmulatorDeathTest, UnmappingRegisteredMemoryIsFoundOut) {
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(cu->MemHostRegister(memory, kBytes, 0), kSuccess);
  EXPECT_DEATH(
      {
        munmap(memory, kBytes);
        (void)cu->MemHostUnregister(memory);
      },
      "which was unmapped while registered");
  ASSERT_EQ(cu->MemHostUnregister(memory), kSuccess);
  ASSERT_EQ(munmap(memory, kBytes), 0);
  EXPECT_EQ(cu->MemHostRegister(memory, kBytes, 0), kInvalidValue) << "not mapped";
}

// A file of three pages, mapped as who only reads it maps it.
class MappedMemory {
 public:
  MappedMemory() : fd(memfd_create("mapped", MFD_CLOEXEC)) {
    const test::Bytes content = test::Pattern(kSize, 9);
    EXPECT_EQ(write(fd, content.data(), kSize), static_cast<ssize_t>(kSize));
    memory = mmap(nullptr, kSize, PROT_READ, MAP_SHARED, fd, 0);
    EXPECT_NE(memory, MAP_FAILED);
  }
  ~MappedMemory() {
    munmap(memory, kSize);
    close(fd);
  }
  static constexpr size_t kSize = size_t{3} * 4096;
  const int fd;
  void* memory;
};

TEST_F(CudaEmulatorDeathTest, ReadOnlyMappingsAreRegisteredAsSuchAlone) {
  MappedMemory mapped;
  EXPECT_EQ(cu->MemHostRegister(mapped.memory, mapped.kSize, kMemHostRegisterPortable), kInvalidValue);
  EXPECT_NE(std::string(ctl.last_refusal()).find("READ_ONLY"), std::string::npos);
  ctl.set_attribute(0, kAttributeReadOnlyHostRegisterSupported, 0);
  EXPECT_EQ(cu->MemHostRegister(mapped.memory, mapped.kSize, kMemHostRegisterReadOnly), kNotSupported);
  ctl.reset();
  ASSERT_EQ(cu->MemHostRegister(mapped.memory, mapped.kSize, kMemHostRegisterReadOnly), kSuccess);
  EXPECT_EQ(cu->MemHostRegister(static_cast<char*>(mapped.memory) + 4096, 4096, kMemHostRegisterReadOnly),
            kHostMemoryAlreadyRegistered);
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, mapped.memory, mapped.kSize, stream), kSuccess);
  EXPECT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(Read(device, mapped.kSize), test::Pattern(mapped.kSize, 9));
  EXPECT_EQ(ctl.unpinned_async_copies(), 0u);
  EXPECT_DEATH(cu->MemcpyDtoHAsync(mapped.memory, device, 1, stream), "registered as read-only memory");
  EXPECT_EQ(cu->MemHostUnregister(mapped.memory), kSuccess);
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, mapped.memory, mapped.kSize, stream), kSuccess);
  EXPECT_EQ(ctl.unpinned_async_copies(), 1u) << "pageable again";
}

TEST_F(CudaEmulatorDeathTest, PagesThatAFileHasLostAreNeitherRegisteredNorCopied) {
  MappedMemory mapped;
  ASSERT_EQ(cu->MemHostRegister(mapped.memory, mapped.kSize, kMemHostRegisterReadOnly), kSuccess);
  ASSERT_EQ(ftruncate(mapped.fd, 4096), 0);
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, mapped.memory, mapped.kSize, stream), kSuccess);
  EXPECT_EQ(cu->StreamSynchronize(stream), kSuccess);
  const Bytes found = Read(device, mapped.kSize), expected = test::Pattern(mapped.kSize, 9);
  EXPECT_TRUE(std::equal(found.begin(), found.begin() + 4096, expected.begin()));
  EXPECT_FALSE(std::equal(found.begin() + 4096, found.end(), expected.begin() + 4096)) << "they are gone";
  EXPECT_EQ(cu->MemHostUnregister(mapped.memory), kSuccess);
  EXPECT_EQ(cu->MemHostRegister(mapped.memory, mapped.kSize, kMemHostRegisterReadOnly), kInvalidValue);
  EXPECT_EQ(cu->MemHostRegister(mapped.memory, 4096, kMemHostRegisterReadOnly), kSuccess);
  EXPECT_EQ(cu->MemHostUnregister(mapped.memory), kSuccess);
}

TEST_F(CudaEmulatorDeathTest, SharedMemoryWithoutAccessIsStillThere) {
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(cu->MemHostRegister(memory, kBytes, 0), kSuccess);
  ASSERT_EQ(mprotect(memory, kBytes, PROT_NONE), 0);
  EXPECT_EQ(cu->MemHostUnregister(memory), kSuccess);
  ASSERT_EQ(munmap(memory, kBytes), 0);
}

TEST_F(CudaEmulatorDeathTest, WritingPastPageLockedMemoryIsFoundOut) {
  EXPECT_DEATH(
      {
        pinned[kBytes] = 0;
        (void)cu->MemFreeHost(pinned);
      },
      "cuMemFreeHost of .*, past whose 1048576 bytes something was written");
}

TEST_F(CudaEmulatorDeathTest, HostFunctionsMayNotCallTheDriver) {
  auto bad = [](void* data) { (void)static_cast<const DriverApi*>(data)->CtxSynchronize(); };
  EXPECT_DEATH(
      {
        (void)cu->LaunchHostFunc(stream, bad, const_cast<DriverApi*>(cu));
        (void)cu->StreamSynchronize(stream);
      },
      "called from a host function");
}

TEST_F(CudaEmulatorTest, WithoutStrictnessItDoesWhatTheDriverDoes) {
  ctl.set_strict(0);
  CUdeviceptr busy = 0;
  ASSERT_EQ(cu->MemAlloc(&busy, kBytes), kSuccess);
  ctl.set_delay_us(20000);
  ASSERT_EQ(cu->MemcpyHtoDAsync(busy, pinned, kBytes, stream), kSuccess);
  EXPECT_EQ(cu->MemFree(busy), kSuccess) << "waits";
  EXPECT_EQ(cu->StreamQuery(stream), kSuccess);
  EXPECT_EQ(ctl.executed(), 1u);
  EXPECT_EQ(cu->MemFree(busy), kInvalidValue);
  EXPECT_EQ(cu->MemFreeHost(&busy), kInvalidValue);
  EXPECT_EQ(cu->MemHostUnregister(pinned), kHostMemoryNotRegistered);
  EXPECT_EQ(cu->MemHostRegister(pinned, 1, 0), kHostMemoryAlreadyRegistered);
  EXPECT_EQ(cu->StreamSynchronize(reinterpret_cast<CUstream>(event)), kInvalidHandle);
}

TEST_F(CudaEmulatorDeathTest, LeaksAtExitAreReportedAndCanAbort) {
  setenv("FST_EMU_CUDA_LEAKS", "abort", 1);
  ctl.reset();
  EXPECT_EXIT(exit(0), ::testing::KilledBySignal(SIGABRT),
              "alive at exit: 1 allocations .1048576 bytes.*1 retained contexts");
  setenv("FST_EMU_CUDA_LEAKS", "report", 1);
  ctl.reset();
  EXPECT_EXIT(exit(0), ::testing::ExitedWithCode(0), "alive at exit: 1 allocations");
  unsetenv("FST_EMU_CUDA_LEAKS");
}

// Its owner may unlock it in an exit handler: only when the library goes it is left.
TEST_F(CudaEmulatorDeathTest, RegisteredMemoryIsReportedWhenTheLibraryGoes) {
  alignas(4096) static unsigned char page[4096];
  setenv("FST_EMU_CUDA_LEAKS", "report", 1);
  ctl.reset();
  EXPECT_EXIT(
      {
        cu->MemHostRegister(page, sizeof page, 0);
        exit(0);
      },
      ::testing::ExitedWithCode(0),
      "alive at exit: 1 allocations .*\n.*alive when the library goes: 1 registered ranges .4096 bytes");
  unsetenv("FST_EMU_CUDA_LEAKS");
}

// ---- injected failures ----

TEST_F(CudaEmulatorTest, TheNthCallFailsOnce) {
  CUdeviceptr more = 0;
  ASSERT_EQ(ctl.set_fail("cuMemAlloc_v2", 2, kOutOfMemory), 0);
  EXPECT_EQ(ctl.set_fail("cuMemAlloc", 2, kOutOfMemory), -1) << "not the exported name";
  ASSERT_EQ(cu->MemAlloc(&more, 1), kSuccess);
  ASSERT_EQ(cu->MemFree(more), kSuccess);
  EXPECT_EQ(cu->MemAlloc(&more, 1), kOutOfMemory);
  ASSERT_EQ(cu->MemAlloc(&more, 1), kSuccess);
  EXPECT_EQ(ctl.call_count("cuMemAlloc_v2"), 4u);  // and the fixture's
  ASSERT_EQ(ctl.set_fail("cuMemFree_v2", 1, kInvalidValue), 0);
  EXPECT_EQ(cu->MemFree(more), kInvalidValue);
  EXPECT_EQ(ctl.live_allocations(), 1u) << "a release that tells of an error releases all the same";
}

TEST_F(CudaEmulatorTest, StickyErrorsStayUntilTheReset) {
  IssueHeld();
  ASSERT_EQ(ctl.set_fail("cuEventRecord", 1, kIllegalAddress), 0);
  EXPECT_EQ(cu->EventRecord(event, stream), kIllegalAddress);
  EXPECT_EQ(cu->StreamSynchronize(stream), kIllegalAddress);
  EXPECT_EQ(cu->CtxSynchronize(), kIllegalAddress);
  CUdeviceptr more = 0;
  EXPECT_EQ(cu->MemAlloc(&more, 1), kIllegalAddress);
  CUcontext other = nullptr;
  ASSERT_EQ(cu->DevicePrimaryCtxRetain(&other, 1), kSuccess) << "other devices work on";
  ASSERT_EQ(cu->CtxSetCurrent(other), kSuccess);
  ASSERT_EQ(cu->MemAlloc(&more, 1), kSuccess);
  ASSERT_EQ(cu->MemFree(more), kSuccess);
  ASSERT_EQ(cu->DevicePrimaryCtxRelease(1), kSuccess);
  EXPECT_EQ(cu->CtxSetCurrent(context), kIllegalAddress);
  ctl.reset();
  EXPECT_EQ(cu->MemAlloc(&more, 1), kSuccess);
  EXPECT_EQ(cu->MemFree(more), kSuccess);
}

TEST_F(CudaEmulatorTest, AFailureInAStreamShowsLater) {
  memset(pinned, 5, kBytes);
  ASSERT_EQ(cu->MemsetD8Async(device, 0, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  ASSERT_EQ(ctl.set_fail("execute", 1, kIllegalAddress), 0);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, stream), kSuccess);
  EXPECT_EQ(cu->StreamSynchronize(stream), kIllegalAddress);
  ctl.reset();
  EXPECT_EQ(Read(device, kBytes), Bytes(kBytes, 0)) << "the copy was not carried out";
}

TEST_F(CudaEmulatorTest, EveryFunctionCanFail) {
  int count = 0;
  for (; ctl.function_name(count) != nullptr; ++count)
    EXPECT_EQ(ctl.set_fail(ctl.function_name(count), 1, kUnknown), 0);
  EXPECT_GE(count, 40);
  int version = 0;
  size_t free = 0, total = 0;
  EXPECT_EQ(cu->DriverGetVersion(&version), kUnknown);
  EXPECT_EQ(cu->MemGetInfo(&free, &total), kUnknown);
  EXPECT_EQ(cu->StreamQuery(stream), kUnknown);
  EXPECT_EQ(cu->CtxSetCurrent(context), kUnknown);
}

}  // namespace
}  // namespace fst::cuda
