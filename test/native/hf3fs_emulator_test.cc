// The emulated 3FS client library: what its calls mean, and what can be made to go wrong. Its refusals are in
// hf3fs_emulator_strict_test.cc, what becomes of lost links and daemons in hf3fs_emulator_links_test.cc.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <thread>

#include "hf3fs_emulator_fixture.h"

namespace fst {
namespace {

using Hf3fsEmulator = Hf3fsEmulatorTest;
using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

TEST_F(Hf3fsEmulator, ReadsAFileIntoTheIov) {
  Client c(this);
  EXPECT_EQ(c.Read(4096, 12345, 70000), 70000);
  c.ExpectFile(4096, 12345, 70000);
}

TEST_F(Hf3fsEmulator, ReadsIntoOwnMemoryWhoseNameIsGone) {
  Client c(this);
  OwnIov own(this, 1 << 18, 1 << 16);
  ASSERT_GE(api->prep_io(&c.ring, &own.iov, true, own.base + (1 << 16), c.fd, 777, 1 << 16, nullptr), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1)[0], 1 << 16);
  for (size_t i = 0; i < 1 << 16; i++) ASSERT_EQ(own.base[(1 << 16) + i], ByteAt(777 + i));
}

TEST_F(Hf3fsEmulator, MakesTheDocumentedLinksAndRingSize) {
  EXPECT_EQ(api->ior_size(7), 16u + 32 + 96 * 8 + 4096);
  Client c(this, 7, -3);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(mount + "/3fs-virt/iovs"))
    names.push_back(entry.path().filename());
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(std::count_if(names.begin(), names.end(), [](const std::string& n) { return n.size() == 36; }), 1);
  EXPECT_EQ(std::count_if(names.begin(), names.end(), [](const std::string& n) { return n.substr(36) == ".r-3.t0"; }),
            1);
}

TEST_F(Hf3fsEmulator, IsShortAtTheEndAndZeroPastIt) {
  Client c(this, 8, -1, 10000);
  EXPECT_EQ(c.Read(0, 8000, 4096), 2000);
  c.ExpectFile(0, 8000, 2000);
  c.ExpectAll(kPoison, 2000, 4096 - 2000);
  EXPECT_EQ(c.Read(0, 10000, 4096), 0);
  EXPECT_EQ(c.Read(0, 1 << 30, 4096), 0);
}

TEST_F(Hf3fsEmulator, FillsAHoleWithZerosAndIsShortWhereItEndsInOne) {
  Client c(this);
  int fd = open(c.path.c_str(), O_RDWR);
  ASSERT_EQ(ftruncate(fd, 0), 0);
  ASSERT_EQ(ftruncate(fd, 1 << 20), 0);
  std::vector<char> data(1 << 16, 'x');
  ASSERT_EQ(pwrite(fd, data.data(), data.size(), 1 << 16), 1 << 16);
  ASSERT_EQ(pwrite(fd, data.data(), data.size(), 4 << 16), 1 << 16);
  off_t position = lseek(fd, 5, SEEK_SET);
  close(fd);
  EXPECT_EQ(c.Read(0, 1 << 16, 4 << 16), 4 << 16);  // data, hole, data
  c.ExpectAll('x', 0, 1 << 16);
  c.ExpectAll(0, 1 << 16, 2 << 16);
  EXPECT_EQ(c.Read(0, 1 << 16, 2 << 16), 1 << 16);  // ends in a hole
  EXPECT_EQ(c.Read(0, 2 << 16, 1 << 16), 0);        // only a hole
  EXPECT_EQ(c.Read(0, 4 << 16, 4 << 16), 1 << 16);
  EXPECT_EQ(position, 5);
  EXPECT_EQ(lseek(c.fd, 0, SEEK_CUR), 0) << "the caller's position moved";
}

// 3FS joins the chunks of a job's ios, and takes what one lacked for a hole before the next.
TEST_F(Hf3fsEmulator, BatchGivesMoreThanWasAskedForAfterAHole) {
  Client c(this, 8, 0);
  ASSERT_EQ(truncate(c.path.c_str(), 0), 0);
  int fd = open(c.path.c_str(), O_RDWR);
  std::vector<char> data(1 << 16, 'x');
  ASSERT_EQ(pwrite(fd, data.data(), data.size(), 0), 1 << 16);
  ASSERT_EQ(pwrite(fd, data.data(), data.size(), 3 << 16), 1 << 16);
  close(fd);
  ASSERT_GE(c.Prep(0, 0, 2 << 16, 1), 0);              // data, hole
  ASSERT_GE(c.Prep(2 << 16, 2 << 16, 2 << 16, 2), 0);  // hole, data
  ASSERT_GE(c.Prep(4 << 16, 3 << 16, 1 << 16, 3), 0);  // data
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  auto results = c.Wait(3);
  EXPECT_EQ(results[1], 1 << 16);
  EXPECT_EQ(results[2], 3 << 16) << "of 2 << 16 asked for";
  EXPECT_EQ(results[3], 1 << 16);
}

TEST_F(Hf3fsEmulator, RingThatForbidsHolesSaysEnodata) {
  Set("strict", "0");
  Client c(this);
  ASSERT_EQ(truncate(c.path.c_str(), 0), 0);
  int fd = open(c.path.c_str(), O_RDWR);
  ASSERT_EQ(pwrite(fd, "x", 1, 1 << 16), 1);
  close(fd);
  EXPECT_EQ(c.Read(0, 0, (1 << 16) + 1), (1 << 16) + 1);
  api->iordestroy(&c.ring);
  ASSERT_EQ(api->iorcreate4(&c.ring, mount.c_str(), 4, true, -1, 0, -1, 2), 0);
  EXPECT_EQ(c.Read(0, 0, (1 << 16) + 1), -ENODATA);
  EXPECT_EQ(c.Read(0, 0, 1 << 16), 0) << "nothing follows";
}

TEST_F(Hf3fsEmulator, IosStartOnceAnythingPosts) {
  Client c(this);
  usrbio::Ior other = {};
  ASSERT_EQ(api->iorcreate4(&other, mount.c_str(), 4, true, -1, 0, -1, 0), 0);
  const uint64_t jobs = Stat("jobs");
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  usleep(20000);
  EXPECT_EQ(Stat("jobs"), jobs) << "nobody has posted";
  ASSERT_EQ(api->submit_ios(&other), 0);
  while (Stat("jobs") == jobs) std::this_thread::yield();
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1).size(), 1u);
  // Where another client posts at once, all is done before the submit.
  Set("early", "1");
  ASSERT_GE(c.Prep(0, 0, 100, 2), 0);
  while (Stat("jobs") == jobs + 1) std::this_thread::yield();
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1).size(), 1u);
  api->iordestroy(&other);
}

TEST_F(Hf3fsEmulator, WaitPostsOnceItHasReaped) {
  Client c(this);
  const uint64_t jobs = Stat("jobs");
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  while (Stat("bytes") < 100) std::this_thread::yield();
  ASSERT_GE(c.Prep(100, 0, 100, 2), 0);
  std::thread([&c] { EXPECT_EQ(c.Wait(2).size(), 2u) << "the second one was never submitted"; }).join();
  EXPECT_EQ(Stat("jobs"), jobs + 2);
}

TEST_F(Hf3fsEmulator, WaitPollsTimesOutAndReturnsEarly) {
  Client c(this);
  usrbio::Cqe cqes[4];
  EXPECT_EQ(api->wait_for_ios(&c.ring, cqes, 4, 0, nullptr), 0);
  timespec soon = In(0.01);
  EXPECT_EQ(api->wait_for_ios(&c.ring, cqes, 4, 1, &soon), 0);
  EXPECT_EQ(api->wait_for_ios(&c.ring, cqes, 0, 0, &soon), -EINVAL);
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  ASSERT_GE(c.Prep(100, 100, 100, 2), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(2).size(), 2u);
}

TEST_F(Hf3fsEmulator, AnswersBadArgumentsAsTheLibraryDoes) {
  Client c(this);
  EXPECT_EQ(c.Prep(0, 0, 0), -EINVAL);
  EXPECT_EQ(c.Prep((1 << 20) - 10, 0, 11), -EINVAL);
  EXPECT_EQ(api->prep_io(&c.ring, &c.iov, false, c.iov.base, c.fd, 0, 1, nullptr), -EINVAL);
  EXPECT_EQ(api->reg_fd(c.fd, 0), EINVAL);
  int outside = open("/", O_RDONLY);
  EXPECT_EQ(api->reg_fd(outside, 0), EBADF);
  EXPECT_FALSE(api->is_hf3fs(outside));
  EXPECT_TRUE(api->is_hf3fs(c.fd));
  close(outside);
  usrbio::Ior ring = {};
  EXPECT_EQ(api->iorcreate4(&ring, "", 4, true, 0, 0, -1, 0), -EINVAL);
  EXPECT_EQ(api->iorcreate4(&ring, std::string(256, 'm').c_str(), 4, true, 0, 0, -1, 0), -EINVAL);
  EXPECT_EQ(api->iorcreate4(&ring, mount.c_str(), 4, true, 5, 0, -1, 0), -EINVAL);
}

TEST_F(Hf3fsEmulator, OneThreadMaySubmitAndAnotherWait) {
  Client c(this);
  std::thread waiter([&c] { EXPECT_EQ(c.Wait(1).size(), 1u); });
  EXPECT_GE(c.Prep(0, 0, 10), 0);
  EXPECT_EQ(api->submit_ios(&c.ring), 0);
  waiter.join();
}

TEST_F(Hf3fsEmulator, CutsJobsByDepth) {
  struct Case {
    int depth;
    uint64_t jobs;
  };
  for (Case k : {Case{-1, 6}, Case{-4, 2}, Case{0, 1}, Case{3, 2}}) {
    Client c(this, 8, k.depth);
    uint64_t before = Stat("jobs");
    for (uintptr_t i = 0; i < 6; i++) ASSERT_GE(c.Prep(i * 100, i * 100, 100, i + 1), 0);
    ASSERT_EQ(api->submit_ios(&c.ring), 0);
    EXPECT_EQ(c.Wait(6).size(), 6u);
    EXPECT_EQ(Stat("jobs") - before, k.jobs) << "depth " << k.depth;
  }
}

TEST_F(Hf3fsEmulator, ABatchFreesAllItsSlots) {
  Client c(this, 4, 0);
  for (int round = 0; round < 20; round++) {
    for (uintptr_t i = 0; i < 4; i++) ASSERT_GE(c.Prep(i * 100, i * 100, 100, i + 1), 0) << "round " << round;
    EXPECT_EQ(c.Prep(500, 0, 100), -EAGAIN);
    ASSERT_EQ(api->submit_ios(&c.ring), 0);
    ASSERT_EQ(c.Wait(4).size(), 4u);
  }
}

// The first io is slow; the others complete and are taken, yet the ring has no room, since slots retire in order.
TEST_F(Hf3fsEmulator, SaysEagainWithOneIoInFlight) {
  Client c(this, 4, -1);
  Set("stall", "1");
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  for (uintptr_t i = 2; i <= 4; i++) {
    ASSERT_GE(c.Prep(100 * i, 0, 100, i), 0);
    ASSERT_EQ(api->submit_ios(&c.ring), 0);
    ASSERT_EQ(c.Wait(1).count(i), 1u);
  }
  EXPECT_EQ(Stat("in_flight"), 1u);
  EXPECT_EQ(c.Prep(900, 0, 100, 9), -EAGAIN);
}

TEST_F(Hf3fsEmulator, ModelsLatencyAndBandwidth) {
  Set("latency_ms", "20");
  Set("bandwidth", "2e7");
  Client c(this);
  auto start = Clock::now();
  for (uintptr_t i = 0; i < 4; i++) ASSERT_GE(c.Prep(i * 250000, 0, 250000, i + 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(4).size(), 4u);
  EXPECT_GE(Since(start), 0.070);  // 20 ms, then 1 MB at 20 MB/s, the four latencies overlapping
}

TEST_F(Hf3fsEmulator, SharesALinkThroughAFile) {
  std::string file = mount + "/link";
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  uint64_t busy_until = static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec) + 200000000;
  std::ofstream(file).write(reinterpret_cast<const char*>(&busy_until), sizeof busy_until);
  Set("link", file);
  Set("bandwidth", "1e9");
  Client c(this);
  EXPECT_EQ(c.Read(0, 0, 1000), 1000);
  clock_gettime(CLOCK_MONOTONIC, &now);
  EXPECT_GE(static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec), busy_until + 1000);
  uint64_t after = 0;
  std::ifstream(file).read(reinterpret_cast<char*>(&after), sizeof after);
  EXPECT_GE(after, busy_until + 1000);
  Set("link", "");
}

// Looks at a byte that another thread may be writing, which is a race by intent.
__attribute__((noinline, no_sanitize("thread"))) uint8_t Peek(const volatile uint8_t* byte) { return *byte; }

TEST_F(Hf3fsEmulator, PoisonsABufferUntilItsDataArrives) {
  Set("latency_ms", "200");
  Client c(this);
  memset(c.iov.base, 0, 4096);
  ASSERT_GE(c.Prep(0, 0, 4096, 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  while (Peek(c.iov.base + 4095) == 0) std::this_thread::yield();
  EXPECT_EQ(Peek(c.iov.base + 4095), kPoison);
  EXPECT_EQ(c.Wait(1)[1], 4096);
  c.ExpectFile(0, 0, 4096);
}

TEST_F(Hf3fsEmulator, ShufflesCompletions) {
  Set("shuffle", "7");
  Set("bandwidth", "1e6");  // a millisecond apart, they would come in order
  Client c(this, 32);
  for (uintptr_t i = 0; i < 32; i++) ASSERT_GE(c.Prep(i * 1000, i * 1000, 1000, i + 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(32).size(), 32u);
  EXPECT_FALSE(std::is_sorted(c.order.begin(), c.order.end()));
  c.ExpectFile(0, 0, 32000);
}

TEST_F(Hf3fsEmulator, InjectsShortReadsAndErrors) {
  Client c(this);
  Set("short", "1");
  Set("eio", "2,3");
  EXPECT_EQ(c.Read(0, 0, 1000), 500);
  c.ExpectFile(0, 0, 500);
  c.ExpectAll(kPoison, 500, 500);
  EXPECT_EQ(c.Read(0, 0, 1000), -EIO);
  c.ExpectAll(kPoison, 0, 1000);
  EXPECT_EQ(c.Read(0, 0, 1000), -EIO);
  EXPECT_EQ(c.Read(0, 0, 1000), 1000);
  Set("eio_path", "/da");
  EXPECT_EQ(c.Read(0, 0, 1000), -EIO);
  Set("eio_path", "/other");
  EXPECT_EQ(c.Read(0, 0, 1000), 1000);
  Set("fail", "io:2:-121");
  EXPECT_EQ(c.Read(0, 0, 1000), 1000);
  EXPECT_EQ(c.Read(0, 0, 1000), -EREMOTEIO);
}

TEST_F(Hf3fsEmulator, InjectsEagainAndFailingCalls) {
  Client c(this);
  uint64_t calls = Stat("prep_io");
  Set("eagain_every", std::to_string(calls + 2));
  ASSERT_GE(c.Prep(0, 0, 10, 1), 0);
  EXPECT_EQ(c.Prep(10, 0, 10, 2), -EAGAIN);
  Set("fail", "submit_ios:1:-5,iovcreate:2:-12,reg_fd:1:24,wait_for_ios:1:-22");
  EXPECT_EQ(api->submit_ios(&c.ring), -EIO);
  EXPECT_EQ(api->submit_ios(&c.ring), 0);
  usrbio::Iov one = {}, two = {};
  EXPECT_EQ(api->iovcreate(&one, mount.c_str(), 4096, 0, -1), 0);
  EXPECT_EQ(api->iovcreate(&two, mount.c_str(), 4096, 0, -1), -ENOMEM);
  EXPECT_EQ(api->reg_fd(c.fd, 0), EMFILE);
  usrbio::Cqe cqe;
  EXPECT_EQ(api->wait_for_ios(&c.ring, &cqe, 1, 0, nullptr), -EINVAL);
  EXPECT_EQ(c.Wait(1).size(), 1u);
  api->iovdestroy(&one);
}

TEST_F(Hf3fsEmulator, StallsAnIoOnly) {
  Client c(this);
  Set("stall", "2");
  for (uintptr_t i = 1; i <= 3; i++) ASSERT_GE(c.Prep(i * 100, 0, 100, i), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  auto results = c.Wait(2);
  EXPECT_EQ(results.count(1) + results.count(3), 2u);
  EXPECT_TRUE(c.Wait(1, 0.05).empty());
}

TEST_F(Hf3fsEmulator, RefusesToPinMoreThanMemlock) {
  Set("memlock", "1e6");  // the client's iov has 1 MiB
  Client c(this);
  EXPECT_EQ(c.Read(0, 0, 100), -EACCES);
  OwnIov small(this, 1 << 16);
  ASSERT_GE(api->prep_io(&c.ring, &small.iov, true, small.base, c.fd, 0, 100, nullptr), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1)[0], 100);
}

TEST_F(Hf3fsEmulator, ReadsWithManyRingsAtATime) {
  Set("shuffle", "3");
  Set("latency_ms", "1");
  std::vector<std::thread> threads;
  usrbio::Iov iovs[4] = {};
  usrbio::Ior rings[4] = {};
  for (int n = 0; n < 4; n++) {  // made on one thread, used on others
    EXPECT_EQ(api->iovcreate(&iovs[n], mount.c_str(), 1 << 18, 0, -1), 0);
    EXPECT_EQ(api->iorcreate4(&rings[n], mount.c_str(), 64, true, -1, 0, -1, 0), 0);
  }
  for (int n = 0; n < 4; n++) {
    threads.emplace_back([this, n, iov = iovs[n], ring = rings[n]]() mutable {
      std::string own = WriteFile("file" + std::to_string(n), 1 << 18);
      int fd = open(own.c_str(), O_RDONLY);
      EXPECT_LE(api->reg_fd(fd, 0), 0);
      for (uint64_t i = 0; i < 64; i++)
        EXPECT_GE(api->prep_io(&ring, &iov, true, iov.base + i * 4096, fd, i * 4096, 4096, nullptr), 0);
      EXPECT_EQ(api->submit_ios(&ring), 0);
      usrbio::Cqe cqes[64];
      timespec deadline = In(60);
      EXPECT_EQ(api->wait_for_ios(&ring, cqes, 64, 64, &deadline), 64);
      for (size_t i = 0; i < 1 << 18; i++) EXPECT_EQ(iov.base[i], ByteAt(i));
      api->iordestroy(&ring);
      api->iovdestroy(&iov);
      api->dereg_fd(fd);
      close(fd);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Hf3fsEmulator, OpensWhatStartedProcessesInherit) {
  Client c(this);
  int inherited = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    char target[4096];
    ssize_t length = readlink(entry.path().c_str(), target, sizeof target - 1);
    if (length < 0 || std::string(target, static_cast<size_t>(length)).rfind(mount, 0) != 0) continue;
    inherited += (fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC) == 0;
  }
  EXPECT_EQ(inherited, 2) << "the folder of links and the duplicate of a file";
}

TEST_F(Hf3fsEmulator, RefusesUnknownSettings) {
  auto set = Call<int(const char*, const char*)>("fst_emu_hf3fs_set");
  EXPECT_EQ(set("latency", "1"), -1);
  EXPECT_EQ(set("latency_ms", "fast"), -1);
  EXPECT_EQ(set("fail", "prep_io:0:-5"), -1);
  EXPECT_EQ(set("short", "1,x"), -1);
}

}  // namespace
}  // namespace fst
