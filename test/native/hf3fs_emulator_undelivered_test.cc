// What a failed or short read did not bring must not be read: the emulated 3FS client library aborts where a client
// does so, and lets it be where the client has filled it.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "hf3fs_emulator_fixture.h"

namespace fst {
namespace {

// A byte of memory that may not be looked at.
__attribute__((noinline)) uint8_t Look(const volatile uint8_t* byte) { return *byte; }

TEST_F(Hf3fsStrictDeathTest, BytesOfAFailedReadTakenForData) {
  EXPECT_MISUSE(
      {
        Client c(this);
        Set("eio", "1");
        c.Read(4096, 12345, 10000);
        Look(c.iov.base + 4096);
      },
      "an unchecked completion result: .* 10000 bytes at offset 12345 of /.*/data, and its result was -5");
  EXPECT_MISUSE(
      {
        Client c(this);
        Set("eio", "1");
        c.Read(0, 0, 1 << 20);
        std::vector<uint8_t> taken(c.iov.base, c.iov.base + (1 << 20));
        Look(&taken.back());
      },
      "an unchecked completion result");
  Set("strict", "0");
  Set("eio", "1");
  Client c(this);
  EXPECT_EQ(c.Read(0, 0, 8192), -EIO);
  c.ExpectAll(kPoison, 0, 8192);
}

TEST_F(Hf3fsStrictDeathTest, RestOfAShortReadTakenForData) {
  EXPECT_MISUSE(
      {
        Client c(this);
        Set("short", "1");
        c.Read(0, 0, 16384);
        Look(c.iov.base + 8192);
      },
      "unchecked completion result: .*its result was 8192");
  EXPECT_MISUSE(
      {
        Client c(this, 8, -1, 10000);
        c.Read(0, 0, 16384);
        Look(c.iov.base + 16383);
      },
      "unchecked completion result: .*its result was 10000");
  Client c(this, 8, -1, 10000);
  EXPECT_EQ(c.Read(0, 0, 14000), 10000);
  c.ExpectFile(0, 0, 10000);
  c.ExpectAll(kPoison, 10000, 12288 - 10000);  // what shares a page with others' bytes
  c.ExpectAll(0, 14000, 4096);
}

TEST_F(Hf3fsStrictDeathTest, WhoFillsWhatDidNotArriveMayReadIt) {
  auto fill = [this](Client& c) {
    Set("short", "1");
    Set("eio", "2");
    EXPECT_EQ(c.Read(0, 0, 1 << 17), 1 << 16);
    EXPECT_EQ(c.Read(1 << 17, 0, 1 << 17), -EIO);
    memset(c.iov.base + (1 << 16), 7, 1 << 16);
    c.iov.base[1 << 17] = 7;
  };
  Client c(this);
  fill(c);
  c.ExpectFile(0, 0, 1 << 16);
  c.ExpectAll(7, 1 << 16, 1 << 16);
  EXPECT_EQ(Look(c.iov.base + (1 << 17)), 7);
  EXPECT_MISUSE(
      {
        Client other(this);
        fill(other);
        Look(other.iov.base + (1 << 17) + 4096);
      },
      "unchecked completion result: .*its result was -5");
}

TEST_F(Hf3fsStrictDeathTest, WhatDidNotArriveMayBeFilledByManyThreads) {
  Client c(this);
  Set("eio_every", "1");
  for (int round = 0; round < 20; ++round) {
    ASSERT_EQ(c.Read(0, 0, 1 << 17), -EIO);
    std::vector<std::thread> threads;
    for (int first = 0; first < 4; ++first) {
      threads.emplace_back([&c, first] {
        for (size_t at = static_cast<size_t>(first); at < 1 << 17; at += 4) c.iov.base[at] = 7;
      });
    }
    for (std::thread& thread : threads) thread.join();
    c.ExpectAll(7, 0, 1 << 17);
  }
}

TEST_F(Hf3fsStrictDeathTest, ABufferWhoseReadFailedMayBeUsedAgain) {
  Client c(this);
  for (int round = 0; round < 3; ++round) {
    Set("eio", "1");
    ASSERT_EQ(c.Read(0, 0, 1 << 16), -EIO);
    ASSERT_EQ(c.Read(10000, 777, 5000), 5000);
    c.ExpectFile(10000, 777, 5000);
    ASSERT_EQ(c.Read(0, 777, 1 << 16), 1 << 16);
    c.ExpectFile(0, 777, 1 << 16);
  }
  EXPECT_MISUSE(
      {
        Client other(this);
        Set("eio", "1");
        other.Read(0, 0, 1 << 16);
        other.Read(10000, 777, 5000);
        Look(other.iov.base + 20480);
      },
      "unchecked completion result");
}

TEST_F(Hf3fsStrictDeathTest, MemoryThatIsUsedForAnotherIovIsAsNew) {
  Client c(this);
  Set("eio_every", "1");
  void* base = nullptr;
  for (int round = 0; round < 3; ++round) {
    OwnIov own(this, 1 << 16);
    ASSERT_GE(api->prep_io(&c.ring, &own.iov, true, own.base, c.fd, 0, 1 << 16, nullptr), 0);
    ASSERT_EQ(api->submit_ios(&c.ring), 0);
    ASSERT_EQ(c.Wait(1)[0], -EIO);
    base = own.base;
  }
  void* again = mmap(base, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_EQ(again, base);
  EXPECT_EQ(Look(static_cast<uint8_t*>(again)), 0);
  munmap(again, 1 << 16);
}

TEST_F(Hf3fsStrictDeathTest, OtherFaultsGoWhereTheyWentBefore) {
  auto unlink_memory = Call<void(usrbio::Iov*)>("hf3fs_iovunlink");
  EXPECT_EXIT(
      {
        struct sigaction mine = {};
        mine.sa_handler = [](int) { _exit(7); };
        sigaction(SIGSEGV, &mine, nullptr);
        Client c(this);
        unlink_memory(&c.iov);
        Set("eio", "1");
        c.Read(0, 0, 1 << 16);
        void* none = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        Look(static_cast<uint8_t*>(none));
      },
      ::testing::ExitedWithCode(7), "");
  EXPECT_EXIT(
      {
        struct sigaction none = {};
        none.sa_handler = SIG_DFL;
        sigaction(SIGSEGV, &none, nullptr);
        Client c(this);
        unlink_memory(&c.iov);
        Set("eio", "1");
        c.Read(0, 0, 1 << 16);
        kill(getpid(), SIGSEGV);
        sleep(10);
      },
      ::testing::KilledBySignal(SIGSEGV), "");
  for (const auto& left : std::filesystem::directory_iterator(mount + "/3fs-virt/iovs"))
    std::filesystem::remove(left.path());
}

}  // namespace
}  // namespace fst
