// Descriptors that stay open from a file's header to its data: each is taken once, by nobody when the file has changed;
// they are few, and are closed with their owner or when descriptors run out.
#include "base/header_fd_cache.h"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "device/host_device.h"
#include "reader/file_reader.h"
#include "reader/open_file.h"
#include "safetensors/header.h"
#include "support/engine_harness.h"
#include "support/few_descriptors.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

std::string OneTensor(const std::string& data) {
  const std::string text = R"({"w":{"dtype":"U8","shape":[)" + std::to_string(data.size()) + R"(],"data_offsets":[0,)" +
                           std::to_string(data.size()) + "]}}";
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text + data;
}

class HeaderFdCacheTest : public ::testing::Test {
 protected:
  void TearDown() override {
    EXPECT_TRUE(Eventually(AllZero));
    EXPECT_FALSE(HeaderFdCache::EvictAll(HeaderFdCache::evictions()));
  }
  static int64_t Open() { return Metrics::Get().open_files; }

  std::string Write(const std::string& name) { return folder_.Write(name, OneTensor(std::string(5000, 'w'))); }
  // Reads the header; its descriptor is cached.
  FileIdentity Read(const std::string& path, HeaderFdCache& cache) {
    Header header;
    FileIdentity identity;
    Status status = ReadHeader(path, {}, &header, &identity, &cache);
    EXPECT_TRUE(status.ok()) << status.message();
    return identity;
  }

  TempFolder folder_;
};

TEST_F(HeaderFdCacheTest, AreTakenOnce) {
  const std::string path = Write("m");
  HeaderFdCache cache;
  const FileIdentity identity = Read(path, cache);
  ASSERT_EQ(Open(), 1);
  UniqueFd first, second;
  ASSERT_TRUE(OpenUnchanged(path, 0, identity, &first).ok());
  EXPECT_EQ(Open(), 1) << "it was opened again";
  ASSERT_TRUE(OpenUnchanged(path, 0, identity, &second).ok());
  EXPECT_EQ(Open(), 2);
  EXPECT_NE(first.get(), second.get());
}

TEST_F(HeaderFdCacheTest, AreNotTakenByWhoOpensInAnotherWay) {
  const std::string path = Write("m");
  HeaderFdCache cache;
  const FileIdentity identity = Read(path, cache);
  UniqueFd fd;
  ASSERT_TRUE(OpenUnchanged(path, O_NOATIME, identity, &fd).ok());
  EXPECT_EQ(Open(), 2);
}

TEST_F(HeaderFdCacheTest, AreNoneOfAHeaderThatIsRefused) {
  const std::string path = folder_.Write("m", "no header at all");
  HeaderFdCache cache;
  Header header;
  EXPECT_FALSE(ReadHeader(path, {}, &header, nullptr, &cache).ok());
  EXPECT_EQ(Open(), 0);
}

TEST_F(HeaderFdCacheTest, OfAFileThatChangedAreClosed) {
  const std::string path = folder_.Path("m"), other = folder_.Path("other");
  auto set_time_of = [](const std::string& from, const std::string& to) {
    struct stat info;
    ASSERT_EQ(stat(from.c_str(), &info), 0);
    const timespec times[] = {info.st_atim, info.st_mtim};
    ASSERT_EQ(utimensat(AT_FDCWD, to.c_str(), times, 0), 0);
  };
  struct Change {
    const char* what;
    Code code;
    std::function<void()> make;
  };
  const Change changes[] = {
      {"cut short", Code::FILE_CHANGED, [&] { ASSERT_EQ(truncate(path.c_str(), 100), 0); }},
      {"grown", Code::FILE_CHANGED, [&] { ASSERT_EQ(truncate(path.c_str(), 100000), 0); }},
      {"touched", Code::FILE_CHANGED,
       [&] {
         const timespec times[] = {{1, 0}, {1, 0}};
         ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
       }},
      {"replaced by one that looks the same", Code::FILE_CHANGED,
       [&] {
         Write("other");
         set_time_of(path, other);
         ASSERT_EQ(rename(other.c_str(), path.c_str()), 0);
       }},
      {"deleted and written anew", Code::FILE_CHANGED,
       [&] {
         Write("time");
         set_time_of(path, folder_.Path("time"));
         ASSERT_EQ(unlink(path.c_str()), 0);
         Write("m");
         set_time_of(folder_.Path("time"), path);
       }},
      {"deleted", Code::IO_ERROR, [&] { ASSERT_EQ(unlink(path.c_str()), 0); }},
      {"a folder now", Code::IO_ERROR,
       [&] {
         ASSERT_EQ(unlink(path.c_str()), 0);
         ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
       }},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.what);
    Write("m");
    HeaderFdCache cache;
    const FileIdentity identity = Read(path, cache);
    ASSERT_EQ(Open(), 1);
    change.make();
    UniqueFd fd;
    EXPECT_STREQ(CodeName(OpenUnchanged(path, 0, identity, &fd).code()), CodeName(change.code));
    EXPECT_FALSE(fd.valid());
    EXPECT_EQ(Open(), 0);
  }
}

TEST_F(HeaderFdCacheTest, OfAnEarlierVersionAreNotTakenForALaterOne) {
  const std::string path = Write("m");
  HeaderFdCache one, other;
  Read(path, one);
  Write("new");
  ASSERT_EQ(rename(folder_.Path("new").c_str(), path.c_str()), 0);
  const FileIdentity identity = Read(path, other);
  ASSERT_EQ(Open(), 2);
  UniqueFd fd;
  ASSERT_TRUE(OpenUnchanged(path, 0, identity, &fd).ok());
  FileIdentity taken;
  ASSERT_TRUE(FileIdentity::Of(fd.get(), path, &taken).ok());
  EXPECT_TRUE(taken == identity);
  EXPECT_EQ(Open(), 1) << "the earlier one is of no use to anybody";
}

TEST_F(HeaderFdCacheTest, AreFewWhereFewAreFree) {
  EXPECT_EQ(HeaderFdCache::MaxCachedFds(1 << 20, 30), 256U);
  EXPECT_EQ(HeaderFdCache::MaxCachedFds(1024, 24), 62U);
  EXPECT_EQ(HeaderFdCache::MaxCachedFds(64, 24), 2U);
  EXPECT_EQ(HeaderFdCache::MaxCachedFds(24, 24), 0U);
  EXPECT_EQ(HeaderFdCache::MaxCachedFds(24, 30), 0U);

  std::vector<std::string> paths;
  for (int i = 0; i < 300; ++i) paths.push_back(Write("m" + std::to_string(i)));
  {
    SoftLimit limit(128);
    HeaderFdCache one, other;
    for (size_t i = 0; i < 40; ++i) Read(paths[i], i % 2 == 0 ? one : other);
    EXPECT_GT(Open(), 0);
    EXPECT_LE(Open(), 8) << "of all caches together";
    one.Close(nullptr);
    other.Close(nullptr);
    EXPECT_TRUE(Eventually([] { return Open() == 0; }));
  }
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_cur < 8192) return;
  HeaderFdCache cache;
  for (const std::string& path : paths) Read(path, cache);
  EXPECT_EQ(Open(), 256);
}

TEST_F(HeaderFdCacheTest, AreClosedWithTheirOwner) {
  const std::string path = Write("m"), of_another = Write("other");
  HeaderFdCache other;
  Read(of_another, other);
  HeaderFdCache closed;
  Read(path, closed);
  ASSERT_EQ(Open(), 2);
  std::atomic<bool> over{false};
  closed.Close([&over] { over = true; });
  EXPECT_TRUE(Eventually([&over] { return over.load(); }));
  EXPECT_EQ(Open(), 1);
  bool at_once = false;
  closed.Close([&at_once] { at_once = true; });
  EXPECT_TRUE(at_once) << "nothing was left";
  Read(path, closed);
  EXPECT_EQ(Open(), 1) << "a header that was being read when it was closed";
  auto dropped = std::make_unique<HeaderFdCache>();
  Read(path, *dropped);
  ASSERT_EQ(Open(), 2);
  dropped.reset();
  EXPECT_TRUE(Eventually([] { return Open() == 1; }));
}

TEST_F(HeaderFdCacheTest, AreGivenUpWhereDescriptorsRunOut) {
  const std::string path = Write("m"), wanted = Write("wanted");
  HeaderFdCache cache;
  Read(path, cache);
  std::vector<UniqueFd> rest;
  SoftLimit limit(64);
  for (;;) {
    UniqueFd fd(open("/", O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) break;
    rest.push_back(std::move(fd));
  }
  ASSERT_EQ(errno, EMFILE);
  UniqueFd fd, none;
  EXPECT_TRUE(OpenForReading(wanted, 0, &fd).ok());
  EXPECT_TRUE(fd.valid());
  Status status = OpenForReading(path, 0, &none);
  EXPECT_EQ(status.code(), Code::IO_ERROR);
  EXPECT_NE(status.message().find("may have 64 open"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("ulimit -n"), std::string::npos) << status.message();
  EXPECT_FALSE(none.valid());
  EXPECT_EQ(status.os_error(), EMFILE) << "nothing is left to evict";
}

// Descriptors that another thread evicts are about to be free: open(2) is retried after the first.
TEST_F(HeaderFdCacheTest, AreGivenUpForAllWhoOpenAtATime) {
  std::vector<std::string> paths;
  for (int i = 0; i < 40; ++i) paths.push_back(Write("m" + std::to_string(i)));
  for (int round = 0; round < 50; ++round) {
    HeaderFdCache cache;
    for (const std::string& path : paths) Read(path, cache);
    ASSERT_GT(Open(), 20);
    std::atomic<int> failed{0}, started{0}, tried{0};
    std::atomic<bool> go{false}, end{false};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        ++started;
        while (!go) std::this_thread::yield();
        UniqueFd fd;
        if (!OpenForReading(paths[static_cast<size_t>(t)], 0, &fd).ok()) ++failed;
        ++tried;
        while (!end) std::this_thread::yield();  // each keeps its own
      });
    }
    while (started < 4) std::this_thread::yield();
    {
      // Numbers that others have closed since lie below those of the cache, which would then be above the limit.
      std::vector<UniqueFd> low;
      for (int i = 0; i < 32; ++i) low.emplace_back(open("/", O_RDONLY | O_CLOEXEC));
      const int used = open("/", O_RDONLY | O_CLOEXEC);
      ASSERT_EQ(close(used), 0);
      SoftLimit limit(static_cast<rlim_t>(used));  // none is free; the sanitizers need some where threads begin and end
      go = true;
      while (tried < 4) std::this_thread::yield();
    }
    end = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 0) << "round " << round;
  }
}

TEST_F(HeaderFdCacheTest, SpareAFileItsSecondOpening) {
  const std::string path = Write("m");
  UniqueFd watch(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  ASSERT_TRUE(watch.valid());
  ASSERT_GE(inotify_add_watch(watch.get(), path.c_str(), IN_OPEN), 0);
  auto openings = [&watch] {
    char events[4096];
    ssize_t n = read(watch.get(), events, sizeof events);
    return n < 0 ? 0 : n / static_cast<ssize_t>(sizeof(inotify_event));
  };
  HeaderFdCache cache;
  Model model;
  PlanFile planned;
  planned.path = path;
  planned.expected = Read(path, cache);
  EXPECT_EQ(openings(), 1);
  model.contents.push_back(OneTensor(std::string(5000, 'w')));
  model.plan.files.push_back(planned);
  model.plan.allocations.push_back({5000, 0});
  model.plan.items.push_back({0, 0, model.contents[0].size() - 5000, 5000, 0});
  for (int expected : {0, 1}) {  // by the first load and by the second
    std::shared_ptr<Engine> engine;
    ASSERT_TRUE(Engine::Create(std::make_shared<HostDevice>(), NewFileReader({}), {}, &engine).ok());
    auto load = Watch::Begin(*engine, model);
    load->WaitDrained();
    EXPECT_TRUE(load->transfer().status().ok());
    EXPECT_EQ(openings(), expected);
  }
}

TEST_F(HeaderFdCacheTest, AreKeptAndTakenByManyThreads) {
  std::vector<std::string> paths;
  std::vector<FileIdentity> identities;
  for (int i = 0; i < 8; ++i) {
    paths.push_back(Write("m" + std::to_string(i)));
    identities.push_back(IdentityOf(paths.back()));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (size_t round = 0; round < 100; ++round) {
        HeaderFdCache cache;
        const size_t at = round % paths.size();
        Read(paths[at], cache);
        UniqueFd fd;
        EXPECT_TRUE(OpenUnchanged(paths[at], 0, identities[at], &fd).ok());
        char byte;
        EXPECT_EQ(pread(fd.get(), &byte, 1, 4000), 1);
        if (t == 0) HeaderFdCache::EvictAll(HeaderFdCache::evictions());
        if (t % 2 == 0) cache.Close(nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace fst
