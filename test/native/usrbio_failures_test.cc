// What goes wrong on 3FS: a typed error within the deadline, and nothing left behind (the fixture looks).
#include <sys/statvfs.h>
#include <utime.h>

#include <thread>

#include "reader/usrbio/usrbio_iov.h"
#include "reader/usrbio/usrbio_preflight.h"
#include "usrbio_reader_fixture.h"

namespace fst {
namespace {

class UsrbioFailure : public UsrbioReaderTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    UsrbioReaderTest::SetUp();
    if (std::string(GetParam()) == "cuda:0") {
      test::LoadEmulatedCuda();
      test::EmulatedCudaControl().reset();
    }
  }
  // What a load of a 16 MiB file says.
  Status Load(UsrbioReaderOptions options = {}, int stall_ms = 60000) {
    source = Write("data", {16 * kMi, 5});
    Loader loader(this, std::move(options), GetParam(), stall_ms);
    return loader.Load(PlanOf({source}));
  }
  void ExpectCode(const Status& status, Code code, const std::string& text = "") {
    EXPECT_STREQ(CodeName(status.code()), CodeName(code)) << status.message();
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
  }
  Source source;
};

TEST_P(UsrbioFailure, ShortReadIsAnErrorAndNotData) {
  Set("short", "4");
  Status status = Load();
  ExpectCode(status, Code::SHORT_READ, "data");
  EXPECT_EQ(status.path(), source.path);
  EXPECT_GT(status.offset(), 0);
}

TEST_P(UsrbioFailure, LastReadThatIsShortIsAnErrorToo) {
  Set("short", "17");
  ExpectCode(Load(), Code::SHORT_READ);
}

// 3FS has no holes: a read that ends in one is short. Nothing takes it for zeros.
TEST_P(UsrbioFailure, ReadThatEndsInAHoleIsShort) {
  struct Case {
    const char* what;
    std::vector<std::pair<uint64_t, uint64_t>> data;  // in each MiB
    int64_t offset;
  };
  for (const Case& c : {Case{"the second half of a chunk", {{0, kMi / 2}}, kMi / 2},
                        Case{"all but the first chunk", {{0, kMi}}, kMi}, Case{"the whole file", {}, 9}}) {
    SCOPED_TRACE(c.what);
    Source sparse = {mount + "/sparse", {{9, 3 * kMi}}};
    WriteSparse(sparse.path, 9 + 3 * kMi, c.offset == kMi ? 4 * kMi : kMi, c.data);
    Loader loader(this, {}, GetParam());
    Status status = loader.Load(PlanOf({sparse}));
    ExpectCode(status, Code::SHORT_READ, "hole");
    EXPECT_EQ(status.path(), sparse.path);
    EXPECT_GE(status.offset(), c.offset);
    std::filesystem::remove(sparse.path);
  }
}

// What is missing may be zeros or not: an ordinary read that gives zeros proves nothing.
TEST_P(UsrbioFailure, ShortReadOfZerosIsAnErrorToo) {
  source = {mount + "/zeros", {{9, 2 * kMi}}};
  FILE* file = fopen(source.path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  Bytes zeros(9 + 2 * kMi);
  ASSERT_EQ(fwrite(zeros.data(), 1, zeros.size(), file), zeros.size());
  fclose(file);
  Set("short", "1");
  Loader loader(this, {}, GetParam());
  ExpectCode(loader.Load(PlanOf({source})), Code::SHORT_READ);
}

TEST_P(UsrbioFailure, EioNamesFileAndOffset) {
  Set("eio", "3");
  Status status = Load();
  ExpectCode(status, Code::THREEFS_ERROR, "EIO");
  EXPECT_EQ(status.path(), source.path);
  EXPECT_GE(status.offset(), 0);
}

TEST_P(UsrbioFailure, MemoryThatCannotBeRegisteredNamesTheLimit) {
  Set("memlock", "65536");
  ExpectCode(Load(), Code::THREEFS_ERROR, "limit of locked memory");
}

TEST_P(UsrbioFailure, LowerBufferFitsALowLimitOfLockedMemory) {
  Set("memlock", "4194304");
  UsrbioReaderOptions options;
  options.buffer_bytes = 2 * kMi;
  Status status = Load(options);
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_P(UsrbioFailure, StalledReadIsGivenUpAtTheDeadline) {
  Set("stall", "6");
  ExpectCode(Load({}, 700), Code::STALLED, "stallTimeoutMs");
}

TEST_P(UsrbioFailure, EngineWorksOnAfterAStall) {
  Set("stall", "6");
  source = Write("data", {16 * kMi, 5});
  Loader loader(this, {}, GetParam(), 700);
  ExpectCode(loader.Load(PlanOf({source})), Code::STALLED);
  Status again = loader.Load(PlanOf({source}));
  ASSERT_TRUE(again.ok()) << again.message();
  loader.ExpectBytes({source});
}

TEST_P(UsrbioFailure, DeadDaemonEndsEverythingInFlight) {
  Set("daemon_dead", "6");
  Set("latency_ms", "5");
  ExpectCode(Load(), Code::THREEFS_DISCONNECTED, mount);
}

TEST_P(UsrbioFailure, RevivedDaemonServesTheNextLoad) {
  Set("daemon_dead", "6");
  Set("latency_ms", "5");
  source = Write("data", {16 * kMi, 5});
  Loader loader(this, {}, GetParam());
  ExpectCode(loader.Load(PlanOf({source})), Code::THREEFS_DISCONNECTED);
  ExpectCode(loader.Load(PlanOf({source})), Code::THREEFS_DISCONNECTED);
  Call<void()>("fst_emu_hf3fs_reset")();
  Status again = loader.Load(PlanOf({source}));
  ASSERT_TRUE(again.ok()) << again.message();
  loader.ExpectBytes({source});
}

TEST_P(UsrbioFailure, RefusedPrepareIsAnError) {
  Set("fail", "prep_io:3:-5");
  ExpectCode(Load(), Code::THREEFS_ERROR, "not taken");
}

TEST_P(UsrbioFailure, FirstPrepareThatIsPutOffIsTriedAgain) {
  Set("fail", "prep_io:1:-11,prep_io:2:-11");
  source = Write("data", {100});  // one read: nothing else makes the reader look again
  Loader loader(this, {}, GetParam());
  Status status = loader.Load(PlanOf({source}));
  ASSERT_TRUE(status.ok()) << status.message();
  loader.ExpectBytes({source});
}

TEST_P(UsrbioFailure, RefusedSubmitAndWaitBuildTheRingAnew) {
  Set("fail", "submit_ios:2:-5,wait_for_ios:3:-22");
  const uint64_t made = Stat("iorcreate4");
  Status status = Load();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_GE(Stat("iorcreate4"), made + 2);
}

TEST_P(UsrbioFailure, RingThatCannotBeMadeIsAnError) {
  Set("fail", "iorcreate4:1:-12");
  ExpectCode(Load(), Code::THREEFS_ERROR, "ring");
}

TEST_P(UsrbioFailure, WrapThatFailsIsAnError) {
  Set("fail", "iovwrap:1:-22");
  ExpectCode(Load(), Code::THREEFS_ERROR, "iovwrap");
}

TEST_P(UsrbioFailure, FileThatIsNotTakenIsAnError) {
  Set("fail", "reg_fd:1:5");
  ExpectCode(Load(), Code::THREEFS_ERROR, "EIO");
}

TEST_P(UsrbioFailure, FileWhoseNumberTheLibraryHoldsMovesToAnother) {
  Set("fail", "reg_fd:1:22,reg_fd:2:22");
  Status status = Load();
  EXPECT_TRUE(status.ok()) << status.message();
}

// Deregistering asks the daemon first: what was open when it died stays registered until a live one answers for it.
TEST_P(UsrbioFailure, DeathsOfTheDaemonLeaveNothingInTheProcess) {
  std::vector<Source> sources;
  for (int i = 0; i < 6; ++i) sources.push_back(Write("shard-" + std::to_string(i), {4 * kMi, 5}));
  Loader loader(this, {}, GetParam());
  auto entries = [](const char* folder) {
    std::filesystem::directory_iterator all(folder);
    return std::distance(begin(all), end(all));
  };
  std::ptrdiff_t fds = 0, threads = 0;
  for (int i = 0; i < 6; ++i) {
    Set("latency_ms", "5");
    Set("daemon_dead", "6");
    ExpectCode(loader.Load(PlanOf(sources)), Code::THREEFS_DISCONNECTED);
    for (int wait = 0; wait < 5000 && Metrics::Get().open_files > 0; ++wait) usleep(1000);  // closers close later
    EXPECT_GT(usrbio::LostFds(), 0u);
    Set("daemon_dead", "0");
    Call<void()>("fst_emu_hf3fs_revive")();
    Status again = loader.Load(PlanOf(sources));
    ASSERT_TRUE(again.ok()) << again.message();
    loader.ExpectBytes(sources);
    EXPECT_EQ(usrbio::LostFds(), 0u);
    for (int wait = 0; wait < 5000 && Stat("fds") > 0; ++wait) usleep(1000);
    EXPECT_EQ(Stat("fds"), 0u);
    if (i == 0) fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    EXPECT_EQ(entries("/proc/self/fd"), fds) << "after death " << i;
    EXPECT_LE(entries("/proc/self/task"), threads + 8) << "after death " << i;  // pools start theirs as work comes
  }
}

TEST_P(UsrbioFailure, RingThatFailsAfterItsLinkWasMadeLeavesNone) {
  Set("fail", "iorwrap:1:-2");
  ExpectCode(Load(), Code::THREEFS_ERROR, "ENOENT");
  EXPECT_TRUE(std::filesystem::is_empty(mount + "/3fs-virt/iovs"));
}

TEST_P(UsrbioFailure, SharedMemoryThatTheDaemonDoesNotSeeNamesTheRemedy) {
  std::filesystem::remove(mount + "/3fs-virt/iovs");
  ExpectCode(Load(), Code::THREEFS_ERROR, "--ipc=host");
  std::filesystem::create_directory(mount + "/3fs-virt/iovs");
}

TEST_P(UsrbioFailure, MountPathThatTheLibraryCannotHoldIsRefused) {
  UsrbioReaderOptions options;
  options.mount_point = "/" + std::string(255, 'm');
  ExpectCode(Load(options), Code::INVALID_ARGUMENT, "at most 255 bytes");
}

TEST_P(UsrbioFailure, ChangedFileIsFound) {
  source = Write("data", {16 * kMi});
  Plan plan = PlanOf({source});
  ASSERT_EQ(utime(source.path.c_str(), nullptr), 0);
  utimbuf times = {1, 1};
  ASSERT_EQ(utime(source.path.c_str(), &times), 0);
  Loader loader(this, {}, GetParam());
  ExpectCode(loader.Load(plan), Code::FILE_CHANGED, source.path);
}

TEST_P(UsrbioFailure, FileThatChangesWhileItIsReadIsFound) {
  Set("bandwidth", "4e7");  // 16 MiB take 0.4 s
  source = Write("data", {16 * kMi});
  Plan plan = PlanOf({source});
  Loader loader(this, {}, GetParam());
  const uint64_t before = Stat("ios");
  std::thread writer([this, before] {
    while (Stat("ios") < before + 3) usleep(1000);
    utimbuf times = {1, 1};
    EXPECT_EQ(utime(source.path.c_str(), &times), 0);
  });
  ExpectCode(loader.Load(plan), Code::FILE_CHANGED, "modification time");
  writer.join();
}

TEST_P(UsrbioFailure, FileThatShrinksIsFound) {
  Set("bandwidth", "4e7");
  source = Write("data", {16 * kMi});
  Plan plan = PlanOf({source});
  ASSERT_EQ(truncate(source.path.c_str(), 5 * kMi), 0);
  Loader loader(this, {}, GetParam());
  ExpectCode(loader.Load(plan), Code::FILE_CHANGED, source.path);
}

TEST_P(UsrbioFailure, FileElsewhereIsNot3fs) {
  source = Write("data", {10});
  std::string elsewhere = ::testing::TempDir() + "/fst-elsewhere-" + std::to_string(getpid());
  std::filesystem::copy_file(source.path, elsewhere, std::filesystem::copy_options::overwrite_existing);
  source.path = elsewhere;
  Loader loader(this, {}, GetParam());
  ExpectCode(loader.Load(PlanOf({source})), Code::NOT_3FS, elsewhere);
  std::filesystem::remove(elsewhere);
}

TEST_P(UsrbioFailure, CloseEndsALoadInProgress) {
  Set("bandwidth", "1e7");
  source = Write("data", {16 * kMi});
  Plan plan = PlanOf({source});
  Loader loader(this, {}, GetParam());
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(loader.engine->Start(plan, {}, &transfer).ok());
  while (transfer->bytes_loaded() == 0 && transfer->status().ok()) usleep(1000);
  loader.Close();
  ExpectCode(transfer->status(), Code::CLOSED);
}

INSTANTIATE_TEST_SUITE_P(Devices, UsrbioFailure, ::testing::Values("cpu", "cuda:0"),
                         [](const auto& device) { return std::string(device.param).substr(0, 4); });

TEST_F(UsrbioReaderTest, FullShmIsAnErrorThatNamesSizeRoomAndRemedy) {
  std::unique_ptr<usrbio::AddressRange> range;
  // A page more than there is: the thread sanitizer does not always leave a TiB of addresses.
  struct statvfs shm;
  ASSERT_EQ(statvfs("/dev/shm", &shm), 0);
  if (shm.f_blocks == 0) GTEST_SKIP() << "/dev/shm is never full here";
  const uint64_t size = uint64_t{shm.f_blocks} * shm.f_frsize + 4096;
  ASSERT_TRUE(usrbio::AddressRange::Reserve(size, &range).ok());
  std::unique_ptr<usrbio::SharedIov> iov;
  Status status = usrbio::SharedIov::Create(*api, mount, -1, *range, UniqueFd(), &iov);
  EXPECT_EQ(status.code(), Code::OUT_OF_HOST_MEMORY) << status.message();
  for (const std::string& part :
       {std::to_string(size) + " bytes", std::string("/dev/shm"), std::string(" free"), std::string("bufferSize")}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << " in " << status.message();
  }
}

TEST_F(UsrbioReaderTest, SharedMemoryHasNoNameAndItsLinkGoesWithIt) {
  std::unique_ptr<usrbio::AddressRange> range;
  ASSERT_TRUE(usrbio::AddressRange::Reserve(1 << 20, &range).ok());
  std::unique_ptr<usrbio::SharedIov> iov;
  Status status = usrbio::SharedIov::Create(*api, mount, -1, *range, UniqueFd(), &iov);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(LeftInShm().empty());
  EXPECT_TRUE(std::filesystem::is_symlink(iov->link().path));
  EXPECT_EQ(iov->iov().base, range->base());
  std::string link = iov->link().path;
  iov.reset();
  EXPECT_FALSE(std::filesystem::is_symlink(link));
}

TEST_F(UsrbioReaderTest, LinkThatLeadsElsewhereIsGone) {
  std::string path = mount + "/3fs-virt/iovs/link";
  usrbio::Link link;
  EXPECT_EQ(usrbio::ReadLink(path, &link), ENOENT);
  ASSERT_EQ(symlink("/dev/shm/one", path.c_str()), 0);
  ASSERT_EQ(usrbio::ReadLink(path, &link), 0);
  EXPECT_EQ(link.target, "/dev/shm/one");
  EXPECT_FALSE(usrbio::AnyGone({link}));
  ASSERT_EQ(unlink(path.c_str()), 0);
  EXPECT_TRUE(usrbio::AnyGone({link}));
  ASSERT_EQ(symlink("/dev/shm/other", path.c_str()), 0);
  EXPECT_TRUE(usrbio::AnyGone({link})) << "the daemon gives free places to others";
  EXPECT_FALSE(usrbio::AnyGone({{path, "/dev/shm/other"}}));
  ASSERT_EQ(unlink(path.c_str()), 0);
}

TEST_F(UsrbioReaderTest, MountThatIsGoneIsDisconnected) {
  std::unique_ptr<usrbio::AddressRange> range;
  ASSERT_TRUE(usrbio::AddressRange::Reserve(1 << 20, &range).ok());
  std::unique_ptr<usrbio::SharedIov> iov;
  Status status = usrbio::SharedIov::Create(*api, mount + "/absent", -1, *range, UniqueFd(), &iov);
  EXPECT_EQ(status.code(), Code::THREEFS_DISCONNECTED) << status.message();
}

TEST_F(UsrbioReaderTest, LookTellsWhichFilesAreElsewhere) {
  setenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP", "yes", 1);
  std::string here = WriteFile("here", 10);
  usrbio::FilesOnMount found;
  ASSERT_TRUE(usrbio::ResolveMount({here, "/proc/version"}, "", true, &found).ok());
  EXPECT_EQ(found.mount_point, mount);
  EXPECT_GT(found.block_bytes, 0u);
  ASSERT_EQ(found.not_on_mount.size(), 1u);
  EXPECT_EQ(found.not_on_mount[0].path, "/proc/version");
  EXPECT_EQ(found.not_on_mount[0].why.code(), Code::NOT_3FS);
  unsetenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
}

}  // namespace
}  // namespace fst
