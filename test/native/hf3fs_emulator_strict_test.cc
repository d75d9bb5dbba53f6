// What the emulated 3FS client library refuses: each misuse aborts the process with a line that names it, and with
// STRICT=0 is what the real library makes of it.
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "hf3fs_emulator_fixture.h"

namespace fst {
namespace {

TEST_F(Hf3fsStrictDeathTest, PrepOrSubmitOrWaitFromAnotherThread) {
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 10, 1);
        c.api->submit_ios(&c.ring);
        std::thread([&c] { c.Prep(10, 0, 10); }).join();
      },
      "prep_io from another thread");
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 10);
        std::thread([&c] { c.api->submit_ios(&c.ring); }).join();
      },
      "submit_ios from another thread");
  EXPECT_MISUSE(
      {
        Client c(this);
        std::atomic<bool> go{false};
        auto submit = [&] {
          while (!go) {
          }
          for (int i = 0; i < 1000000; ++i) c.api->submit_ios(&c.ring);
        };
        std::thread one(submit);
        std::thread other(submit);
        go = true;
        one.join();
        other.join();
      },
      "submit_ios while another thread prepares or submits");
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Read(0, 0, 10);
        std::thread([&c] { c.Wait(1, 0.001); }).join();
      },
      "wait_for_ios from another thread");
}

// As the library: one thread at a time.
TEST_F(Hf3fsEmulatorTest, AnotherThreadMayTakeARingOverWhileNothingIsInFlight) {
  Client c(this);
  for (uintptr_t tag = 1; tag <= 3; ++tag) {
    std::thread([&] {
      EXPECT_GE(c.Prep(0, 0, 10, tag), 0);
      EXPECT_EQ(c.api->submit_ios(&c.ring), 0);
    }).join();
    EXPECT_EQ(c.Wait(1).count(tag), 1u);
    c.ExpectFile(0, 0, 10);
  }
}

TEST_F(Hf3fsStrictDeathTest, MakingOnAnotherThreadThanTheFirst) {
  EXPECT_MISUSE(
      {
        Client c(this);
        usrbio::Ior ring = {};
        std::thread([&] { api->iorcreate4(&ring, mount.c_str(), 4, true, -1, 0, -1, 0); }).join();
      },
      "iorcreate on thread .* the first on this mount was thread");
  EXPECT_MISUSE(
      {
        Client c(this);
        usrbio::Iov iov = {};
        std::thread([&] { api->iovcreate(&iov, mount.c_str(), 4096, 0, -1); }).join();
      },
      "iovcreate on thread");
  EXPECT_MISUSE(
      {
        Client c(this);
        std::thread([this] { OwnIov own(this, 4096); }).join();
      },
      "iovwrap on thread");
}

TEST_F(Hf3fsStrictDeathTest, NoOrPastDeadline) {
  usrbio::Cqe cqe;
  EXPECT_MISUSE(
      {
        Client c(this);
        api->wait_for_ios(&c.ring, &cqe, 1, 1, nullptr);
      },
      "without a deadline");
  EXPECT_MISUSE(
      {
        Client c(this);
        timespec relative = {};
        relative.tv_sec = 5;
        api->wait_for_ios(&c.ring, &cqe, 1, 1, &relative);
      },
      "deadline that is past");
  EXPECT_MISUSE(
      {
        Client c(this);
        timespec wrong = In(5);
        wrong.tv_nsec = 1000000000;
        api->wait_for_ios(&c.ring, &cqe, 1, 1, &wrong);
      },
      "no time");
}

TEST_F(Hf3fsStrictDeathTest, OverlappingBuffers) {
  for (size_t at : {0, 50, 99}) {
    EXPECT_MISUSE(
        {
          Client c(this);
          c.Prep(50, 0, 50, 1);
          c.Prep(at, 0, 51, 2);
        },
        "overlaps that of io 1");
  }
  {
    Client c(this);
    EXPECT_GE(c.Prep(50, 0, 50, 1), 0);
    EXPECT_GE(c.Prep(0, 0, 50, 2), 0);
    EXPECT_GE(c.Prep(100, 0, 50, 3), 0);
    EXPECT_EQ(api->submit_ios(&c.ring), 0);
    EXPECT_EQ(c.Wait(3).size(), 3u);
  }
  Set("strict", "0");
  Client c(this, 8, 0);
  EXPECT_GE(c.Prep(0, 0, 50, 1), 0);
  EXPECT_GE(c.Prep(49, 0, 50, 2), 0);
  EXPECT_GE(c.Prep(200, 0, 50, 3), 0);
  EXPECT_EQ(api->submit_ios(&c.ring), 0);
  for (const auto& result : c.Wait(3)) EXPECT_EQ(result.second, -EIO) << "the whole job";
}

TEST_F(Hf3fsStrictDeathTest, ReuseBeforeTheCompletionIsTaken) {
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 100, 1);
        c.Prep(100, 0, 100, 2);
        c.api->submit_ios(&c.ring);
        for (uint64_t bytes = 0; bytes < 200; bytes = Stat("bytes")) std::this_thread::yield();
        size_t other = c.Wait(1).count(1) ? 100 : 0;
        c.Prep(other, 0, 100, 3);
      },
      "whose completion was not taken");
}

TEST_F(Hf3fsStrictDeathTest, CrossingABlock) {
  auto cross = [](Client& c) { return c.Prep(4000, 0, 97, 1); };
  EXPECT_MISUSE(
      {
        Client c(this, 8, -1, 1 << 20, 4096);
        cross(c);
      },
      "crosses a block of 4096");
  Set("strict", "0");
  Client c(this, 8, 0, 1 << 20, 4096);
  ASSERT_GE(cross(c), 0);
  ASSERT_GE(c.Prep(8192, 0, 4096, 2), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  auto results = c.Wait(2);
  EXPECT_EQ(results[1], -EINVAL);
  EXPECT_EQ(results[2], 4096) << "of the same job";
}

TEST_F(Hf3fsStrictDeathTest, PreparedAndNotSubmitted) {
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 100, 1);
        c.Wait(1, 0.01);
      },
      "1 ios were prepared and not submitted");
  Set("strict", "0");
  Client c(this);
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  EXPECT_TRUE(c.Wait(1, 0.02).empty());
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1).size(), 1u);
}

TEST_F(Hf3fsStrictDeathTest, RemainderOfABatch) {
  EXPECT_MISUSE(
      {
        Client c(this, 8, 4);
        for (uintptr_t i = 0; i < 6; i++) c.Prep(i * 100, 0, 100, i);
        c.api->submit_ios(&c.ring);
        c.Wait(6, 0.01);
      },
      "io_depth 4 runs exact batches only, and 2 ios remain");
  Client c(this, 8, 4);
  for (uintptr_t i = 0; i < 6; i++) ASSERT_GE(c.Prep(i * 100, 0, 100, i), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(4).size(), 4u) << "a wait for what does run is right";
  for (uintptr_t i = 6; i < 8; i++) ASSERT_GE(c.Prep(i * 100, 0, 100, i), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(4).size(), 4u);
}

TEST_F(Hf3fsStrictDeathTest, RingOptionsThatHangOrLeak) {
  usrbio::Ior ring = {};
  EXPECT_MISUSE(api->iorcreate4(&ring, mount.c_str(), 4, true, -1, 5, -1, 0),
                "timeout: a partial batch would never run");
  EXPECT_MISUSE(api->iorcreate4(&ring, mount.c_str(), 4, true, -1, 0, -1, 2), "leaks the ring's link");
  EXPECT_MISUSE(api->iorcreate4(&ring, mount.c_str(), 0, true, -1, 0, -1, 0), "with 0 entries");
}

TEST_F(Hf3fsStrictDeathTest, SizesThatCrashTheLibrary) {
  usrbio::Iov iov = {};
  EXPECT_MISUSE(api->iovcreate(&iov, mount.c_str(), 0, 0, -1), "size 0");
  EXPECT_MISUSE(api->iovcreate(&iov, mount.c_str(), 4096, 8192, -1), "block_size above the size");
  uint8_t id[16] = {}, memory[16];
  EXPECT_MISUSE(api->iovwrap(&iov, memory, id, mount.c_str(), 0, 0, -1), "size 0");
  auto extract = Call<int(char*, int, const char*)>("hf3fs_extract_mount_point");
  char out[256];
  EXPECT_MISUSE(extract(out, sizeof out, (mount + "/absent").c_str()), "does not exist");
  EXPECT_EQ(extract(out, sizeof out, (mount + "/3fs-virt").c_str()), static_cast<int>(mount.size()) + 1);
  EXPECT_EQ(std::string(out), mount);
}

TEST_F(Hf3fsStrictDeathTest, CloseBeforeDereg) {
  EXPECT_MISUSE(
      {
        Client c(this);
        close(c.fd);
        api->dereg_fd(c.fd);
      },
      "was closed before dereg_fd");
  EXPECT_MISUSE(
      {
        Client c(this);
        std::string other = WriteFile("other", 10);
        close(c.fd);
        api->reg_fd(open(other.c_str(), O_RDONLY), 0);
      },
      "closed before dereg_fd, and its number is registered again");
  EXPECT_MISUSE(
      {
        Client c(this);
        close(c.fd);
        c.Prep(0, 0, 10);
      },
      "which was closed before dereg_fd");
}

TEST_F(Hf3fsStrictDeathTest, CloseBeforeDeregOfAFileThatIsOpenAgain) {
  int one = open("/", O_RDONLY), two = open("/", O_RDONLY);
  long order = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, one, two);
  close(one);
  close(two);
  if (order < 0) GTEST_SKIP() << "no kcmp here, so one opening of a file cannot be told from another";
  EXPECT_MISUSE(
      {
        Client c(this);
        close(c.fd);
        EXPECT_EQ(open(c.path.c_str(), O_RDONLY), c.fd);
        c.Prep(0, 0, 10);
      },
      "which was closed before dereg_fd");
}

TEST_F(Hf3fsStrictDeathTest, DeregTwiceOrOfADuplicateOrUnderIo) {
  EXPECT_MISUSE(
      {
        Client c(this);
        api->dereg_fd(c.fd);
        api->dereg_fd(c.fd);
      },
      "not registered .a second dereg_fd");
  EXPECT_MISUSE(
      {
        std::string path = WriteFile("dup", 10);
        int copy = api->reg_fd(open(path.c_str(), O_RDONLY), 0);
        api->dereg_fd(-copy);
      },
      "duplicate that belongs to the library");
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 10);
        api->dereg_fd(c.fd);
      },
      "1 ios of its file in flight");
}

TEST_F(Hf3fsStrictDeathTest, PositiveAnswerOfRegFdTakenAsSuccess) {
  EXPECT_MISUSE(
      {
        Client c(this);
        int outside = open("/", O_RDONLY);
        api->reg_fd(outside, 0);
        api->prep_io(&c.ring, &c.iov, true, c.iov.base, outside, 0, 10, nullptr);
      },
      "reg_fd answered 9 .*positive answer is an errno");
  Set("strict", "0");
  Client c(this);
  EXPECT_EQ(api->prep_io(&c.ring, &c.iov, true, c.iov.base, 12345, 0, 10, nullptr), -EBADF);
}

TEST_F(Hf3fsStrictDeathTest, DestroyUnderIo) {
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 10);
        api->iordestroy(&c.ring);
      },
      "iordestroy with 1 ios in flight");
  EXPECT_MISUSE(
      {
        Client c(this);
        c.Prep(0, 0, 10);
        api->iovdestroy(&c.iov);
      },
      "iovdestroy with 1 ios in flight");
}

TEST_F(Hf3fsStrictDeathTest, IovsThatAreNone) {
  EXPECT_MISUSE(
      {
        OwnIov own(this, 4096);
        api->iovdestroy(&own.iov);
      },
      "was wrapped or destroyed before");
  EXPECT_MISUSE(
      {
        Client c(this);
        usrbio::Iov copy = c.iov;
        api->iovdestroy(&c.iov);
        api->prep_io(&c.ring, &copy, true, copy.base, c.fd, 0, 10, nullptr);
      },
      "neither created nor wrapped");
  EXPECT_MISUSE(
      {
        Client c(this);
        OwnIov own(this, 4096);
        OwnIov other(this, 4096);
        uint8_t id[16];
        memcpy(id, own.iov.id, 16);
        api->iovwrap(&own.iov, other.base, id, mount.c_str(), 4096, 0, -1);
        api->prep_io(&c.ring, &own.iov, true, other.base, c.fd, 0, 10, nullptr);
      },
      "prep_io on a wrapped iov: its memory is a mapping of");
  EXPECT_MISUSE(
      {
        Client c(this);
        OwnIov own(this, 8192);
        mmap(own.base, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        api->prep_io(&c.ring, &own.iov, true, own.base, c.fd, 0, 10, nullptr);
      },
      "prep_io on a wrapped iov: its memory");
}

TEST_F(Hf3fsStrictDeathTest, AnIovMappedPrivately) {
  EXPECT_MISUSE(
      {
        Client c(this);
        OwnIov own(this, 8192);
        std::string file = "/proc/self/fd/" + std::to_string(own.fd);
        int fd = open(file.c_str(), O_RDWR);
        mmap(own.base, own.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
        api->prep_io(&c.ring, &own.iov, true, own.base, c.fd, 0, 10, nullptr);
      },
      "mapped privately");
}

TEST_F(Hf3fsStrictDeathTest, UnmapUnderIo) {
  EXPECT_MISUSE(
      {
        Client c(this);
        OwnIov own(this, 1 << 16);
        api->prep_io(&c.ring, &own.iov, true, own.base, c.fd, 0, 1 << 16, nullptr);
        // As munmap, but nothing else can be mapped into the gap meanwhile.
        mmap(own.base, own.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        api->submit_ios(&c.ring);
        c.Wait(1);
      },
      "unmapped while the io was in flight");
}

TEST_F(Hf3fsStrictDeathTest, UnmapWhileRegisteredWithCuda) {
  const char* cuda = FST_BINARY_DIR "/test-support/libregistered_memory.so";
  setenv("FASTSAFETENSORS_CUDA_LIB", cuda, 1);
  EXPECT_MISUSE(
      {
        SharedLibrary library;
        EXPECT_TRUE(SharedLibrary::Open(cuda, &library).ok());
        Client c(this);
        setenv("FST_TEST_REGISTERED", "1", 1);
        api->iovdestroy(&c.iov);
      },
      "still registered with CUDA");
  { Client not_loaded(this); }
  SharedLibrary library;
  ASSERT_TRUE(SharedLibrary::Open(cuda, &library).ok());
  { Client not_registered(this); }
  unsetenv("FASTSAFETENSORS_CUDA_LIB");
}

TEST_F(Hf3fsStrictDeathTest, UseOfADestroyedRing) {
  EXPECT_MISUSE(
      {
        Client c(this);
        usrbio::Ior copy = c.ring;
        api->iordestroy(&c.ring);
        api->submit_ios(&copy);
      },
      "used after iordestroy");
}

TEST_F(Hf3fsStrictDeathTest, LeftAtExit) {
  EXPECT_MISUSE(
      {
        static Client* left = new Client(this);  // static: not a leak of memory
        static OwnIov* own = new OwnIov(this, 4096);
        exit(left == nullptr || own == nullptr ? 1 : 0);
      },
      "left at exit: ring .*/3fs-virt/iovs/.* iov .* of 1048576 bytes.* fd .*/data");
  EXPECT_EXIT(
      {
        Set("strict", "0");
        static Client* left = new Client(this);
        exit(left == nullptr ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "left at exit: ring ");
  EXPECT_TRUE(std::filesystem::is_empty(mount + "/3fs-virt/iovs")) << "what it made is gone after an abort, too";
}

TEST_F(Hf3fsStrictDeathTest, CleansUpAfterADeadDaemonAtExit) {
  EXPECT_EXIT(
      {
        Call<void(const char*)>("fst_emu_hf3fs_kill_daemon")(mount.c_str());
        exit(access((mount + "/3fs-virt").c_str(), F_OK) == 0 ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "");
  EXPECT_TRUE(std::filesystem::exists(mount + "/3fs-virt/iovs"));
}

TEST_F(Hf3fsStrictDeathTest, MisspelledVariable) {
  setenv("FST_EMU_HF3FS_LATENCY", "5", 1);
  EXPECT_MISUSE(Call<void()>("fst_emu_hf3fs_reset")(), "FST_EMU_HF3FS_LATENCY=5 is no setting");
  unsetenv("FST_EMU_HF3FS_LATENCY");
}

}  // namespace
}  // namespace fst
