// What CudaDevice and CudaStream promise, call by call, on the emulated driver: the right context whatever the calling
// thread had before, no return before the bytes have arrived, nothing freed under a copy.
#include "device/cuda_device.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>

#include "cuda_load_fixture.h"
#include "device/kept_memory.h"

namespace fst {
namespace {

using test::Bytes;
using test::Pattern;

constexpr size_t kBytes = 64 << 10;
constexpr unsigned kLateUs = 20'000;  // long enough to be noticed on a busy machine

class CudaDeviceTest : public test::CudaLoadTest {
 protected:
  void SetUp() override {
    CudaLoadTest::SetUp();
    ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
    ASSERT_TRUE(OpenDevice("cuda:1", false, &other).ok());
  }
  void TearDown() override {
    device.reset();
    other.reset();
    CudaLoadTest::TearDown();
  }

  // On a thread without a context, then on one that has the other device's.
  template <class Body>
  void OnForeignThreads(const char* what, Body body) {
    for (const char* context : {"no", "another"}) {
      SCOPED_TRACE(std::string(what) + " on a thread with " + context + " context");
      std::thread([&] {
        if (std::string(context) == "another") {
          ASSERT_TRUE(static_cast<CudaDevice&>(*other).MakeCurrent().ok());
        }
        body();
      }).join();
    }
  }

  std::shared_ptr<DeviceBuffer> Buffer(size_t bytes = kBytes) {
    std::shared_ptr<DeviceBuffer> buffer;
    Status allocated = device->Allocate(bytes, &buffer);
    EXPECT_TRUE(allocated.ok()) << allocated.message();
    return buffer;
  }

  std::unique_ptr<StagingMemory> Staging(size_t bytes = kBytes) {
    std::unique_ptr<StagingMemory> staging;
    Status allocated = device->AllocateStaging(bytes, &staging);
    EXPECT_TRUE(allocated.ok()) << allocated.message();
    return staging;
  }

  Bytes ReadBack(const DeviceBuffer& buffer) {
    Bytes bytes(buffer.size());
    Status read = device->Read(buffer, 0, bytes.size(), bytes.data());
    EXPECT_TRUE(read.ok()) << read.message();
    return bytes;
  }

  std::shared_ptr<Device> device, other;
};

TEST_F(CudaDeviceTest, EveryOperationMakesItsOwnContextCurrent) {
  std::shared_ptr<DeviceBuffer> buffer = Buffer(), second = Buffer();
  Bytes bytes = Pattern(kBytes, 1);
  OnForeignThreads("CheckAvailable", [&] { EXPECT_TRUE(device->CheckAvailable(1).ok()); });
  OnForeignThreads("Allocate", [&] { EXPECT_EQ(Buffer()->size(), kBytes); });
  OnForeignThreads("AllocateStaging", [&] { (void)Staging(); });
  OnForeignThreads("PinHostMemory", [&] {
    EXPECT_TRUE(device->PinHostMemory(bytes.data(), bytes.size()).ok());
    std::thread([&] { EXPECT_TRUE(device->UnpinHostMemory(bytes.data())); }).join();
  });
  OnForeignThreads("Write", [&] { EXPECT_TRUE(device->Write(*buffer, 0, kBytes, bytes.data()).ok()); });
  OnForeignThreads("Copy", [&] {
    CopyRegion all{0, 0, kBytes};
    EXPECT_TRUE(device->Copy(*buffer, *second, &all, 1).ok());
  });
  OnForeignThreads("Read", [&] { EXPECT_EQ(ReadBack(*second), bytes); });
  OnForeignThreads("Synchronize", [&] { EXPECT_TRUE(device->Synchronize().ok()); });
}

// By the emulator's count of bytes: a driver refuses a release in the wrong context, which leaks.
TEST_F(CudaDeviceTest, EveryReleaseMakesItsOwnContextCurrent) {
  OnForeignThreads("staging memory", [&] {
    std::unique_ptr<StagingMemory> staging = Staging();
    std::thread([&] { staging.reset(); }).join();
    EXPECT_EQ(cuda.live_pinned(), 0u);
  });
  OnForeignThreads("device memory", [&] {
    auto& gpu = static_cast<CudaDevice&>(*device);
    cuda::CUdeviceptr memory = 0;
    ASSERT_TRUE(gpu.MakeCurrent().ok());
    ASSERT_TRUE(gpu.AllocateMemory(kBytes, &memory).ok());
    std::thread([&] { gpu.FreeMemory(memory); }).join();
    EXPECT_EQ(cuda.live_allocations(), 0u);
  });
}

TEST_F(CudaDeviceTest, AReleaseTriesItsContextTwice) {
  std::unique_ptr<StagingMemory> staging = Staging();
  std::thread([&] {
    cuda.set_fail("cuCtxSetCurrent", 1, cuda::kUnknown);
    staging.reset();
  }).join();
  EXPECT_EQ(cuda.live_pinned(), 0u);
}

TEST_F(CudaDeviceTest, StagingThatCannotBeUnregisteredIsKeptUntilItCan) {
  std::unique_ptr<StagingMemory> staging = Staging();
  auto* memory = reinterpret_cast<volatile char*>(staging->address());  // NOLINT(performance-no-int-to-ptr)
  memory[0] = 7;
  cuda.set_fail("cuMemHostUnregister", 0, cuda::kUnknown);
  staging.reset();
  EXPECT_EQ(cuda.live_pinned(), 1u);
  EXPECT_EQ(Metrics::Get().staging_bytes, static_cast<int64_t>(kBytes));
  EXPECT_EQ(memory[0], 7) << "unmapped while the GPU may copy from it";
  EXPECT_NE(Staging()->address(), reinterpret_cast<uintptr_t>(memory));
  EXPECT_EQ(cuda.live_pinned(), 2u);

  cuda.reset();
  RetryReleases();
  EXPECT_EQ(cuda.live_pinned(), 0u);
  EXPECT_EQ(Metrics::Get().staging_bytes, 0);
}

TEST_F(CudaDeviceTest, AReleaseThatTellsOfAnEarlierErrorIsTriedAgain) {
  std::unique_ptr<StagingMemory> staging = Staging();
  cuda.set_fail("cuMemHostUnregister", 1, cuda::kUnknown);
  staging.reset();
  EXPECT_EQ(cuda.live_pinned(), 0u);
  EXPECT_EQ(Metrics::Get().staging_bytes, 0);
}

TEST_F(CudaDeviceTest, WriteReturnsWhenTheBytesHaveArrived) {
  std::shared_ptr<DeviceBuffer> buffer = Buffer();
  cuda.set_delay_us(kLateUs);
  ASSERT_TRUE(device->Write(*buffer, 0, kBytes, Pattern(kBytes, 2).data()).ok());
  EXPECT_EQ(cuda.pending(), 0u);
  EXPECT_EQ(ReadBack(*buffer), Pattern(kBytes, 2));
}

TEST_F(CudaDeviceTest, CopyReturnsWhenTheBytesHaveArrived) {
  std::shared_ptr<DeviceBuffer> from = Buffer(), to = Buffer();
  ASSERT_TRUE(device->Write(*from, 0, kBytes, Pattern(kBytes, 3).data()).ok());
  cuda.set_delay_us(kLateUs);
  CopyRegion halves[] = {{0, 0, kBytes / 2}, {kBytes / 2, kBytes / 2, kBytes / 2}};
  ASSERT_TRUE(device->Copy(*from, *to, halves, 2).ok());
  EXPECT_EQ(cuda.pending(), 0u);
  EXPECT_EQ(ReadBack(*to), Pattern(kBytes, 3));
  // A failure does not return either while earlier copies run.
  cuda.set_fail("cuMemcpyDtoD_v2", 2, cuda::kUnknown);
  EXPECT_EQ(device->Copy(*from, *to, halves, 2).code(), Code::CUDA_ERROR);
  EXPECT_EQ(cuda.pending(), 0u);
}

TEST_F(CudaDeviceTest, SynchronizeWaitsForTheStreamsOfAll) {
  std::shared_ptr<DeviceBuffer> buffer = Buffer();
  ASSERT_TRUE(static_cast<CudaDevice&>(*device).MakeCurrent().ok());
  cuda::CUstream stream = nullptr;  // of another library in the process
  ASSERT_EQ(cu->StreamCreate(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
  cuda.set_delay_us(kLateUs);
  ASSERT_EQ(cu->MemsetD8Async(buffer->address(), 7, kBytes, stream), cuda::kSuccess);
  ASSERT_TRUE(device->Synchronize().ok());
  EXPECT_EQ(cuda.pending(), 0u);
  EXPECT_EQ(cu->StreamDestroy(stream), cuda::kSuccess);
}

TEST_F(CudaDeviceTest, OutOfMemorySaysAskedFreeAndTotal) {
  cuda.set_memory_limit(0, 1'000'000);
  std::shared_ptr<DeviceBuffer> most = Buffer(900'000), more;
  Status refused = device->Allocate(200'000, &more);
  EXPECT_EQ(refused.code(), Code::OUT_OF_DEVICE_MEMORY);
  EXPECT_NE(refused.message().find("asked for 200000 bytes on cuda:0 (Emulated GPU 0), 100000 of 1000000 are free"),
            std::string::npos)
      << refused.message();
  EXPECT_EQ(device->CheckAvailable(100'001).message().find("asked for 100001 bytes on cuda:0"), 0u);
  EXPECT_TRUE(device->CheckAvailable(100'000).ok());
}

// Buffers that were dropped a moment ago may not be free yet: cuMemFree waits for what runs on the device.
TEST_F(CudaDeviceTest, MemoryThatIsBeingFreedCountsAsFree) {
  cuda.set_memory_limit(0, 1'000'000);
  std::shared_ptr<DeviceBuffer> busy = Buffer(1000), gone, more;
  ASSERT_TRUE(static_cast<CudaDevice&>(*device).MakeCurrent().ok());
  cuda::CUstream stream = nullptr;
  ASSERT_EQ(cu->StreamCreate(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
  auto let_go_while_busy = [&] {
    gone = Buffer(900'000);
    cuda.set_delay_us(kLateUs);
    ASSERT_EQ(cu->MemsetD8Async(busy->address(), 7, 1000, stream), cuda::kSuccess);
    cuda.set_delay_us(0);
    gone.reset();
  };
  let_go_while_busy();
  EXPECT_TRUE(device->CheckAvailable(900'000).ok());
  let_go_while_busy();
  EXPECT_TRUE(device->Allocate(900'000, &more).ok());
  EXPECT_EQ(cu->StreamDestroy(stream), cuda::kSuccess);
}

// cuMemFree waits for the device; the thread that drops the last reference, which may run a finalizer, does not.
TEST_F(CudaDeviceTest, LettingGoOfMemoryWaitsForNothing) {
  std::shared_ptr<DeviceBuffer> busy = Buffer(), gone = Buffer();
  ASSERT_TRUE(static_cast<CudaDevice&>(*device).MakeCurrent().ok());
  cuda::CUstream stream = nullptr;
  ASSERT_EQ(cu->StreamCreate(&stream, cuda::kStreamNonBlocking), cuda::kSuccess);
  cuda.hold(1);
  ASSERT_EQ(cu->MemsetD8Async(busy->address(), 7, kBytes, stream), cuda::kSuccess);
  gone.reset();
  EXPECT_EQ(cuda.pending(), 1u);
  cuda.hold(0);
  WaitForFrees();
  EXPECT_EQ(cuda.live_allocations(), 1u);
  EXPECT_EQ(cu->StreamDestroy(stream), cuda::kSuccess);
}

TEST_F(CudaDeviceTest, ADeviceThatIsNotThereSaysHowManyThereAre) {
  std::shared_ptr<Device> none;
  Status opened = OpenDevice("cuda:2", false, &none);
  EXPECT_EQ(opened.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_NE(opened.message().find("there is no device \"cuda:2\": the driver "), std::string::npos);
  EXPECT_NE(opened.message().find("shows 2 devices"), std::string::npos) << opened.message();
}

TEST_F(CudaDeviceTest, StagingIsOnTheNodeOfTheDevice) {
  if (syscall(SYS_set_mempolicy, MPOL_DEFAULT, nullptr, 0) != 0) {
    GTEST_SKIP() << "memory policies may not be set here (" << ErrnoText(errno) << ")";
  }
  UseFakeDevices(nullptr);
  cuda.set_attribute(0, cuda::kAttributeHostNumaId, 0);
  std::shared_ptr<Device> near;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &near).ok());
  ASSERT_EQ(near->numa_node(), 0) << "sysfs does not know the emulated GPU: the driver tells";
  std::unique_ptr<StagingMemory> staging;
  ASSERT_TRUE(near->AllocateStaging(kBytes, &staging).ok());
  EXPECT_EQ(cuda.pinned_node(), 0);
  std::shared_ptr<Device> not_near;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &not_near, /*near=*/false).ok());
  EXPECT_EQ(not_near->numa_node(), -1);
  ASSERT_TRUE(not_near->AllocateStaging(kBytes, &staging).ok());
  EXPECT_EQ(cuda.pinned_node(), -1);
  cuda.set_attribute(1, cuda::kAttributeHostNumaId, -1);
  std::shared_ptr<Device> anywhere;
  ASSERT_TRUE(OpenDevice("cuda:1", false, &anywhere).ok());
  ASSERT_TRUE(anywhere->AllocateStaging(kBytes, &staging).ok());
  EXPECT_EQ(cuda.pinned_node(), -1);
}

TEST_F(CudaDeviceTest, StagingIsTheDriversOwnWhereNoOtherCanBeLocked) {
  cuda.set_attribute(1, cuda::kAttributeHostRegisterSupported, 0);
  std::shared_ptr<Device> old;
  ASSERT_TRUE(OpenDevice("cuda:1", true, &old).ok()) << "another one than the fixture's";
  std::unique_ptr<StagingMemory> staging;
  std::thread([&] { ASSERT_TRUE(old->AllocateStaging(kBytes, &staging).ok()); }).join();  // it has no context yet
  EXPECT_EQ(cuda.call_count("cuMemHostAlloc"), 1u);
  EXPECT_EQ(cuda.call_count("cuMemHostRegister_v2"), 0u);
  EXPECT_EQ(cuda.live_pinned_bytes(), kBytes);
  std::thread([&] { staging.reset(); }).join();
  EXPECT_EQ(cuda.live_pinned_bytes(), 0u);
}

// Small slots of many loaders would each be a huge page.
TEST_F(CudaDeviceTest, SmallStagingTakesSmallPages) {
  auto resident = [] {
    long pages = 0, of_them = 0;  // NOLINT(google-runtime-int)
    FILE* file = fopen("/proc/self/statm", "re");
    EXPECT_EQ(fscanf(file, "%ld %ld", &pages, &of_them), 2);
    fclose(file);
    return of_them * sysconf(_SC_PAGESIZE);
  };
  std::vector<std::unique_ptr<StagingMemory>> many;
  const auto before = resident();
  for (int i = 0; i < 16; ++i) many.push_back(Staging());
  EXPECT_LT(resident() - before, 8 << 20) << "of 16 x " << kBytes << " bytes";
}

// Otherwise copy-on-write would replace the pages, and the GPU would copy from the old ones.
TEST_F(CudaDeviceTest, ProcessesThatAreStartedShareNoStaging) {
  std::unique_ptr<StagingMemory> staging;
  for (size_t bytes : {size_t{4096}, kBytes, size_t{5} << 20}) {
    ASSERT_TRUE(device->AllocateStaging(bytes, &staging).ok());
    auto* memory = reinterpret_cast<void*>(staging->address());  // NOLINT(performance-no-int-to-ptr)
    pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      unsigned char resident[1];
      _exit(mincore(memory, 4096, resident) != 0 && errno == ENOMEM ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << bytes;
  }
}

// Unified memory: host and device use it by the same address.
TEST_F(CudaDeviceTest, UnifiedMemoryIsManagedOnlyWhereTheHostMayTouchThatAtAnyTime) {
  for (int concurrent : {1, 0}) {
    SCOPED_TRACE(concurrent);
    UseFakeDevices(nullptr);
    cuda.reset();
    cuda.set_attribute(0, cuda::kAttributeConcurrentManagedAccess, concurrent);
    std::shared_ptr<Device> unified;
    ASSERT_TRUE(OpenDevice("cuda:0", true, &unified).ok());
    EXPECT_TRUE(unified->host_accessible());
    std::shared_ptr<DeviceBuffer> buffer;
    ASSERT_TRUE(unified->Allocate(kBytes, &buffer).ok());
    EXPECT_EQ(buffer->address() % 256, 0u);
    EXPECT_EQ(cuda.call_count("cuMemAllocManaged"), concurrent == 1 ? 1u : 0u);
    Bytes bytes = Pattern(kBytes, 9);
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<unsigned char*>(buffer->address()));
    Bytes read(kBytes);
    ASSERT_TRUE(unified->Read(*buffer, 0, kBytes, read.data()).ok());
    EXPECT_EQ(read, bytes);
    ASSERT_TRUE(unified->Write(*buffer, 0, kBytes, Pattern(kBytes, 10).data()).ok());
    ASSERT_TRUE(unified->Read(*buffer, 0, kBytes, read.data()).ok());
    EXPECT_EQ(read, Pattern(kBytes, 10));
    buffer.reset();
    WaitForFrees();
    EXPECT_EQ(cuda.live_allocations() + cuda.live_pinned(), 0u);
    // Out of memory is the device's error for either kind.
    cuda.set_memory_limit(0, 1000);
    cuda.set_pinned_limit(1000);
    EXPECT_EQ(unified->Allocate(kBytes, &buffer).code(), Code::OUT_OF_DEVICE_MEMORY);
  }
}

// ---- streams ----

class CudaStreamTest : public CudaDeviceTest {
 protected:
  void SetUp() override {
    CudaDeviceTest::SetUp();
    buffer = Buffer();
    staging = Staging();
    Bytes bytes = Pattern(kBytes, 5);
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<unsigned char*>(staging->address()));
    ASSERT_TRUE(device->NewStream(queue, &stream).ok());
  }
  void TearDown() override {
    stream.reset();
    staging.reset();
    buffer.reset();
    CudaDeviceTest::TearDown();
  }

  // The staging memory, cut into this many pieces.
  Status Submit(uint64_t tag, size_t pieces = 1) {
    std::vector<CopyPiece> list;
    const size_t length = kBytes / pieces;
    for (size_t i = 0; i < pieces; ++i)
      list.push_back({staging->address() + i * length, buffer->address() + i * length, length});
    return stream->Submit(list.data(), list.size(), false, tag);
  }

  // The completions of the next few milliseconds.
  std::vector<Completion> Take(int ms) {
    std::vector<Completion> completions;
    queue->Take(&completions, Clock::now() + std::chrono::milliseconds(ms));
    return completions;
  }

  std::shared_ptr<CompletionQueue> queue = std::make_shared<CompletionQueue>();
  std::shared_ptr<DeviceBuffer> buffer;
  std::unique_ptr<StagingMemory> staging;
  std::unique_ptr<CopyStream> stream;
};

TEST_F(CudaStreamTest, ACompletionComesWhenAllPiecesHaveArrived) {
  cuda.hold(1);
  ASSERT_TRUE(Submit(11, 4).ok());
  EXPECT_TRUE(Take(30).empty()) << "nothing has been copied yet";
  cuda.hold(0);
  std::vector<Completion> completions = Take(10'000);
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].tag, 11u);
  EXPECT_TRUE(completions[0].status.ok());
  EXPECT_EQ(cuda.pending(), 0u);
  EXPECT_EQ(ReadBack(*buffer), Pattern(kBytes, 5));
}

TEST_F(CudaStreamTest, OperationsMakeTheirOwnContextCurrent) {
  OnForeignThreads("Submit", [&] {
    EXPECT_TRUE(Submit(1).ok());
    EXPECT_EQ(Take(10'000).size(), 1u);
  });
  OnForeignThreads("a stream", [&] {
    std::unique_ptr<CopyStream> made;
    ASSERT_TRUE(device->NewStream(queue, &made).ok());
    std::thread([&] { made.reset(); }).join();
    EXPECT_EQ(cuda.live_streams(), 1u) << "the fixture's";
  });
}

TEST_F(CudaStreamTest, ARefusedSubmissionReturnsWhenNoPieceIsOnItsWay) {
  cuda.set_delay_us(kLateUs);
  for (const char* refused : {"cuMemcpyHtoDAsync_v2", "cuEventRecord"}) {
    SCOPED_TRACE(refused);
    cuda.set_fail(refused, std::string(refused) == "cuEventRecord" ? 1 : 2, cuda::kUnknown);
    EXPECT_EQ(Submit(1, 2).code(), Code::CUDA_ERROR);
    EXPECT_EQ(cuda.pending(), 0u) << "the slot is the caller's again";
  }
  EXPECT_TRUE(Take(0).empty());
}

// Every call of the drain may fail once.
TEST_F(CudaStreamTest, ADrainTriesTwice) {
  cuda.set_delay_us(kLateUs);
  cuda.set_fail("cuMemcpyHtoDAsync_v2", 2, cuda::kUnknown);
  cuda.set_fail("cuStreamSynchronize", 1, cuda::kUnknown);
  EXPECT_FALSE(Submit(1, 2).ok());
  EXPECT_EQ(cuda.pending(), 0u);
  cuda.set_fail("cuMemcpyHtoDAsync_v2", 2, cuda::kUnknown);
  cuda.set_fail("cuCtxSetCurrent", 2, cuda::kUnknown);  // the first is that of the submission
  EXPECT_FALSE(Submit(1, 2).ok());
  EXPECT_EQ(cuda.pending(), 0u);
}

TEST_F(CudaStreamTest, AFailedWaitCompletesWhenNoCopyIsOnItsWay) {
  cuda.set_delay_us(kLateUs);
  // The waiting thread's first entry into the context; the call before it is the submission's.
  cuda.set_fail("cuCtxSetCurrent", 2, cuda::kUnknown);
  for (uint64_t tag : {1, 2}) {
    ASSERT_TRUE(Submit(tag).ok());
    std::vector<Completion> completions = Take(10'000);
    EXPECT_EQ(cuda.pending(), 0u);
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_EQ(completions[0].status.code(), Code::CUDA_ERROR);
    cuda.set_fail("cuEventSynchronize", 1, cuda::kUnknown);  // then the wait itself
  }
  cuda.reset();
}

TEST_F(CudaStreamTest, TheEndOfAStreamWaitsForItsCopies) {
  cuda.set_delay_us(kLateUs);
  ASSERT_TRUE(Submit(1).ok());
  ASSERT_TRUE(Submit(2, 3).ok());
  stream.reset();
  EXPECT_EQ(cuda.pending(), 0u);
  EXPECT_EQ(Take(0).size(), 2u);
  EXPECT_EQ(cuda.live_events(), 0u);
}

}  // namespace
}  // namespace fst
