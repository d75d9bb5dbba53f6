// What arrives through USRBIO: the files' bytes, whatever order, size or delay.
#include <sys/resource.h>
#include <utime.h>

#include <thread>

#include "base/header_fd_cache.h"
#include "reader/usrbio/usrbio_files.h"
#include "reader/usrbio/usrbio_mount.h"
#include "usrbio_reader_fixture.h"

namespace fst {
namespace {

class UsrbioBytes : public UsrbioReaderTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    UsrbioReaderTest::SetUp();
    device = GetParam();
    if (std::string(device) == "fake") {
      FakeDevice::Options options;
      UseFakeDevices(&options);
      device = "cuda:0";
    } else if (std::string(device) == "cuda:0") {
      test::LoadEmulatedCuda();
      test::EmulatedCudaControl().reset();
    }
  }
  void TearDown() override {
    UseFakeDevices(nullptr);
    UsrbioReaderTest::TearDown();
  }
  const char* device = nullptr;
};

std::vector<uint64_t> Lengths() { return {1, 0, 4095, 4096, 3 * kMi + 17, 255, 0, 257, 2 * kMi, 100001}; }

TEST_P(UsrbioBytes, ArriveWithEveryInjectionOn) {
  Set("shuffle", "7");
  Set("eagain_every", "3");
  Set("latency_ms", "1");
  Set("bandwidth", "2e9");
  std::vector<Source> sources;
  for (int i = 0; i < 6; ++i) sources.push_back(Write("shard-" + std::to_string(i), Lengths()));
  Loader loader(this, {}, device);
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
  EXPECT_GT(Stat("eagain"), 0u);
}

TEST_P(UsrbioBytes, ArriveThroughTheSmallestBuffer) {
  Set("shuffle", "3");
  UsrbioReaderOptions options;
  options.buffer_bytes = 8192;
  options.entries = 1;
  std::vector<Source> sources = {Write("a", {300001}), Write("b", {1, 0, 70000})};
  Loader loader(this, options, device);
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
}

// 3FS fills the hole inside one read with zeros.
TEST_P(UsrbioBytes, OfAHoleInsideAReadAreZeros) {
  Source source = {mount + "/sparse", {{9, 3 * kMi}}};
  WriteSparse(source.path, 9 + 3 * kMi, kMi, {{0, 4096}, {kMi - 4096, kMi}});
  Loader loader(this, {}, device);
  Status loaded = loader.Load(PlanOf({source}));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes({source}, [](uint64_t at) { return at % kMi >= 4096 && at % kMi < kMi - 4096; });
}

// A load's descriptors and the library's are the process's own: one that it starts would keep files of 3FS open, and
// the daemon from cleaning up.
TEST_P(UsrbioBytes, ArriveWhileNothingCanBeInherited) {
  Set("bandwidth", "1e7");  // the first file is not done before it is looked at, however slow this is
  std::vector<Source> sources = {Write("a", {8 * kMi}), Write("b", {8 * kMi})};
  Loader loader(this, {}, device);
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(loader.engine->Start(PlanOf(sources), {}, &transfer).ok());
  while (transfer->bytes_loaded() == 0 && transfer->status().ok()) usleep(1000);
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    usrbio::Link link;
    if (usrbio::ReadLink(entry.path(), &link) != 0 || link.target.rfind(mount, 0) != 0) continue;
    ++seen;
    EXPECT_NE(fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC, 0) << link.target;
  }
  EXPECT_GE(seen, 5) << "two files, their duplicates, the folder of links";
  loader.Close();
}

TEST_P(UsrbioBytes, ArriveAfterTheRingWasLost) {
  Set("ring_lost", "5");
  Set("latency_ms", "2");
  const uint64_t made = Stat("iorcreate4");
  std::vector<Source> sources;
  for (int i = 0; i < 4; ++i) sources.push_back(Write("shard-" + std::to_string(i), {8 * kMi + 3, 77}));
  Loader loader(this, {}, device);
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
  EXPECT_GE(Stat("iorcreate4"), made + 2);
}

// Reads come in another order than their bytes are digested in: those that wait have bytes in slots, whose memory is
// made anew when the ring is lost.
TEST_P(UsrbioBytes, AreVerifiedThoughTheRingWasLost) {
  Set("shuffle", "5");
  Set("eagain_every", "3");
  Set("latency_ms", "0.2");
  UsrbioReaderOptions options;
  options.chunk = 64 << 10;
  const std::vector<Source> sources = {Write("shard-0", {12 * kMi + 3}), Write("shard-1", {77, 9 * kMi, 5})};
  for (int lost_at : {23, 40, 66, 90, 0}) {
    const bool right = lost_at > 0;
    Set("ring_lost", std::to_string(right ? lost_at : 40));
    Plan plan = PlanOf(sources);
    for (const PlanItem& item : plan.items) {
      const Bytes bytes = BytesAt(item.offset, item.length);
      plan.digests.push_back(DigestOf(DigestKind::kXxh3, bytes.data(), bytes.size()));
    }
    if (!right) plan.digests[2].bytes[0] ^= 1;
    Loader loader(this, options, device, 20000);
    Status loaded = loader.Load(std::move(plan));
    if (!right) {
      EXPECT_STREQ(CodeName(loaded.code()), "CHECKSUM_MISMATCH") << loaded.message();
      continue;
    }
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    loader.ExpectBytes(sources);
  }
}

// A daemon that was restarted in a moment.
TEST_P(UsrbioBytes, ArriveThoughTheDaemonForgotTheFiles) {
  Set("forget", "9");
  Set("latency_ms", "2");
  std::vector<Source> sources;
  for (int i = 0; i < 4; ++i) sources.push_back(Write("shard-" + std::to_string(i), {8 * kMi + 3, 77}));
  Loader loader(this, {}, device);
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
}

TEST_P(UsrbioBytes, ArriveThoughTheDaemonDiesAndComesBackAgainAndAgain) {
  Set("bandwidth", "1e8");  // 32 MiB take 0.3 s
  std::vector<Source> sources;
  for (int i = 0; i < 4; ++i) sources.push_back(Write("shard-" + std::to_string(i), {8 * kMi + 3, 77}));
  Plan plan = PlanOf(sources);
  Loader loader(this, {}, device);
  const uint64_t made = Stat("iorcreate4"), first = Stat("ios");
  std::thread restarts([&] {
    for (uint64_t io : {3, 12, 20}) {
      while (Stat("ios") < first + io) usleep(1000);
      Call<void(const char*)>("fst_emu_hf3fs_kill_daemon")(mount.c_str());
      Call<void()>("fst_emu_hf3fs_revive")();
    }
  });
  Status loaded = loader.Load(plan);
  restarts.join();
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  loader.ExpectBytes(sources);
  EXPECT_GE(Stat("iorcreate4"), made + 2);
}

TEST_P(UsrbioBytes, ArriveInASecondLoadOfTheSameEngine) {
  std::vector<Source> sources = {Write("a", {5 * kMi})};
  Loader loader(this, {}, device);
  for (int i = 0; i < 3; ++i) {
    Status loaded = loader.Load(PlanOf(sources));
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    loader.ExpectBytes(sources);
  }
  EXPECT_EQ(Stat("rings"), 1u);
}

TEST_P(UsrbioBytes, ArriveInSeveralLoadersAtATime) {
  std::vector<Source> sources = {Write("a", {5 * kMi, 3})};
  Loader one(this, {}, device), other(this, {}, device);
  for (Loader* loader : {&one, &other}) {
    Status loaded = loader->Load(PlanOf(sources));
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    loader->ExpectBytes(sources);
  }
  EXPECT_EQ(Stat("rings"), 2u);
}

INSTANTIATE_TEST_SUITE_P(Devices, UsrbioBytes, ::testing::Values("cpu", "fake", "cuda:0"),
                         [](const auto& device) { return std::string(device.param).substr(0, 4); });

TEST_F(UsrbioReaderTest, ReadsThousandsOfSmallFilesWithFewDescriptors) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  std::vector<Source> sources;
  for (int i = 0; i < 2000; ++i)
    sources.push_back(Write("small-" + std::to_string(i), {static_cast<uint64_t>(i % 37)}));
  Plan plan = PlanOf(sources);
  rlimit low = before;
  // Folders of links that earlier tests used stay open.
  std::filesystem::directory_iterator open("/proc/self/fd");
  low.rlim_cur = 64 + static_cast<rlim_t>(std::distance(begin(open), end(open)));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  {
    Loader loader(this);
    Status loaded = loader.Load(plan);
    EXPECT_TRUE(loaded.ok()) << loaded.message();
    if (loaded.ok()) loader.ExpectBytes(sources);
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

// The ring's memory goes with it: not before the last copy has read from it.
TEST_F(UsrbioReaderTest, ReplacesTheRingWhenNoCopyReadsFromIt) {
  FakeDevice::Options fake;
  fake.copy_delay_us = 30000;
  UseFakeDevices(&fake);
  std::vector<Source> sources = {Write("a", {48 * kMi})};
  const uint64_t made = Stat("iorcreate4");
  {
    Loader loader(this, {}, "cuda:0");
    Set("fail", "submit_ios:40:-5");
    Status loaded = loader.Load(PlanOf(sources));
    EXPECT_TRUE(loaded.ok()) << loaded.message();
    if (loaded.ok()) loader.ExpectBytes(sources);
  }
  EXPECT_EQ(Stat("iorcreate4"), made + 2);
  UseFakeDevices(nullptr);
}

// The descriptor that read the header is the one that is registered.
TEST_F(UsrbioReaderTest, AFileThatIsOpenedAnewIsComparedAgain) {
  const std::string path = WriteFile("data", 1000);
  FileIdentity identity;
  ASSERT_TRUE(FileIdentity::OfPath(path, &identity));
  usrbio::Files files(*api, mount);
  std::shared_ptr<ReaderFile> file;
  ASSERT_TRUE(files.Open(path, identity, &file).ok());
  auto& registered = usrbio::RegisteredFile::Of(*file);
  const std::shared_ptr<usrbio::Descriptor> first = registered.descriptor();
  Call<void(const char*)>("fst_emu_hf3fs_kill_daemon")(mount.c_str());
  EXPECT_EQ(registered.Renew(*first).code(), Code::THREEFS_DISCONNECTED);
  Call<void()>("fst_emu_hf3fs_revive")();
  ASSERT_TRUE(registered.Renew(*first).ok());
  const std::shared_ptr<usrbio::Descriptor> second = registered.descriptor();
  EXPECT_NE(second, first);
  ASSERT_TRUE(registered.Renew(*first).ok());
  EXPECT_EQ(registered.descriptor(), second) << "it was opened anew already";
  ASSERT_EQ(rename(WriteFile("other", 1000).c_str(), path.c_str()), 0);
  EXPECT_EQ(registered.Renew(*second).code(), Code::FILE_CHANGED);
}

TEST_F(UsrbioReaderTest, RegistersWhatTheHeaderWasReadThrough) {
  const std::string path = WriteFile("data", 5000);
  HeaderFdCache cache;
  UniqueFd header;
  ASSERT_TRUE(OpenForReading(path, 0, &header).ok());
  const int fd = header.get();
  FileIdentity identity;
  ASSERT_TRUE(FileIdentity::Of(fd, path, &identity).ok());
  cache.Put(path, std::move(header));
  usrbio::Files files(*api, mount);
  const uint64_t registered = Stat("reg_fd");
  std::shared_ptr<ReaderFile> file, again;
  ASSERT_TRUE(files.Open(path, identity, &file).ok());
  EXPECT_EQ(usrbio::RegisteredFile::Of(*file).descriptor()->number, fd);
  ASSERT_TRUE(files.Open(path, identity, &again).ok());
  EXPECT_NE(usrbio::RegisteredFile::Of(*again).descriptor()->number, fd);
  EXPECT_EQ(Stat("reg_fd"), registered + 2);
}

TEST_F(UsrbioReaderTest, GivesUpWhatIsKeptWhereTheLibraryHasNoDescriptor) {
  const std::string path = WriteFile("data", 5000), other = WriteFile("other", 5000);
  HeaderFdCache cache;
  UniqueFd cached;
  ASSERT_TRUE(OpenForReading(other, 0, &cached).ok());
  cache.Put(other, std::move(cached));
  FileIdentity identity;
  ASSERT_TRUE(FileIdentity::OfPath(path, &identity));
  usrbio::Files files(*api, mount);
  Set("fail", "reg_fd:1:24");
  std::shared_ptr<ReaderFile> file;
  Status status = files.Open(path, identity, &file);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(Metrics::Get().open_files, 1);
}

TEST_F(UsrbioReaderTest, BoundsOpenFilesByTheLimit) {
  EXPECT_EQ(usrbio::OpenFilesFor(1024, 24), 256);
  EXPECT_EQ(usrbio::OpenFilesFor(128, 30), 41);
  EXPECT_EQ(usrbio::OpenFilesFor(32, 30), 8);
}

TEST_F(UsrbioReaderTest, KeepsManyReadsInFlight) {
  Set("latency_ms", "5");
  std::vector<Source> sources = {Write("a", {64 * kMi})};
  const auto jobs = Stat("jobs"), ios = Stat("ios");  // of the whole process
  Loader loader(this);
  Status loaded = loader.Load(PlanOf(sources));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  EXPECT_GE(loader.transfer->max_in_flight(), 16);
  EXPECT_EQ(Stat("jobs") - jobs, Stat("ios") - ios);  // each read is a job of its own
}

TEST_F(UsrbioReaderTest, NeedsFollowTheOptions) {
  UsrbioReaderOptions options;
  options.entries = 64;
  EXPECT_EQ(NewUsrbioReader(options)->needs().in_flight, 16);
  options = {};
  options.buffer_bytes = 16 * kMi;
  auto reader = NewUsrbioReader(options);
  EXPECT_LE(reader->needs().chunk * static_cast<size_t>(reader->needs().slots), 16 * kMi);
  EXPECT_FALSE(reader->needs().fills_host);
  options = {};
  options.block_bytes = 3 * kMi;
  EXPECT_EQ(NewUsrbioReader(options)->needs().boundary, 3 * kMi);
}

}  // namespace
}  // namespace fst
