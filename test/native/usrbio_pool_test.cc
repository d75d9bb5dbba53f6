// Rings and buffers that are kept for the next loader: who gets them, and when they go.
#include "reader/usrbio/usrbio_pool.h"

#include <sys/syscall.h>

#include <fstream>
#include <mutex>
#include <thread>

#include "base/warnings.h"
#include "device/kept_memory.h"
#include "usrbio_reader_fixture.h"

namespace {
// Links below this folder are not removed, as by a daemon that was mounted read-only. Threads of the pool outlive the
// test that set it.
struct ReadOnlyFolder {
  void Set(const std::string& folder) {
    std::lock_guard lock(mutex);
    path = folder;
  }
  bool Holds(const char* link) {
    std::lock_guard lock(mutex);
    return !path.empty() && strncmp(link, path.c_str(), path.size()) == 0;
  }

 private:
  std::mutex mutex;
  std::string path;
};
// Never destroyed: exit() removes links after the statics are gone.
ReadOnlyFolder& ReadOnly() {
  static auto* folder = new ReadOnlyFolder;
  return *folder;
}
}  // namespace

// In place of libc's, for the core and the emulator.
extern "C" __attribute__((visibility("default"))) int unlink(const char* path) noexcept {
  if (ReadOnly().Holds(path)) {
    struct stat st;
    errno = lstat(path, &st) == 0 ? EROFS : ENOENT;
    return -1;
  }
  return static_cast<int>(syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}

namespace fst {
namespace {

constexpr int64_t kUsual = 48 * int64_t{kMi};

class UsrbioPool : public UsrbioReaderTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    UsrbioReaderTest::SetUp();
    device = GetParam();
    if (std::string(device) == "cuda:0") {
      test::LoadEmulatedCuda();
      cuda.reset();
    }
    sources = {Write("a", {5 * kMi, 3}), Write("b", {kMi, 70001})};
    made = Stat("iorcreate4");
    TakeWarnings();
  }
  void TearDown() override {
    ReadOnly().Set({});
    UsrbioReaderTest::TearDown();
  }

  // A loader of its own; what it made and did not give back is idle after it.
  void LoadOnce(const UsrbioReaderOptions& options = {}) {
    Loader loader(this, options, device);
    Status loaded = loader.Load(PlanOf(sources));
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    loader.ExpectBytes(sources);
    EXPECT_EQ(Metrics::Get().rings.load(), 1);
  }
  static int64_t Idle() { return Metrics::Get().idle_rings.load(); }
  static int64_t IdleBytes() { return Metrics::Get().idle_bytes.load(); }
  static void WaitUntil(const std::function<bool()>& done) {
    for (int i = 0; i < 4000 && !done(); ++i) usleep(5000);
    EXPECT_TRUE(done());
  }
  uint64_t Made() { return Stat("iorcreate4") - made; }
  std::set<std::string> Links() const {
    std::set<std::string> links;
    for (const auto& entry : std::filesystem::directory_iterator(mount + "/3fs-virt/iovs"))
      links.insert(entry.path().filename());
    return links;
  }
  static UsrbioReaderOptions Buffer(size_t bytes) {
    UsrbioReaderOptions options;
    options.buffer_bytes = bytes;
    return options;
  }

  const char* device = nullptr;
  const test::CudaControl& cuda = test::EmulatedCudaControl();
  std::vector<Source> sources;
  uint64_t made = 0;  // rings, before the test
};

TEST_P(UsrbioPool, NextLoaderHasRingAndBuffer) {
  LoadOnce();
  const std::set<std::string> links = Links();
  EXPECT_EQ(links.size(), 2u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Idle(), 1);
    EXPECT_EQ(IdleBytes(), kUsual);
    EXPECT_EQ(Metrics::Get().rings.load(), 0);
    EXPECT_EQ(Metrics::Get().staging_bytes.load(), 0);
    Loader loader(this, {}, device);
    Status loaded = loader.Load(PlanOf(sources));
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    loader.ExpectBytes(sources);
    EXPECT_EQ(Idle(), 0);
    EXPECT_EQ(IdleBytes(), 0);
    EXPECT_EQ(Metrics::Get().rings.load(), 1);
    EXPECT_EQ(Metrics::Get().staging_bytes.load(), kUsual);
    EXPECT_EQ(Links(), links);
  }
  EXPECT_EQ(Made(), 1u);
}

TEST_P(UsrbioPool, LoaderOfAnotherKindHasItsOwn) {
  LoadOnce();
  LoadOnce(Buffer(2 * kMi));
  UsrbioReaderOptions options;
  options.entries = 512;
  LoadOnce(options);
  options.io_depth = -2;
  LoadOnce(options);
  EXPECT_EQ(Made(), 4u);
  LoadOnce(options);
  EXPECT_EQ(Made(), 4u);
}

TEST_P(UsrbioPool, WhatOneLoaderHasNoOtherHas) {
  LoadOnce();
  {
    Loader one(this, {}, device), other(this, {}, device);
    std::thread beside([&] {
      Status loaded = one.Load(PlanOf(sources));
      EXPECT_TRUE(loaded.ok()) << loaded.message();
    });
    Status loaded = other.Load(PlanOf(sources));
    EXPECT_TRUE(loaded.ok()) << loaded.message();
    beside.join();
    one.ExpectBytes(sources);
    other.ExpectBytes(sources);
    EXPECT_EQ(Metrics::Get().rings.load(), 2);
  }
  EXPECT_EQ(Made(), 2u);
  EXPECT_EQ(Idle(), 2);
}

TEST_P(UsrbioPool, LoadThatWasEndedLeavesThemUsable) {
  Set("bandwidth", "1e8");
  {
    Loader loader(this, {}, device);
    std::shared_ptr<Transfer> transfer;
    ASSERT_TRUE(loader.engine->Start(PlanOf(sources), {}, &transfer).ok());
    while (transfer->bytes_loaded() == 0 && transfer->status().ok()) usleep(1000);
  }
  EXPECT_EQ(Idle(), 1);
  LoadOnce();
  EXPECT_EQ(Made(), 1u);
}

TEST_P(UsrbioPool, LinksThatAreGoneMeanNewOnes) {
  const uint64_t before = Stat("ios");
  LoadOnce();
  const uint64_t reads = Stat("ios") - before;
  Call<void()>("fst_emu_hf3fs_lose_rings")();
  LoadOnce();
  EXPECT_EQ(Stat("ios"), before + 2 * reads) << "reads went into a ring that was lost, and were repeated";
  EXPECT_EQ(Made(), 2u);
  EXPECT_EQ(Idle(), 1);
}

TEST_P(UsrbioPool, AnotherMountMeansNewOnesOfAllKinds) {
  LoadOnce();
  LoadOnce(Buffer(2 * kMi));
  // The same names on another file system.
  const std::string now = mount + "/3fs-virt", before = mount + "/before";
  std::string other = "/dev/shm/fst-pool-XXXXXX";
  ASSERT_NE(mkdtemp(other.data()), nullptr);
  ASSERT_EQ(rename(now.c_str(), before.c_str()), 0);
  std::filesystem::copy(before, other,
                        std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  ASSERT_EQ(symlink(other.c_str(), now.c_str()), 0);
  LoadOnce();
  EXPECT_EQ(Made(), 3u);
  EXPECT_EQ(Idle(), 1);
  DropIdle();
  ASSERT_EQ(unlink(now.c_str()), 0);
  std::filesystem::remove_all(other);
  ASSERT_EQ(rename(before.c_str(), now.c_str()), 0);
  for (const auto& entry : std::filesystem::directory_iterator(mount + "/3fs-virt/iovs"))
    std::filesystem::remove(entry.path());
}

TEST_P(UsrbioPool, DaemonThatDiedMeansAnError) {
  LoadOnce();
  Call<void(const char*)>("fst_emu_hf3fs_kill_daemon")(mount.c_str());
  {
    Loader loader(this, {}, device);
    EXPECT_EQ(loader.Load(PlanOf(sources)).code(), Code::THREEFS_DISCONNECTED);
  }
  Call<void()>("fst_emu_hf3fs_revive")();
  LoadOnce();
}

// What the daemon could not register, or read, may stay so.
TEST_P(UsrbioPool, ErrorOfTheDaemonMeansNewOnes) {
  Set("eio", "2");
  {
    Loader loader(this, {}, device);
    EXPECT_EQ(loader.Load(PlanOf(sources)).code(), Code::THREEFS_ERROR);
  }
  EXPECT_EQ(Idle(), 0);
  EXPECT_EQ(Links(), std::set<std::string>());
}

TEST_P(UsrbioPool, ReadThatNeverCompletesMeansNewOnes) {
  Set("stall", "3");
  {
    Loader loader(this, {}, device, 300);
    EXPECT_EQ(loader.Load(PlanOf(sources)).code(), Code::STALLED);
  }
  EXPECT_EQ(Idle(), 0);
}

TEST_P(UsrbioPool, IdleOnesGoAfterAWhile) {
  LoadOnce();
  EXPECT_EQ(Idle(), 1);
  WaitUntil([] { return Idle() == 0; });
  EXPECT_EQ(IdleBytes(), 0);
  EXPECT_EQ(Stat("rings"), 0u);
  EXPECT_EQ(Links(), std::set<std::string>());
  LoadOnce();
  EXPECT_EQ(Made(), 2u);
}

TEST_P(UsrbioPool, FewAreKept) {
  auto load_at_once = [this](int count, const UsrbioReaderOptions& options) {
    std::vector<std::unique_ptr<Loader>> loaders;
    for (int i = 0; i < count; ++i) {
      loaders.push_back(std::make_unique<Loader>(this, options, device));
      Status loaded = loaders.back()->Load(PlanOf(sources));
      ASSERT_TRUE(loaded.ok()) << loaded.message();
    }
  };
  const int too_many = static_cast<int>(usrbio::kMaxIdle) + 2;
  for (int i = 0; i < 2; ++i) load_at_once(too_many, Buffer(kMi));
  EXPECT_GE(Made(), too_many + 2u) << "fewer than are needed are kept";
  DropIdle();
  made = Stat("iorcreate4");
  for (int i = 0; i < 2; ++i) load_at_once(3, {});
  EXPECT_GE(Made(), 3u + 1u) << "of 144 MiB not all are kept";
}

TEST_P(UsrbioPool, TooLargeABufferIsNotKept) {
  LoadOnce(Buffer(usrbio::kMaxIdleBytes + 4 * kMi));
  EXPECT_EQ(Idle(), 0);
  EXPECT_EQ(Links(), std::set<std::string>());
}

TEST_P(UsrbioPool, WhatIsKeptMakesRoomBeforeANewOneFails) {
  LoadOnce();
  Set("fail", "iorcreate4:1:-28");  // ENOSPC
  LoadOnce(Buffer(2 * kMi));
  EXPECT_EQ(Made(), 3u);
  EXPECT_EQ(Idle(), 1);
  EXPECT_EQ(IdleBytes(), 2 * int64_t{kMi});
}

// A daemon that was mounted read-only lets links be made and does not remove them.
TEST_P(UsrbioPool, WhatIsNotRemovedIsUsedAgainAndWarnedOfOnce) {
  ReadOnly().Set(mount + "/3fs-virt/iovs/");
  // Neither is worth keeping, nor has a place.
  for (int i = 0; i < 3; ++i) {
    Set("eio", "2");
    Loader loader(this, {}, device);
    EXPECT_EQ(loader.Load(PlanOf(sources)).code(), Code::THREEFS_ERROR);
  }
  EXPECT_EQ(Idle(), 1);
  LoadOnce();
  for (int i = 0; i < 2; ++i) LoadOnce(Buffer(usrbio::kMaxIdleBytes + 4 * kMi));
  EXPECT_EQ(Made(), 2u);
  usrbio::DropIdleChannels(std::chrono::seconds(20));
  EXPECT_EQ(Idle(), 2);
  LoadOnce();
  EXPECT_EQ(Made(), 2u);
  const std::vector<std::string> warnings = TakeWarnings();
  ASSERT_EQ(warnings.size(), 1u);
  for (const std::string& part : {mount, std::string("EROFS"), std::string("readonly")})
    EXPECT_NE(warnings[0].find(part), std::string::npos) << warnings[0];
}

INSTANTIATE_TEST_SUITE_P(UsrbioReader, UsrbioPool, ::testing::Values("cpu", "cuda:0"),
                         [](const auto& device) { return std::string(device.param).substr(0, 4); });

class UsrbioPoolCuda : public UsrbioPool {
 protected:
  // The address of the one buffer that this process has mapped.
  static void* Buffer() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin, end;
      if (line.find("/dev/shm/") == std::string::npos || sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
      if (end - begin == static_cast<uint64_t>(kUsual)) return reinterpret_cast<void*>(begin);  // NOLINT
    }
    ADD_FAILURE() << "no buffer is mapped";
    return nullptr;
  }
};

TEST_P(UsrbioPoolCuda, BufferStaysPinned) {
  LoadOnce();
  EXPECT_EQ(cuda.live_pinned(), 1u);
  LoadOnce();
  EXPECT_EQ(cuda.live_pinned(), 1u);
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
  DropIdle();
  EXPECT_EQ(cuda.live_pinned(), 0u);
}

TEST_P(UsrbioPoolCuda, PinThatAResetOfTheDeviceUndidIsRenewed) {
  LoadOnce();
  const cuda::DriverApi* cu = test::LoadEmulatedCuda();
  cuda::CUcontext context = nullptr;
  ASSERT_EQ(cu->DevicePrimaryCtxRetain(&context, 0), cuda::kSuccess);
  ASSERT_EQ(cu->CtxSetCurrent(context), cuda::kSuccess);
  ASSERT_EQ(cu->MemHostUnregister(Buffer()), cuda::kSuccess);
  EXPECT_EQ(cuda.live_pinned(), 0u);
  LoadOnce();
  EXPECT_EQ(Made(), 1u);
  EXPECT_EQ(cuda.live_pinned(), 1u);
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
  EXPECT_EQ(cu->CtxSetCurrent(nullptr), cuda::kSuccess);
  EXPECT_EQ(cu->DevicePrimaryCtxRelease(0), cuda::kSuccess);
}

// A GPU may still copy from it.
TEST_P(UsrbioPoolCuda, BufferThatCannotBeUnpinnedStaysUntilItCan) {
  LoadOnce();
  ASSERT_EQ(cuda.set_fail("cuMemHostUnregister", 0, cuda::kUnknown), 0);
  DropIdle();
  EXPECT_EQ(Links(), std::set<std::string>());
  EXPECT_EQ(cuda.live_pinned(), 1u);
  EXPECT_EQ(Metrics::Get().staging_bytes.load(), kUsual);
  EXPECT_NE(Buffer(), nullptr);
  cuda.reset();
  RetryReleases();
  EXPECT_EQ(cuda.live_pinned(), 0u);
  EXPECT_EQ(Metrics::Get().staging_bytes.load(), 0);
}

TEST_P(UsrbioPoolCuda, NoOtherBufferIsMappedOverOneThatCannotBeUnpinned) {
  Set("ring_lost", "2");
  Set("latency_ms", "2");
  ASSERT_EQ(cuda.set_fail("cuMemHostUnregister", 0, cuda::kUnknown), 0);
  {
    Loader loader(this, {}, device);
    Status status = loader.Load(PlanOf(sources));
    EXPECT_EQ(status.code(), Code::CUDA_ERROR) << status.message();
    EXPECT_EQ(Made(), 1u);
  }
  cuda.reset();
  RetryReleases();
  EXPECT_EQ(cuda.live_pinned(), 0u);
}

TEST_P(UsrbioPoolCuda, LostDeviceIsAnErrorAndNothingIsKept) {
  LoadOnce();
  ASSERT_EQ(cuda.set_fail("cuMemHostRegister_v2", 1, cuda::kLaunchFailed), 0);
  {
    Loader loader(this, {}, device);
    EXPECT_EQ(loader.Load(PlanOf(sources)).code(), Code::CUDA_ERROR);
  }
  EXPECT_EQ(Idle(), 0);
  EXPECT_EQ(cuda.live_pinned(), 0u);
}

INSTANTIATE_TEST_SUITE_P(UsrbioReader, UsrbioPoolCuda, ::testing::Values("cuda:0"),
                         [](const auto& device) { return std::string(device.param).substr(0, 4); });

using UsrbioPoolDeathTest = UsrbioReaderTest;

// The emulator aborts where anything is left.
TEST_F(UsrbioPoolDeathTest, ExitLeavesNothing) {
  EXPECT_EXIT(
      {
        std::vector<Source> sources = {Write("a", {5 * kMi})};
        {
          Loader loader(this);
          if (!loader.Load(PlanOf(sources)).ok()) abort();
        }
        if (Metrics::Get().idle_rings.load() != 1) abort();
        exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace fst
