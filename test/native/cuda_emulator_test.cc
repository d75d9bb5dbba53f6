// The emulated driver's own behaviour: bytes arrive, late, in order, and on the device whose context is current.
#include <cstring>
#include <future>
#include <set>
#include <string>
#include <thread>

#include "cuda_emulator_fixture.h"

namespace fst::cuda {
namespace {

using test::Pattern;

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
  ASSERT_EQ(cu->CtxSynchronize(), kSuccess);  // it does not wait, and a non-blocking stream does not wait for it
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
  ctl.set_bandwidth(kBytes * 10);  // 50 ms a copy
  CUstream second = nullptr;
  ASSERT_EQ(cu->StreamCreate(&second, kStreamNonBlocking), kSuccess);
  auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes / 2, stream), kSuccess);
  ASSERT_EQ(cu->MemcpyDtoHAsync(pinned + kBytes / 2, device + kBytes / 2, kBytes / 2, second), kSuccess);
  ASSERT_EQ(cu->CtxSynchronize(), kSuccess);
  // No upper bound: a busy machine may take longer, the model never less.
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
  ASSERT_EQ(cu->StreamDestroy(second), kSuccess);
}

TEST_F(CudaEmulatorTest, ADeviceMayHaveABandwidthOfItsOwn) {
  ctl.set_bandwidth(1ULL << 40);
  ctl.set_device_bandwidth(0, kBytes * 10);
  auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(cu->MemcpyHtoDAsync(device, pinned, kBytes, stream), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
  ctl.set_device_bandwidth(0, 0);
  EXPECT_GE(ctl.device_peak_bytes(0), kBytes);
  EXPECT_EQ(ctl.device_peak_bytes(1), 0U);
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
  ctl.set_delay_us(20000);
  ASSERT_EQ(cu->MemsetD8Async(device, 10, kBytes, nullptr), kSuccess);
  ctl.set_delay_us(0);
  ASSERT_EQ(cu->MemsetD8Async(device, 11, kBytes / 2, blocking), kSuccess);
  ASSERT_EQ(cu->StreamSynchronize(blocking), kSuccess);
  EXPECT_EQ(Read(device, kBytes / 2), Bytes(kBytes / 2, 11)) << "a blocking stream follows the null stream";
  ASSERT_EQ(cu->StreamDestroy(blocking), kSuccess);

  // A non-blocking stream that is stuck until the null stream has got on.
  struct Stuck {
    std::promise<void> go;
    bool gave_up = true;
  } stuck;
  auto wait = [](void* data) {
    auto* it = static_cast<Stuck*>(data);
    it->gave_up = it->go.get_future().wait_for(std::chrono::seconds(10)) != std::future_status::ready;
  };
  ASSERT_EQ(cu->LaunchHostFunc(stream, wait, &stuck), kSuccess);
  EXPECT_EQ(Read(device, 1), Bytes(1, 11));
  stuck.go.set_value();
  ASSERT_EQ(cu->StreamSynchronize(stream), kSuccess);
  EXPECT_FALSE(stuck.gave_up) << "the null stream waited for a non-blocking one";
}

TEST_F(CudaEmulatorTest, FreeingWaitsForWhateverRunsOnTheDevice) {
  CUdeviceptr idle = 0;
  ASSERT_EQ(cu->MemAlloc(&idle, 4096), kSuccess);
  ctl.set_delay_us(20000);
  ASSERT_EQ(cu->MemsetD8Async(device, 1, kBytes, stream), kSuccess);
  EXPECT_EQ(cu->MemFree(idle), kSuccess);
  EXPECT_EQ(cu->StreamQuery(stream), kSuccess);
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
