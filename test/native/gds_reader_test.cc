// Loads into GPU memory by GPUDirect Storage: what goes straight, what through the ring, what falls back, what fails.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/digest.h"
#include "base/fd.h"
#include "cuda_load_fixture.h"
#include "device/cuda_device.h"

namespace fst {
namespace {

using test::ByFile;
using test::ByGds;
using test::Loaded;

class GdsReaderTest : public test::CudaLoadTest {
 protected:
  void ExpectLoaded(const Loaded& loaded) {
    EXPECT_TRUE(loaded.drained);
    ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
    EXPECT_EQ(Wrong(loaded), "");
  }
};

TEST_F(GdsReaderTest, ReadsEveryByteOntoEachDevice) {
  AddModel();
  for (const char* device : {"cuda:0", "cuda:1"}) {
    Loaded loaded = Load(device, ByGds());
    ExpectLoaded(loaded);
    EXPECT_TRUE(loaded.fallbacks.empty());
    ExpectNothingHeld();
  }
  EXPECT_EQ(cufile.unaligned_reads(), 0u);
  EXPECT_EQ(cufile.unregistered_reads(), 0u);
  EXPECT_EQ(cuda.live_pinned(), 0u);
  EXPECT_EQ(cuda.peak_pinned_bytes(), 0u) << "the host's memory is not needed";
  EXPECT_EQ(cufile.call_count("cuFileDriverOpen"), 1u) << "once a process";
}

TEST_F(GdsReaderTest, ReadsStraightIntoPlaceWhereFileAndMemoryAreCongruent) {
  AddFile(3 << 20, 1);
  AddTensors(0, 4096, {2 << 20});
  ExpectLoaded(Load("cuda:0", ByGds()));
  EXPECT_EQ(cuda.call_count("cuMemAlloc_v2"), 1u) << "no ring";
  EXPECT_EQ(cuda.copied_bytes(), size_t{2} << 20) << "the test's own reading back";
  EXPECT_EQ(cufile.call_count("cuFileBufRegister"), 1u) << "the allocation, once";
}

TEST_F(GdsReaderTest, KeepsNoRegistrationAfterTheLastByteOfAnAllocation) {
  AddFile(3 << 20, 1);
  AddTensors(0, 4096, {1 << 20});
  AddTensors(0, 4096 + (1 << 20), {1 << 20});
  ExpectLoaded(Load("cuda:0", ByGds()));
  EXPECT_EQ(cufile.call_count("cuFileBufRegister"), 2u);
  EXPECT_EQ(cufile.call_count("cuFileBufDeregister"), 2u);
}

// Straight into place, through the ring in device memory, and by the host's reads: those in slots that it can read.
TEST_F(GdsReaderTest, BytesWithDigestsAreVerifiedWhereTheyAre) {
  AddModel();
  AddFile(3 << 20, 3);
  AddTensors(2, 4096, {2 << 20});
  for (const PlanItem& item : plan.items) {
    const DigestKind kind = item.length % 2 == 0 ? DigestKind::kXxh3 : DigestKind::kSha256;
    plan.digests.push_back(DigestOf(kind, files[item.file].content.data() + item.offset, item.length));
  }
  const Plan right = plan;
  for (const auto& make : {ByGds(), ByFile()}) {
    plan = right;
    ExpectLoaded(Load("cuda:0", make));
    for (size_t wrong : {size_t{0}, size_t{5}, right.items.size() - 1}) {
      plan = right;
      plan.digests[wrong].bytes[7] ^= 2;
      const Loaded loaded = Load("cuda:0", make);
      EXPECT_TRUE(loaded.drained);
      EXPECT_STREQ(CodeName(loaded.status.code()), "CHECKSUM_MISMATCH") << loaded.status.message();
      EXPECT_EQ(loaded.status.offset(), static_cast<int64_t>(right.items[wrong].offset));
    }
  }
}

// Bytes that have not arrived are seen: those of the file are right.
TEST_F(GdsReaderTest, DigestsAreOfWhatIsInTheGpusMemory) {
  AddFile(3 << 20, 1);
  AddTensors(0, 4096, {2 << 20});
  plan.digests = {DigestOf(DigestKind::kXxh3, files[0].content.data() + 4096, 2 << 20)};
  ExpectLoaded(Load("cuda:0", ByGds()));
  EXPECT_EQ(cuda.copied_bytes(), size_t{4} << 20) << "read back by the loop, and by the test";
}

TEST_F(GdsReaderTest, ContinuesShortReads) {
  AddModel();
  for (unsigned long long most : {4096ull, 10'000ull, 50ull << 10}) {
    cufile.set_short_reads(most);
    ExpectLoaded(Load("cuda:0", ByGds()));
  }
}

TEST_F(GdsReaderTest, InterruptedReadsAreMadeAgain) {
  AddModel();
  cufile.set_fail("cuFileRead", 1, -EINTR);
  cufile.set_fail("cuFileRead", 4, -EINTR);
  ExpectLoaded(Load("cuda:0", ByGds()));
}

TEST_F(GdsReaderTest, AReadThatClaimsMoreThanWasAskedForIsAnError) {
  AddModel();
  cufile.set_overstated(1);
  Loaded loaded = Load("cuda:0", ByGds());
  EXPECT_EQ(loaded.status.code(), Code::GDS_ERROR) << loaded.status.message();
  EXPECT_NE(loaded.status.message().find(" bytes instead of "), std::string::npos);
}

// Whatever context the calling thread had: none, or another device's.
TEST_F(GdsReaderTest, EveryPartMakesItsOwnContextCurrent) {
  AddFile(1 << 20, 3);
  std::shared_ptr<Device> device, other;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
  ASSERT_TRUE(OpenDevice("cuda:1", false, &other).ok());
  auto queue = std::make_shared<CompletionQueue>();
  std::unique_ptr<Reader> reader = ByGds()();
  ASSERT_TRUE(reader->Start(queue, device).ok());
  FileIdentity identity;
  UniqueFd fd(open(files[0].path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(FileIdentity::Of(fd.get(), files[0].path, &identity).ok());
  for (const char* context : {"no", "another"}) {
    SCOPED_TRACE(std::string("on threads with ") + context + " context");
    auto on_a_thread = [&](auto body) {
      std::thread([&] {
        if (std::string(context) == "another") {
          ASSERT_TRUE(static_cast<CudaDevice&>(*other).MakeCurrent().ok());
        }
        body();
      }).join();
    };
    std::shared_ptr<ReaderFile> file;
    std::unique_ptr<StagingMemory> ring;
    std::shared_ptr<DeviceBuffer> buffer;
    std::shared_ptr<void> target;
    on_a_thread([&] { EXPECT_TRUE(reader->Open(files[0].path, identity, &file).ok()); });
    on_a_thread([&] { EXPECT_TRUE(reader->AllocateSlots(*device, 1 << 16, &ring).ok()); });
    ASSERT_NE(file, nullptr);
    ASSERT_TRUE(device->Allocate(1 << 16, &buffer).ok());
    ReadRequest request;
    request.file = file;
    request.length = request.required = 4096;
    const uint64_t place = (buffer->address() + 4095) / 4096 * 4096;
    request.pieces.push_back({place, 4096, buffer->address()});
    request.target = target = reader->RegisterBuffer(buffer);
    ASSERT_TRUE(reader->Submit(std::move(request), 1).ok());
    std::vector<Completion> completions;
    queue->Take(&completions, Clock::now() + std::chrono::seconds(10));
    ASSERT_EQ(completions.size(), 1u);
    EXPECT_TRUE(completions[0].status.ok()) << completions[0].status.message();
    EXPECT_EQ(cufile.live_buffers(), 2u) << "the ring and the allocation";
    on_a_thread([&] { target.reset(); });
    EXPECT_EQ(cufile.live_buffers(), 1u);
    on_a_thread([&] { ring.reset(); });
    EXPECT_EQ(cufile.live_buffers(), 0u);
    on_a_thread([&] { file.reset(); });
    EXPECT_EQ(cufile.live_handles(), 0u);
    buffer.reset();
  }
  // Page-locked memory and a stream for a file that cuFile refuses, and their end with the reader.
  cufile.set_refuse("*.bin", 5008);
  std::shared_ptr<ReaderFile> refused;
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(reader->Open(files[0].path, identity, &refused).ok());
  ASSERT_TRUE(device->Allocate(1 << 16, &buffer).ok());
  ReadRequest request;
  request.file = std::move(refused);
  request.length = request.required = 4096;
  request.pieces.push_back({buffer->address(), 4096, buffer->address()});
  ASSERT_TRUE(reader->Submit(std::move(request), 2).ok());
  std::vector<Completion> completions;
  queue->Take(&completions, Clock::now() + std::chrono::seconds(10));
  EXPECT_EQ(cuda.live_streams(), 1u);
  std::thread([&] { reader.reset(); }).join();
  EXPECT_EQ(cuda.live_streams(), 0u);
}

TEST_F(GdsReaderTest, AFileThatEndsEarlyIsAnError) {
  AddFile(300'000, 2);
  AddTensors(0, 264, {100'000, 100'000, 99'000});
  cufile.set_end(250'000);  // cuFile says so, though the file is as it was
  Loaded loaded = Load("cuda:0", ByGds(true, 64 << 10, 1));
  EXPECT_EQ(loaded.status.code(), Code::SHORT_READ) << loaded.status.message();
  EXPECT_EQ(loaded.status.path(), files[0].path);
  EXPECT_EQ(loaded.status.offset(), 250'000);
}

TEST_F(GdsReaderTest, AFileThatCuFileRefusesIsReadByTheHost) {
  AddModel();
  cufile.set_refuse("*/1.bin", 5008);
  Loaded loaded = Load("cuda:1", ByGds());
  ExpectLoaded(loaded);
  ASSERT_EQ(loaded.fallbacks.size(), 1u);
  EXPECT_EQ(loaded.fallbacks[0].path, files[1].path);
  EXPECT_EQ(loaded.fallbacks[0].from, "gds");
  EXPECT_EQ(loaded.fallbacks[0].to, "nogds");
  EXPECT_NE(loaded.fallbacks[0].reason.find("CU_FILE_IO_NOT_SUPPORTED"), std::string::npos);
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
  EXPECT_LE(cuda.peak_pinned_bytes(), size_t{8} << 20) << "a buffer for each thread";
}

TEST_F(GdsReaderTest, AReadLargerThanTheHostsBufferGoesThroughItInParts) {
  AddFile(12 << 20, 4);
  AddTensors(0, 4096, {10 << 20});
  cufile.set_refuse("*.bin", 5008);
  ExpectLoaded(Load("cuda:0", ByGds(true, 10 << 20, 1)));
  EXPECT_EQ(cuda.peak_pinned_bytes(), size_t{4} << 20);
}

// The buffer is used again, and the device memory freed, only when no copy is on its way.
TEST_F(GdsReaderTest, AFailedWaitOfARefusedFileEndsWhenNoCopyIsOnItsWay) {
  AddFile(1 << 20, 3);
  std::shared_ptr<Device> device;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
  auto queue = std::make_shared<CompletionQueue>();
  std::unique_ptr<Reader> reader = ByGds()();
  ASSERT_TRUE(reader->Start(queue, device).ok());
  FileIdentity identity;
  UniqueFd fd(open(files[0].path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(FileIdentity::Of(fd.get(), files[0].path, &identity).ok());
  cufile.set_refuse("*.bin", 5008);
  ReadRequest request;
  ASSERT_TRUE(reader->Open(files[0].path, identity, &request.file).ok());
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_TRUE(device->Allocate(1 << 16, &buffer).ok());
  request.length = request.required = 4096;
  request.pieces.push_back({buffer->address(), 4096, buffer->address()});
  cuda.set_delay_us(20'000);
  cuda.set_fail("cuStreamSynchronize", 1, cuda::kUnknown);
  ASSERT_TRUE(reader->Submit(std::move(request), 1).ok());
  std::vector<Completion> completions;
  queue->Take(&completions, Clock::now() + std::chrono::seconds(10));
  EXPECT_EQ(cuda.pending(), 0u);
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].status.code(), Code::CUDA_ERROR);
}

TEST_F(GdsReaderTest, ARefusalAtTheFirstReadIsOneToo) {
  AddFile(300'000, 7);
  AddTensors(0, 8, {100'000, 150'000});
  cufile.set_fail("cuFileRead", 1, 5030);
  Loaded loaded = Load("cuda:0", ByGds(true, 64 << 10, 1));
  ExpectLoaded(loaded);
  ASSERT_EQ(loaded.fallbacks.size(), 1u);
  EXPECT_EQ(cufile.bytes_read(), 0u);
}

TEST_F(GdsReaderTest, AFileThatCompatibilityModeRefusesHasOneFallback) {
  AddFile(300'000, 7);
  AddTensors(0, 8, {100'000, 150'000});
  for (const char* where : {"cuFileRead", "cuFileHandleRegister"}) {
    cufile.reset();
    cufile.set_compat(1, 1);
    cufile.set_fail(where, 1, 5030);
    Loaded loaded = Load("cuda:0", ByGds(true, 64 << 10, 1));
    ExpectLoaded(loaded);
    ASSERT_EQ(loaded.fallbacks.size(), 1u) << where;
    EXPECT_EQ(loaded.fallbacks[0].to, "nogds");
  }
}

TEST_F(GdsReaderTest, ARefusalAfterBytesWereReadIsAnError) {
  AddFile(300'000, 7);
  AddTensors(0, 8, {100'000, 150'000});
  cufile.set_fail("cuFileRead", 2, 5030);
  Loaded loaded = Load("cuda:0", ByGds(true, 64 << 10, 1));
  EXPECT_EQ(loaded.status.code(), Code::GDS_ERROR) << loaded.status.message();
  EXPECT_TRUE(loaded.fallbacks.empty());
}

TEST_F(GdsReaderTest, AnIoErrorIsNoRefusal) {
  AddModel();
  cufile.set_fail("cuFileRead", 1, -5);
  Loaded loaded = Load("cuda:0", ByGds());
  EXPECT_EQ(loaded.status.code(), Code::IO_ERROR) << loaded.status.message();
  EXPECT_NE(loaded.status.message().find("EIO"), std::string::npos);
  EXPECT_NE(loaded.status.path(), "");
  EXPECT_TRUE(loaded.fallbacks.empty());
}

TEST_F(GdsReaderTest, MemoryThatCannotBeRegisteredIsReadAllTheSame) {
  AddModel();
  cufile.set_fail("cuFileBufRegister", 0, 5036);
  Loaded loaded = Load("cuda:0", ByGds());
  ExpectLoaded(loaded);
  EXPECT_TRUE(loaded.fallbacks.empty());
  EXPECT_GT(cufile.unregistered_reads(), 0u);
  EXPECT_EQ(cufile.call_count("cuFileBufDeregister"), 0u);
}

TEST_F(GdsReaderTest, CompatibilityModeIsTakenOnlyWhenGdsWasAskedFor) {
  AddModel();
  cufile.set_compat(1, 1);
  Loaded chosen = Load("cuda:0", ByGds(true));
  ExpectLoaded(chosen);
  ASSERT_EQ(chosen.fallbacks.size(), 2u);
  EXPECT_EQ(chosen.fallbacks[0].to, "gds in compatibility mode");
  EXPECT_GT(cufile.bytes_read(), 0u);
  cufile.reset();
  cufile.set_compat(1, 1);
  Loaded by_auto = Load("cuda:0", ByGds(false));
  ExpectLoaded(by_auto);
  ASSERT_EQ(by_auto.fallbacks.size(), 2u);
  EXPECT_EQ(by_auto.fallbacks[0].to, "nogds");
  EXPECT_EQ(cufile.bytes_read(), 0u);
}

TEST_F(GdsReaderTest, ADriverThatDoesNotOpenIsAnErrorOnlyWhenGdsWasAskedFor) {
  AddModel();
  cufile.set_compat(1, 0);
  Loaded chosen = Load("cuda:0", ByGds(true));
  EXPECT_EQ(chosen.status.code(), Code::COPIER_UNAVAILABLE) << chosen.status.message();
  Loaded by_auto = Load("cuda:0", ByGds(false));
  ExpectLoaded(by_auto);
  EXPECT_EQ(by_auto.fallbacks.size(), 2u);
  cufile.set_compat(0, 0);
  Loaded later = Load("cuda:0", ByGds(true));
  ExpectLoaded(later);
  EXPECT_TRUE(later.fallbacks.empty()) << "a failure is not remembered";
}

TEST_F(GdsReaderTest, ADriverThatAnotherLibraryOpenedIsUsedAndLeftOpen) {
  AddModel();
  const cufile::CufileApi* api = nullptr;
  ASSERT_TRUE(cufile::LoadCufile(&api).ok());
  ASSERT_EQ(api->DriverOpen().err, cufile::kSuccess);
  ExpectLoaded(Load("cuda:0", ByGds()));
  cufile::CloseDriver();
  EXPECT_EQ(cufile.driver_open(), 1);
  EXPECT_EQ(api->DriverClose().err, cufile::kSuccess);
}

// Memory of the device that is registered once.
void Registered(const cufile::CufileApi** api, std::shared_ptr<DeviceBuffer>* buffer) {
  ASSERT_TRUE(cufile::LoadCufile(api).ok());
  std::shared_ptr<Device> device;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
  ASSERT_TRUE(device->Allocate(1 << 16, buffer).ok());
  cufile::Mode mode = {};
  ASSERT_TRUE(cufile::OpenDriver(**api, &mode).ok());
  ASSERT_TRUE(cufile::RegisterBuffer(**api, (*buffer)->address(), (*buffer)->size()).ok());
}

// Two loads into one allocation: cuFile takes a range once, and must keep it until both are done.
TEST_F(GdsReaderTest, MemoryIsRegisteredOnceForAllWhoUseIt) {
  AddFile(4096, 1);
  const cufile::CufileApi* api = nullptr;
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_NO_FATAL_FAILURE(Registered(&api, &buffer));
  ASSERT_TRUE(cufile::RegisterBuffer(*api, buffer->address(), buffer->size()).ok());
  EXPECT_EQ(cufile.call_count("cuFileBufRegister"), 1u);
  cufile::RemoveUser(buffer->address());
  EXPECT_TRUE(cufile::Deregister(*api, buffer->address()));
  EXPECT_EQ(cufile.live_buffers(), 1u);
  cufile::RemoveUser(buffer->address());
  EXPECT_TRUE(cufile::Deregister(*api, buffer->address()));
  EXPECT_EQ(cufile.live_buffers(), 0u);
}

// Of two allocations the one that reads go straight into, and the ring, which the other's reads pass through.
TEST_F(GdsReaderTest, MemoryThatCannotBeDeregisteredIsKeptUntilItCan) {
  AddFile(3 << 20, 1);
  AddTensors(0, 4096, {1 << 20});
  AddTensors(0, 264, {100'000});
  cufile.set_fail("cuFileBufDeregister", 0, cufile::kInvalidValue);
  ExpectLoaded(Load("cuda:0", ByGds()));
  WaitForFrees();
  EXPECT_EQ(cufile.live_buffers(), 2u);
  EXPECT_EQ(cuda.live_allocations(), 2u) << "freed while cuFile may still write to it";
  EXPECT_EQ(Metrics::Get().device_bytes, 1 << 20);
  EXPECT_GT(Metrics::Get().staging_bytes, 0);

  ExpectLoaded(Load("cuda:0", ByGds()));
  WaitForFrees();
  EXPECT_EQ(cuda.live_allocations(), 4u);

  cufile.reset();
  plan.allocations.pop_back();
  plan.items.pop_back();
  ExpectLoaded(Load("cuda:0", ByGds()));
  ExpectNothingHeld();
}

TEST_F(GdsReaderTest, MemoryThatIsKeptRegisteredIsUsedAgain) {
  const cufile::CufileApi* api = nullptr;
  std::shared_ptr<DeviceBuffer> buffer;
  ASSERT_NO_FATAL_FAILURE(Registered(&api, &buffer));
  cufile.set_fail("cuFileBufDeregister", 0, cufile::kInvalidValue);
  cufile::RemoveUser(buffer->address());
  EXPECT_FALSE(cufile::Deregister(*api, buffer->address()));
  ASSERT_TRUE(cufile::RegisterBuffer(*api, buffer->address(), buffer->size()).ok());
  EXPECT_EQ(cufile.call_count("cuFileBufRegister"), 1u);
  cufile.reset();
  EXPECT_TRUE(cufile::Deregister(*api, buffer->address())) << "it has a user again, who will do it";
  EXPECT_EQ(cufile.live_buffers(), 1u);
  cufile::RemoveUser(buffer->address());
  EXPECT_TRUE(cufile::Deregister(*api, buffer->address()));
  EXPECT_EQ(cufile.live_buffers(), 0u);
}

TEST_F(GdsReaderTest, AFileThatChangesWhileItIsReadIsAnError) {
  AddFile(1 << 20, 3);
  AddTensors(0, 4096, {500'000});
  cufile.hold(1);
  std::thread writer([this] {
    EXPECT_TRUE(WaitFor([this] { return cufile.in_flight() > 0; }));
    EXPECT_EQ(truncate(files[0].path.c_str(), 900'000), 0);
    cufile.hold(0);
  });
  Loaded loaded = Load("cuda:0", ByGds());
  writer.join();
  EXPECT_EQ(loaded.status.code(), Code::FILE_CHANGED) << loaded.status.message();
}

TEST_F(GdsReaderTest, FilesOpenedWithoutDirectIoAreRefusedByDriversThatWantIt) {
  AddModel();
  cufile.set_require_direct(1);
  ExpectLoaded(Load("cuda:0", ByGds()));  // O_DIRECT where the file system takes it, else read by the host
}

TEST_F(GdsReaderTest, TheHostHasNoGpuMemoryToReadInto) {
  AddModel();
  Loaded loaded = Load("cpu", ByGds());
  EXPECT_EQ(loaded.status.code(), Code::COPIER_UNAVAILABLE);
  EXPECT_EQ(cufile.call_count("cuFileDriverOpen"), 0u);
}

TEST_F(GdsReaderTest, TheRingStaysWithinTheStagingLimit) {
  AddModel();
  EngineOptions options;
  options.staging_limit = 160 << 10;  // two slots
  uint64_t before = cuda.peak_bytes();
  Loaded loaded = Load("cuda:0", ByGds(), options);
  ExpectLoaded(loaded);
  EXPECT_EQ(before, 0u);
  uint64_t tensors = 0;
  for (const PlanAllocation& allocation : plan.allocations) tensors += allocation.size;
  EXPECT_LE(cuda.peak_bytes(), tensors + options.staging_limit + 4096);
  EXPECT_LE(loaded.staging_bytes, options.staging_limit);
}

TEST_F(GdsReaderTest, SmallTensorsThatFollowEachOtherAreReadTogether) {
  AddFile((1 << 20) + 4096, 9);
  AddTensors(0, 4096, std::vector<uint64_t>(1024, 1024));
  ExpectLoaded(Load("cuda:0", ByGds()));
  EXPECT_LE(cufile.call_count("cuFileRead"), 17u) << "1 MiB by 64 KiB";
  EXPECT_EQ(cuda.call_count("cuMemcpyDtoDAsync_v2"), 0u) << "a run goes straight, tensor boundaries or not";
}

}  // namespace
}  // namespace fst
