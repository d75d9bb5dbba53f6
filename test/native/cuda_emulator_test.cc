// The emulated driver's own behaviour: bytes arrive, late, and every misuse that it promises to catch is caught.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulated_cuda.h"

namespace fst::cuda {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr size_t kBytes = 1 << 20;

Bytes Pattern(size_t bytes, unsigned seed) {
  Bytes made(bytes);
  for (size_t i = 0; i < bytes; ++i) made[i] = static_cast<unsigned char>((i * 2654435761u + seed) >> 7);
  return made;
}

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
using CudaEmulatorDeathTest = CudaEmulatorTest;

// ---- devices ----

TEST_F(CudaEmulatorTest, TellsItsDevicesApart) {
  int count = 0, major = 0;
  ASSERT_EQ(cu->DeviceGetCount(&count), kSuccess);
  EXPECT_EQ(count, 2);
  std::set<std::string> buses;
  for (int i = 0; i < count; ++i) {
    CUdevice handle = -1;
    char name[64], bus[16];
    size_t total = 0;
    ASSERT_EQ(cu->DeviceGet(&handle, i), kSuccess);
    ASSERT_EQ(cu->DeviceGetName(name, sizeof name, handle), kSuccess);
    EXPECT_EQ(name, "Emulated GPU " + std::to_string(i));
    ASSERT_EQ(cu->DeviceGetPCIBusId(bus, sizeof bus, handle), kSuccess);
    buses.insert(bus);
    ASSERT_EQ(cu->DeviceTotalMem(&total, handle), kSuccess);
    EXPECT_EQ(total, size_t{2} << 30);
  }
  EXPECT_EQ(buses.size(), 2u);
  EXPECT_EQ(cu->DeviceGetAttribute(&major, kAttributeComputeCapabilityMajor, 1), kSuccess);
  EXPECT_EQ(major, 8);
  CUdevice handle;
  EXPECT_EQ(cu->DeviceGet(&handle, 2), kInvalidDevice);
  ctl.set_attribute(1, kAttributeIntegrated, 1);
  EXPECT_EQ(cu->DeviceGetAttribute(&major, kAttributeIntegrated, 1), kSuccess);
  EXPECT_EQ(major, 1);
}

TEST_F(CudaEmulatorTest, CountsMemoryAgainstTheLimit) {
  size_t free = 0, total = 0;
  ctl.set_memory_limit(0, 3 * kBytes);
  ASSERT_EQ(cu->MemGetInfo(&free, &total), kSuccess);
  EXPECT_EQ(free, 2 * kBytes);
  EXPECT_EQ(total, 3 * kBytes);
  CUdeviceptr more = 0;
  EXPECT_EQ(cu->MemAlloc(&more, 2 * kBytes + 1), kOutOfMemory);
  EXPECT_EQ(cu->MemAlloc(&more, 2 * kBytes), kSuccess);
  EXPECT_EQ(ctl.peak_bytes(), 3 * kBytes);
  EXPECT_EQ(cu->MemFree(more), kSuccess);
  ctl.set_pinned_limit(kBytes);
  void* host = nullptr;
  EXPECT_EQ(cu->MemHostAlloc(&host, 1, 0), kOutOfMemory);
}

TEST_F(CudaEmulatorTest, AlignsAllocationsToNoMoreThanTheDriver) {
  CUdeviceptr small = 0;
  ASSERT_EQ(cu->MemAlloc(&small, 1000), kSuccess);
  EXPECT_EQ(small % 256, 0u);
  EXPECT_NE(small % 4096, 0u);
  EXPECT_EQ(device % (2 << 20), 0u);
  EXPECT_EQ(cu->MemFree(small), kSuccess);
}

// ---- copies ----

TEST_F(CudaEmulatorTest, CopiesBytesEveryWay) {
  Bytes bytes = Pattern(kBytes, 1);
  memcpy(pinned, bytes.data(), kBytes);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoDAsync(device, device + kBytes / 2, kBytes / 4, stream), kSuccess);
  ASSERT_EQ(cu->MemsetD8Async(device + 100, 0x5A, 50, stream), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  Bytes expected = bytes;
  std::copy_n(bytes.begin() + kBytes / 2, kBytes / 4, expected.begin());
  std::fill_n(expected.begin() + 100, 50, 0x5A);
  EXPECT_EQ(Read(device, kBytes), expected);
  ASSERT_EQ(cu->MemcpyHtoD(device + 1, bytes.data(), 1000), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoD(device + 5000, device + 1, 1000), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoHAsync(pinned, device + 5000, 1000, stream), kSuccess);
  ASSERT_EQ(cu->CtxSynchronize(), kSuccess);
  EXPECT_EQ(Bytes(pinned, pinned + 1000), Bytes(bytes.begin(), bytes.begin() + 1000));
  EXPECT_EQ(ctl.unpinned_async_copies(), 0u);
}

TEST_F(CudaEmulatorTest, ReadsPageLockedSourcesLate) {
  memset(pinned, 1, kBytes);
  IssueHeld();
  memset(pinned, 2, kBytes);  // too early: the copy is pending
  EXPECT_EQ(cu->StreamQuery(stream), kNotReady);
  EXPECT_EQ(ctl.pending(), 1u);
  ctl.hold(0);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(Read(device, kBytes), Bytes(kBytes, 2));
}

TEST_F(CudaEmulatorTest, WritesPageLockedDestinationsLate) {
  memset(pinned, 1, kBytes);
  ASSERT_EQ(cu->MemsetD8Async(device, 3, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  ctl.hold(1);
  ASSERT_EQ(cu->MemcpyDtoHAsync(pinned, device, kBytes, stream), kSuccess);
  EXPECT_EQ(pinned[kBytes - 1], 1);
  ctl.hold(0);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(pinned[kBytes - 1], 3);
}

TEST_F(CudaEmulatorTest, StagesPageableSourcesAtOnceAndCountsThem) {
  Bytes pageable(kBytes, 7);
  ctl.hold(1);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pageable.data(), kBytes, stream), kSuccess);
  std::fill(pageable.begin(), pageable.end(), 8);
  ctl.hold(0);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(Read(device, kBytes), Bytes(kBytes, 7));
  EXPECT_EQ(ctl.unpinned_async_copies(), 1u);

  ASSERT_EQ(cu->MemHostRegister(pageable.data(), kBytes, kMemHostRegisterPortable), kSuccess);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pageable.data() + 10, 1000, stream), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  ASSERT_EQ(cu->MemHostUnregister(pageable.data()), kSuccess);
  EXPECT_EQ(Read(device, 1000), Bytes(1000, 8));
  EXPECT_EQ(ctl.unpinned_async_copies(), 1u);
}

TEST_F(CudaEmulatorTest, BoundsEveryCopy) {
  Bytes host(2 * kBytes);
  for (CUdeviceptr at : {device + 1, device - 1, device + kBytes, CUdeviceptr{0x1000}}) {
    EXPECT_EQ(cu->MemcpyHtoDAsync(at, pinned, kBytes, stream), kInvalidValue) << ctl.last_refusal();
    EXPECT_EQ(cu->MemcpyDtoH(host.data(), at, kBytes), kInvalidValue);
    EXPECT_EQ(cu->MemcpyDtoDAsync(at, device, kBytes, stream), kInvalidValue);
    EXPECT_EQ(cu->MemcpyDtoDAsync(device, at, kBytes, stream), kInvalidValue);
    EXPECT_EQ(cu->MemsetD8Async(at, 0, kBytes, stream), kInvalidValue);
  }
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, pinned + 1, kBytes, stream), kInvalidValue) << "leaves the page-locked range";
  EXPECT_EQ(cu->MemcpyHtoD(device, reinterpret_cast<void*>(device), 16), kInvalidValue)
      << "device memory as a host address";
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, pinned, 0, stream), kSuccess);
}

TEST_F(CudaEmulatorTest, SharesAModelledBandwidth) {
  ctl.set_bandwidth(kBytes * 20);  // 50 ms a copy
  CUstream second = nullptr;
  ASSERT_EQ(cu->StreamCreate(&second, kStreamNonBlocking), kSuccess);
  auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoHAsync(pinned, device, kBytes, second), kSuccess);
  ASSERT_EQ(cu->CtxSynchronize(), kSuccess);
  // No upper bound: a busy machine may take longer, the model never less.
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
  ASSERT_EQ(cu->StreamDestroy(second), kSuccess);
}

// ---- streams and events ----

TEST_F(CudaEmulatorTest, EventsAreReachedAfterWhatIsBeforeThem) {
  EXPECT_EQ(cu->EventQuery(event), kSuccess) << "never recorded";
  IssueHeld();
  ASSERT_EQ(cu->EventRecord(event, stream), kSuccess);
  EXPECT_EQ(cu->EventQuery(event), kNotReady);
  CUstream second = nullptr;
  ASSERT_EQ(cu->StreamCreate(&second, kStreamNonBlocking), kSuccess);
  ASSERT_EQ(cu->StreamWaitEvent(second, event, 0), kSuccess);
  EXPECT_EQ(cu->StreamQuery(second), kNotReady);
  ctl.hold(0);
  ASSERT_EQ(cu->EventSynchronize(event), kSuccess);
  EXPECT_EQ(cu->EventQuery(event), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(second), kSuccess);
  EXPECT_EQ(ctl.executed(), 1u);
  ASSERT_EQ(cu->StreamDestroy(second), kSuccess);
}

TEST_F(CudaEmulatorTest, TheNullStreamWaitsForBlockingStreamsOnly) {
  CUstream blocking = nullptr;
  ASSERT_EQ(cu->StreamCreate(&blocking, 0), kSuccess);
  memset(pinned, 9, kBytes);
  ctl.set_delay_us(20000);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, blocking), kSuccess);
  ctl.set_delay_us(0);
  EXPECT_EQ(Read(device, kBytes), Bytes(kBytes, 9)) << "a synchronous copy follows a blocking stream";
  IssueHeld();
  EXPECT_EQ(cu->StreamQuery(nullptr), kSuccess) << "and is no part of a non-blocking one";
  ctl.hold(0);
  ASSERT_EQ(cu->StreamDestroy(blocking), kSuccess);
}

TEST_F(CudaEmulatorTest, RunsHostFunctionsInOrder) {
  std::pair<unsigned char*, int> seen{pinned, -1};
  ASSERT_EQ(cu->MemsetD8Async(device, 4, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoHAsync(pinned, device, kBytes, stream), kSuccess);
  auto look = [](void* data) {
    auto* pair = static_cast<std::pair<unsigned char*, int>*>(data);
    pair->second = pair->first[kBytes - 1];
  };
  ASSERT_EQ(cu->LaunchHostFunc(stream, look, &seen), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(seen.second, 4);
}

// ---- contexts ----

TEST_F(CudaEmulatorTest, EveryThreadHasItsOwnContext) {
  std::thread([&] {
    CUcontext current = context;
    EXPECT_EQ(cu->CtxGetCurrent(&current), kSuccess);
    EXPECT_EQ(current, nullptr);
    CUdeviceptr more = 0;
    EXPECT_EQ(cu->MemAlloc(&more, 1), kInvalidContext);
    EXPECT_EQ(cu->MemcpyHtoDAsync(device, pinned, 1, stream), kInvalidContext);
    EXPECT_EQ(cu->EventQuery(event), kInvalidContext);
    EXPECT_EQ(cu->MemHostUnregister(pinned), kInvalidContext);
    EXPECT_EQ(cu->CtxSetCurrent(context), kSuccess);
    EXPECT_EQ(cu->EventQuery(event), kSuccess);
  }).join();
}

TEST_F(CudaEmulatorTest, ObjectsOfAnotherDeviceAreRefused) {
  CUcontext other = nullptr;
  ASSERT_EQ(cu->DevicePrimaryCtxRetain(&other, 1), kSuccess);
  ASSERT_EQ(cu->CtxSetCurrent(other), kSuccess);
  CUstream own = nullptr;
  CUdeviceptr mine = 0;
  ASSERT_EQ(cu->StreamCreate(&own, kStreamNonBlocking), kSuccess);
  ASSERT_EQ(cu->MemAlloc(&mine, kBytes), kSuccess);
  EXPECT_EQ(cu->MemcpyHtoDAsync(mine, pinned, 1, stream), kInvalidHandle) << "stream";
  EXPECT_EQ(cu->MemcpyHtoDAsync(device, pinned, 1, own), kInvalidContext) << "memory";
  EXPECT_EQ(cu->EventRecord(event, own), kInvalidHandle) << "event";
  EXPECT_EQ(cu->StreamSynchronize(stream), kInvalidHandle);
  EXPECT_EQ(cu->MemFree(device), kInvalidContext);
  int ordinal = -1;
  ASSERT_EQ(cu->PointerGetAttribute(&ordinal, kPointerDeviceOrdinal, device), kSuccess);
  EXPECT_EQ(ordinal, 0);
  // Portable page-locked memory serves every device, other memory only its own.
  void* local = nullptr;
  ASSERT_EQ(cu->MemcpyHtoDAsync(mine, pinned, kBytes, own), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(own), kSuccess);
  EXPECT_EQ(ctl.unpinned_async_copies(), 0u);
  ASSERT_EQ(cu->MemHostAlloc(&local, kBytes, 0), kSuccess);
  ASSERT_EQ(cu->CtxSetCurrent(context), kSuccess);
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, local, kBytes, stream), kSuccess);
  EXPECT_EQ(ctl.unpinned_async_copies(), 1u);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  ASSERT_EQ(cu->CtxSetCurrent(other), kSuccess);
  ASSERT_EQ(cu->MemFreeHost(local), kSuccess);
  ASSERT_EQ(cu->MemFree(mine), kSuccess);
  ASSERT_EQ(cu->StreamDestroy(own), kSuccess);
  ASSERT_EQ(cu->DevicePrimaryCtxRelease(1), kSuccess);
  CUdeviceptr more = 0;
  EXPECT_EQ(cu->MemAlloc(&more, 1), kContextIsDestroyed);
  ASSERT_EQ(cu->CtxSetCurrent(context), kSuccess);
}

// ---- pointers ----

TEST_F(CudaEmulatorTest, KnowsWhatAPointerIs) {
  unsigned type = 0, managed_flag = 0;
  EXPECT_EQ(cu->PointerGetAttribute(&type, kPointerMemoryType, device + 5), kSuccess);
  EXPECT_EQ(type, kMemoryTypeDevice);
  EXPECT_EQ(cu->PointerGetAttribute(&type, kPointerMemoryType, reinterpret_cast<CUdeviceptr>(pinned)), kSuccess);
  EXPECT_EQ(type, kMemoryTypeHost);
  EXPECT_EQ(cu->PointerGetAttribute(&type, kPointerMemoryType, reinterpret_cast<CUdeviceptr>(&type)), kInvalidValue);
  CUdeviceptr alias = 0, managed = 0;
  EXPECT_EQ(cu->MemHostGetDevicePointer(&alias, pinned + 16, 0), kSuccess);
  EXPECT_EQ(alias, reinterpret_cast<CUdeviceptr>(pinned + 16));
  EXPECT_EQ(cu->MemcpyDtoDAsync(device, alias, 16, stream), kSuccess);
  ASSERT_EQ(cu->MemAllocManaged(&managed, 4096, kMemAttachGlobal), kSuccess);
  EXPECT_EQ(cu->PointerGetAttribute(&managed_flag, kPointerIsManaged, managed), kSuccess);
  EXPECT_EQ(managed_flag, 1u);
  memset(reinterpret_cast<void*>(managed), 6, 4096);  // the host may
  EXPECT_EQ(Read(managed, 4096), Bytes(4096, 6));
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_EQ(cu->MemFree(managed), kSuccess);
}

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

TEST_F(CudaEmulatorDeathTest, HostFunctionsMayNotCallTheDriver) {
  auto bad = [](void* data) { (void)static_cast<const CudaApi*>(data)->CtxSynchronize(); };
  EXPECT_DEATH(
      {
        (void)cu->LaunchHostFunc(stream, bad, const_cast<CudaApi*>(cu));
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

TEST_F(CudaEmulatorTest, HasNoGpuCode) {
  CUmodule module = nullptr;
  EXPECT_EQ(cu->ModuleLoadData(&module, ""), kNotSupported);
}

TEST_F(CudaEmulatorTest, ManyThreadsAndStreamsWithJitter) {
  ctl.set_delay_us(50);
  ctl.set_jitter_us(300);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      EXPECT_EQ(cu->CtxSetCurrent(context), kSuccess);
      CUstream own = nullptr;
      CUevent done = nullptr;
      CUdeviceptr memory = 0;
      unsigned char* host = nullptr;
      EXPECT_EQ(cu->StreamCreate(&own, kStreamNonBlocking), kSuccess);
      EXPECT_EQ(cu->EventCreate(&done, kEventDisableTiming), kSuccess);
      EXPECT_EQ(cu->MemAlloc(&memory, 64 * 1024), kSuccess);
      EXPECT_EQ(cu->MemHostAlloc(reinterpret_cast<void**>(&host), 64 * 1024, 0), kSuccess);
      for (unsigned round = 0; round < 20; ++round) {
        Bytes bytes = Pattern(64 * 1024, t * 100 + round);
        memcpy(host, bytes.data(), bytes.size());
        EXPECT_EQ(cu->MemcpyHtoDAsync(memory, host, bytes.size(), own), kSuccess);
        EXPECT_EQ(cu->EventRecord(done, own), kSuccess);
        EXPECT_EQ(cu->EventSynchronize(done), kSuccess);
        memset(host, 0, bytes.size());
        EXPECT_EQ(cu->MemcpyDtoHAsync(host, memory, bytes.size(), own), kSuccess);
        EXPECT_EQ(cu->StreamSynchronize(own), kSuccess);
        EXPECT_EQ(memcmp(host, bytes.data(), bytes.size()), 0);
      }
      EXPECT_EQ(cu->MemFreeHost(host), kSuccess);
      EXPECT_EQ(cu->MemFree(memory), kSuccess);
      EXPECT_EQ(cu->EventDestroy(done), kSuccess);
      EXPECT_EQ(cu->StreamDestroy(own), kSuccess);
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace fst::cuda
