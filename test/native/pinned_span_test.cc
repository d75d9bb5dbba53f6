// Loads whose bytes a GPU copies from the page cache by itself, on the emulated driver: it refuses registrations that a
// driver refuses, copies late, gives wrong bytes for pages that a file has lost, and aborts where memory is unlocked or
// unmapped under a copy.
#include "reader/pinned_span.h"

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "cuda_load_fixture.h"
#include "device/kept_memory.h"
#include "support/held_device.h"

namespace fst {
namespace {

using test::ByFile;
using test::Bytes;
using test::Loaded;

class PinnedSpanTest : public test::CudaLoadTest {
 protected:
  static EngineOptions Pins() {
    EngineOptions options;
    options.pins_files = true;
    return options;
  }

  // One tensor a chunk of 64 KiB, all in spans, and edges inside of pages.
  void AddChunks(size_t chunks) {
    AddFile((chunks << 16) + 5000, 3);
    AddTensors(0, 777, std::vector<uint64_t>(chunks, 64 << 10));
  }

  void Start(EngineOptions options = Pins()) {
    ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
    plan.files.clear();
    for (const test::TestFile& file : files) {
      PlanFile planned{file.path, {}};
      UniqueFd fd(open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
      ASSERT_TRUE(FileIdentity::Of(fd.get(), file.path, &planned.expected).ok());
      plan.files.push_back(planned);
    }
    ASSERT_TRUE(Engine::Create(device, ByFile()(), options, &engine).ok());
    ASSERT_TRUE(engine->Start(plan, {}, &transfer).ok());
  }

  void CloseAndWait() {
    auto closed = std::make_shared<std::atomic<bool>>(false);
    engine->Close([closed] { *closed = true; });
    EXPECT_TRUE(WaitFor([&] { return closed->load(); }));
    transfer.reset();
    engine.reset();
    device.reset();
  }

  std::shared_ptr<Device> device;
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Transfer> transfer;
};

TEST_F(PinnedSpanTest, EveryByteComesFromThePageCache) {
  AddModel();
  Loaded loaded = Load("cuda:0", ByFile(), Pins());
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
  EXPECT_EQ(Wrong(loaded), "");
  EXPECT_TRUE(loaded.fallbacks.empty());
  EXPECT_GT(cuda.call_count("cuMemHostRegister_v2"), 10u) << "spans, and slots for short chunks";
  EXPECT_EQ(cuda.call_count("cuMemHostRegister_v2"), cuda.call_count("cuMemHostUnregister"));
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
}

TEST_F(PinnedSpanTest, NoSlotIsMadeWhereNoneIsNeeded) {
  AddFile(1 << 20, 3);
  AddTensors(0, 0, {1 << 20});
  Start();
  ASSERT_TRUE(WaitFor([&] { return transfer->drained(); }));
  EXPECT_TRUE(transfer->status().ok()) << transfer->status().message();
  EXPECT_EQ(cuda.call_count("cuMemHostRegister_v2"), 16u) << "a span for each 64 KiB";
  EXPECT_EQ(cuda.live_pinned(), 0u) << "and each is given back before its tensor is ready";
  EXPECT_EQ(Metrics::Get().staging_bytes, 0);
  CloseAndWait();
}

TEST_F(PinnedSpanTest, SpansCountAsStagingAndStayWithinItsLimit) {
  AddChunks(40);
  for (uint64_t limit : {uint64_t{1}, uint64_t{64} << 10, uint64_t{200} << 10, uint64_t{600} << 10}) {
    cuda.reset();
    cuda.hold(1);
    EngineOptions options = Pins();
    options.staging_limit = limit;
    Start(options);
    EXPECT_LE(engine->StagingBytes(), std::max<uint64_t>(limit, 64 << 10));
    ASSERT_TRUE(WaitFor([&] { return cuda.pending() > 0; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_GE(static_cast<uint64_t>(Metrics::Get().staging_bytes), cuda.live_pinned_bytes());
    cuda.hold(0);
    ASSERT_TRUE(WaitFor([&] { return transfer->drained(); }));
    EXPECT_TRUE(transfer->status().ok()) << transfer->status().message();
    EXPECT_LE(cuda.peak_pinned_bytes(), std::max<uint64_t>(limit, 64 << 10));
    EXPECT_EQ(engine->TakeFallbacks().size(), limit < 128 << 10 ? 1u : 0u) << "one slot there must be";
    CloseAndWait();
  }
}

TEST_F(PinnedSpanTest, ADeviceThatDoesNotPinReadOnlyMemoryIsReadTo) {
  AddModel();
  for (int without : {0, 1}) {  // unsupported, and unknown to the driver
    cuda.reset();
    CloseDevices();
    if (without == 0)
      cuda.set_attribute(0, cuda::kAttributeReadOnlyHostRegisterSupported, 0);
    else
      cuda.set_fail("cuDeviceGetAttribute", 0, cuda::kInvalidValue);
    std::shared_ptr<Device> made;
    if (without == 1) {
      cuda.reset();
      ASSERT_TRUE(OpenDevice("cuda:0", false, &made).ok());
      cuda.set_fail("cuDeviceGetAttribute", 0, cuda::kInvalidValue);
    }
    Loaded loaded = Load("cuda:0", ByFile(), Pins());
    ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
    EXPECT_EQ(Wrong(loaded), "");
    EXPECT_EQ(cuda.call_count("cuMemHostRegister_v2"), 2u) << "the slots";
    ASSERT_EQ(loaded.fallbacks.size(), 1u);
    EXPECT_EQ(loaded.fallbacks[0].path, "");
    EXPECT_EQ(loaded.fallbacks[0].to, "read into staging memory");
    EXPECT_NE(loaded.fallbacks[0].reason.find("READ_ONLY_HOST_REGISTER_SUPPORTED"), std::string::npos);
  }
}

TEST_F(PinnedSpanTest, WhatCannotBeLockedIsReadAndSoIsAllAfterIt) {
  AddChunks(30);
  for (int code : {cuda::kInvalidValue, cuda::kOutOfMemory, cuda::kHostMemoryAlreadyRegistered, cuda::kUnknown}) {
    for (unsigned long long nth : {1, 2, 9}) {
      SCOPED_TRACE(std::to_string(code) + ", call " + std::to_string(nth));
      cuda.reset();
      ASSERT_EQ(cuda.set_fail("cuMemHostRegister_v2", nth, code), 0);
      Loaded loaded = Load("cuda:0", ByFile(), Pins());
      ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
      EXPECT_EQ(Wrong(loaded), "");
      ASSERT_EQ(loaded.fallbacks.size(), 1u);
      EXPECT_NE(loaded.fallbacks[0].reason.find("cuMemHostRegister failed"), std::string::npos);
      EXPECT_LT(cuda.call_count("cuMemHostRegister_v2"), 31u) << "it goes on locking";
      ExpectNothingHeld();
    }
  }
}

// Of memory that may be locked there is too little for all spans, and enough for slots.
TEST_F(PinnedSpanTest, ALimitOfLockedMemoryIsKeptToAndSaid) {
  AddChunks(40);
  cuda.set_delay_us(20'000);
  cuda.set_pinned_limit(600 << 10);
  EngineOptions options = Pins();
  Loaded loaded = Load("cuda:0", ByFile(false, 64 << 10, 4), options);
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
  EXPECT_EQ(Wrong(loaded), "");
  ASSERT_EQ(loaded.fallbacks.size(), 1u);
  EXPECT_NE(loaded.fallbacks[0].reason.find("OUT_OF_MEMORY"), std::string::npos);
}

TEST_F(PinnedSpanTest, PagesThatTheDriverDoesNotUnlockAreKeptAndCountUntilItDoes) {
  AddChunks(4);
  ASSERT_EQ(cuda.set_fail("cuMemHostUnregister", 0, cuda::kUnknown), 0);
  Loaded loaded = Load("cuda:0", ByFile(), Pins());
  EXPECT_TRUE(loaded.status.ok()) << loaded.status.message();
  EXPECT_EQ(Wrong(loaded), "");
  EXPECT_GT(cuda.live_pinned(), 0u);
  EXPECT_EQ(static_cast<uint64_t>(Metrics::Get().staging_bytes), cuda.live_pinned_bytes());
  cuda.reset();
  RetryReleases();
}

TEST_F(PinnedSpanTest, ACancelledLoadUnlocksWhenItsCopiesHaveEnded) {
  AddChunks(40);
  cuda.hold(1);
  Start();
  ASSERT_TRUE(WaitFor([&] { return cuda.pending() >= 4; }));
  engine->Cancel(transfer, Status(Code::CLOSED, "enough"));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(transfer->drained());
  EXPECT_GE(cuda.live_pinned(), cuda.pending()) << "a copy may read them";
  cuda.hold(0);
  EXPECT_TRUE(WaitFor([&] { return transfer->drained(); }));
  EXPECT_EQ(cuda.live_pinned(), 0u);
  CloseAndWait();
}

TEST_F(PinnedSpanTest, CopiesThatDoNotEndAreStalledAndUnlockedLater) {
  AddChunks(4);
  cuda.hold(1);
  EngineOptions options = Pins();
  options.stall_timeout = std::chrono::milliseconds(100);
  Start(options);
  ASSERT_TRUE(WaitFor([&] { return !transfer->status().ok(); }));
  EXPECT_EQ(transfer->status().code(), Code::STALLED);
  EXPECT_GT(cuda.live_pinned(), 0u);
  cuda.hold(0);
  EXPECT_TRUE(WaitFor([&] { return transfer->drained(); }));
  CloseAndWait();
}

TEST_F(PinnedSpanTest, AFileThatChangesUnderItsCopiesIsNeverHandedOut) {
  AddChunks(8);
  const std::string path = files[0].path;
  const Bytes content = files[0].content;
  const std::vector<std::function<void()>> changes = {
      [&] { EXPECT_EQ(truncate(path.c_str(), 0), 0); },
      [&] { EXPECT_EQ(truncate(path.c_str(), 100'000), 0); },
      [&] {
        UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
        EXPECT_EQ(pwrite(fd.get(), "changed", 7, 70'000), 7);
      },
  };
  for (const std::function<void()>& change : changes) {
    cuda.hold(1);
    Start();
    ASSERT_TRUE(WaitFor([&] { return cuda.pending() > 0; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // times of files have steps of some ms
    change();
    cuda.hold(0);
    ASSERT_TRUE(WaitFor([&] { return transfer->drained(); }));
    EXPECT_EQ(transfer->status().code(), Code::FILE_CHANGED) << transfer->status().message();
    EXPECT_EQ(transfer->ready_count(), 0u);
    CloseAndWait();
    FILE* again = fopen(path.c_str(), "we");
    ASSERT_NE(again, nullptr);
    ASSERT_EQ(fwrite(content.data(), 1, content.size(), again), content.size());
    ASSERT_EQ(fclose(again), 0);
  }
}

TEST_F(PinnedSpanTest, PagesThatAreNotThereAreErrorsAndNoSignal) {
  AddFile(100'000, 3);
  std::shared_ptr<Device> gpu;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &gpu).ok());
  const std::string& path = files[0].path;
  auto opened = [&] {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    FileIdentity identity;
    EXPECT_TRUE(FileIdentity::Of(fd.get(), path, &identity).ok());
    return std::make_shared<const FdFile>(path, identity, std::move(fd));
  };
  std::unique_ptr<PinnedSpan> span;
  std::string why_not;
  Status failed = PinnedSpan::Pin(opened(), 200'000, 100, gpu, &span, &why_not);
  EXPECT_EQ(failed.code(), Code::IO_ERROR) << failed.message();
  EXPECT_EQ(failed.offset(), 200'000);
  auto file = opened();
  ASSERT_EQ(truncate(path.c_str(), 50'000), 0);
  failed = PinnedSpan::Pin(file, 0, 100'000, gpu, &span, &why_not);
  EXPECT_EQ(failed.code(), Code::FILE_CHANGED) << failed.message();
  EXPECT_EQ(span, nullptr);
  EXPECT_EQ(cuda.live_pinned(), 0u);
}

TEST_F(PinnedSpanTest, WhatCannotBeMappedIsRead) {
  std::shared_ptr<Device> gpu;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &gpu).ok());
  const std::string path = "/proc/self/status";  // has no mmap
  FileIdentity identity;
  auto file = std::make_shared<const FdFile>(path, identity, UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC)));
  std::unique_ptr<PinnedSpan> span;
  std::string why_not;
  EXPECT_TRUE(PinnedSpan::Pin(file, 0, 100, gpu, &span, &why_not).ok());
  EXPECT_EQ(span, nullptr);
  EXPECT_NE(why_not.find("/proc/self/status cannot be mapped"), std::string::npos) << why_not;
}

// What is compared with a digest is read by the host, which must not touch a mapping.
TEST_F(PinnedSpanTest, WhatTheHostHasToTouchPassesThroughSlots) {
  AddFile(1 << 20, 3);
  AddTensors(0, 0, {256 << 10, 256 << 10});
  plan.digests.resize(2);
  auto digester = Digester::New(DigestKind::kXxh3);
  digester->Update(files[0].content.data(), 256 << 10);
  plan.digests[0] = digester->Finish();
  Loaded loaded = Load("cuda:0", ByFile(), Pins());
  ASSERT_TRUE(loaded.status.ok()) << loaded.status.message();
  EXPECT_EQ(Wrong(loaded), "");
  EXPECT_GE(cuda.call_count("cuMemHostRegister_v2"), 1u + 4u) << "slots and spans";
  plan.digests[0].bytes[0] ^= 1;
  EXPECT_EQ(Load("cuda:0", ByFile(), Pins()).status.code(), Code::CHECKSUM_MISMATCH);
}

TEST_F(PinnedSpanTest, SpansAreLockedForAllDevicesOfAnEngine) {
  AddChunks(20);
  std::vector<std::shared_ptr<Device>> devices(2);
  ASSERT_TRUE(OpenDevice("cuda:0", false, &devices[0]).ok());
  ASSERT_TRUE(OpenDevice("cuda:1", false, &devices[1]).ok());
  PlanFile planned{files[0].path, {}};
  UniqueFd fd(open(planned.path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(FileIdentity::Of(fd.get(), planned.path, &planned.expected).ok());
  plan.files = {planned};
  ASSERT_TRUE(Engine::Create(devices, ByFile()(), Pins(), &engine).ok());
  std::vector<std::shared_ptr<Transfer>> transfers(2);
  for (uint32_t i = 0; i < 2; ++i) {
    TransferOptions options;
    options.device = i;
    ASSERT_TRUE(engine->Start(plan, std::move(options), &transfers[i]).ok());
  }
  for (uint32_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(WaitFor([&] { return transfers[i]->drained(); }));
    ASSERT_TRUE(transfers[i]->status().ok()) << transfers[i]->status().message();
    auto buffer = transfers[i]->TakeAllocation(0);
    Loaded loaded;
    for (const PlanItem& item : plan.items) {
      loaded.tensors.emplace_back(item.length);
      ASSERT_TRUE(devices[i]->Read(*buffer, item.destination, item.length, loaded.tensors.back().data()).ok());
    }
    EXPECT_EQ(Wrong(loaded), "") << i;
  }
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
  transfers.clear();
  CloseAndWait();
}

// A device that locks pages late, or none, as where their store is gone; copies are released by the test.
class LockingDevice : public HeldDevice {
 public:
  enum Mode { kLocks, kHangs, kRefuses };
  using HeldDevice::HeldDevice;

  Status PinReadOnly(void* /*address*/, size_t /*bytes*/) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++calls_;
    if (mode_ == kRefuses) return Status(Code::OUT_OF_HOST_MEMORY, "told to lock no pages");
    wake_.wait(lock, [this, hangs = mode_ == kHangs] { return !hangs || mode_ == kLocks; });
    return Status::Ok();
  }
  void Set(Mode mode) {
    std::lock_guard<std::mutex> lock(mutex_);
    mode_ = mode;
    wake_.notify_all();
  }
  int calls() {
    std::lock_guard<std::mutex> lock(mutex_);
    return calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  Mode mode_ = kLocks;
  int calls_ = 0;
};

class HungPinsTest : public PinnedSpanTest {
 protected:
  // `plan` to `locking`, by the same engine as before.
  std::shared_ptr<Transfer> Begin(const EngineOptions& options) {
    std::shared_ptr<Transfer> begun;
    PlanFile planned{files[0].path, {}};
    UniqueFd fd(open(planned.path.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_TRUE(FileIdentity::Of(fd.get(), planned.path, &planned.expected).ok());
    plan.files = {planned};
    if (engine == nullptr) {
      device = locking;
      EXPECT_TRUE(Engine::Create(device, ByFile()(), options, &engine).ok());
    }
    EXPECT_TRUE(engine->Start(plan, {}, &begun).ok());
    return begun;
  }

  std::shared_ptr<LockingDevice> locking = std::make_shared<LockingDevice>("cuda:0", FakeDevice::Options{});
};

TEST_F(HungPinsTest, ALoadThatIsReadInPlaceOfPinnedDoesNotWaitForThemForEver) {
  AddChunks(1);
  locking->Release();  // copies take no time
  locking->Set(LockingDevice::kHangs);
  EngineOptions options = Pins();
  options.stall_timeout = std::chrono::milliseconds(200);
  auto hung = Begin(options);
  ASSERT_TRUE(WaitFor([&] { return locking->calls() == 1; }));
  locking->Set(LockingDevice::kRefuses);
  auto refused = Begin(options);
  ASSERT_TRUE(WaitFor([&] { return refused->drained(); }));
  EXPECT_TRUE(refused->status().ok()) << refused->status().message();
  EXPECT_EQ(hung->status().code(), Code::STALLED);
  EXPECT_FALSE(hung->drained());
  locking->Set(LockingDevice::kLocks);
  EXPECT_TRUE(WaitFor([&] { return hung->drained(); }));
  CloseAndWait();
}

TEST_F(HungPinsTest, ALoadThatWaitsForASlotInPlaceOfPinsIsStalledWithTheLoadThatHasIt) {
  AddFile(1 << 20, 3);
  AddTensors(0, 0, {1000});  // so short a one takes a slot
  EngineOptions options = Pins();
  options.staging_limit = 128 << 10;  // a slot and a span
  options.stall_timeout = std::chrono::milliseconds(200);
  auto hung = Begin(options);
  ASSERT_TRUE(WaitFor([&] { return locking->Held() == 1; }));
  plan.items.clear();
  plan.allocations.clear();
  AddTensors(0, 4096, {64 << 10});
  locking->Set(LockingDevice::kRefuses);
  auto refused = Begin(options);
  EXPECT_TRUE(WaitFor([&] { return refused->drained(); }));
  EXPECT_EQ(refused->status().code(), Code::STALLED);
  EXPECT_EQ(hung->status().code(), Code::STALLED);
  locking->Release();
  EXPECT_TRUE(WaitFor([&] { return hung->drained(); }));
  CloseAndWait();
}

}  // namespace
}  // namespace fst
