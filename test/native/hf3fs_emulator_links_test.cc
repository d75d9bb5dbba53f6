// The emulated 3FS client library when links are gone, and when the daemon is dead, restarted or stopped.
#include <cerrno>
#include <thread>

#include "hf3fs_emulator_fixture.h"

namespace fst {
namespace {

using Hf3fsEmulator = Hf3fsEmulatorTest;

TEST_F(Hf3fsEmulator, AnIovWithoutItsLinkIsUnknown) {
  Client c(this);
  OwnIov own(this, 1 << 16);
  unlink(own.link.c_str());
  ASSERT_GE(api->prep_io(&c.ring, &own.iov, true, own.base, c.fd, 0, 100, nullptr), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1)[0], -EINVAL);
}

TEST_F(Hf3fsEmulator, ALostRingIsSilentAndANewOneWorks) {
  Client c(this);
  Set("ring_lost", "2");
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_EQ(c.Wait(1).size(), 1u);
  ASSERT_GE(c.Prep(0, 0, 100, 2), 0);
  EXPECT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_TRUE(c.Wait(1, 0.05).empty());
  EXPECT_TRUE(std::filesystem::exists(mount + "/3fs-virt")) << "only the link is gone";
  api->iordestroy(&c.ring);
  ASSERT_EQ(api->iorcreate4(&c.ring, mount.c_str(), 4, true, -1, 0, -1, 0), 0);
  EXPECT_EQ(c.Read(0, 0, 100), 100);
}

TEST_F(Hf3fsEmulator, ARingLinkRemovedFromOutsideIsALostRing) {
  Client c(this);
  for (const auto& entry : std::filesystem::directory_iterator(mount + "/3fs-virt/iovs")) {
    if (entry.path().filename().string().find(".r") != std::string::npos) unlink(entry.path().c_str());
  }
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
  ASSERT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_TRUE(c.Wait(1, 0.05).empty());
}

TEST_F(Hf3fsEmulator, ADeadDaemonIsSilentAndItsMountIsGone) {
  int number;
  {
    Client c(this);
    number = c.fd;
    Set("daemon_dead", "1");
    ASSERT_GE(c.Prep(0, 0, 100, 1), 0);
    EXPECT_EQ(api->submit_ios(&c.ring), 0);
    EXPECT_TRUE(c.Wait(1, 0.05).empty());
    EXPECT_GE(c.Prep(100, 0, 100, 2), 0);
    EXPECT_EQ(api->submit_ios(&c.ring), 0);
    EXPECT_TRUE(c.Wait(1, 0.01).empty());
    struct stat st;
    EXPECT_NE(lstat((mount + "/3fs-virt").c_str(), &st), 0);
    usrbio::Ior ring = {};
    EXPECT_EQ(api->iorcreate4(&ring, mount.c_str(), 4, true, -1, 0, -1, 0), -ENOTCONN);
    EXPECT_EQ(api->reg_fd(c.fd, 0), EBADF);
  }
  Call<void()>("fst_emu_hf3fs_revive")();
  {
    // dereg_fd asked the dead mount and did nothing: the number stays taken, until a live descriptor has it.
    int fd = open((mount + "/data").c_str(), O_RDONLY), other = fcntl(fd, F_DUPFD, 200);
    ASSERT_EQ(fd, number);
    EXPECT_EQ(api->reg_fd(fd, 0), EINVAL);
    EXPECT_LE(api->reg_fd(other, 0), 0);
    EXPECT_EQ(Stat("fds"), 2u);
    api->dereg_fd(fd);
    EXPECT_EQ(Stat("fds"), 1u);
    EXPECT_LE(api->reg_fd(fd, 0), 0);
    for (int registered : {fd, other}) {
      api->dereg_fd(registered);
      close(registered);
    }
  }
  Call<void()>("fst_emu_hf3fs_reset")();
  Client again(this);
  EXPECT_EQ(again.Read(0, 0, 100), 100);
}

TEST_F(Hf3fsEmulator, ADaemonThatWasRestartedKnowsNoFileOfBefore) {
  Client c(this);
  EXPECT_EQ(c.Read(0, 0, 100), 100);
  Set("forget", "1");
  EXPECT_EQ(c.Read(0, 0, 100), -EBADF);
  EXPECT_EQ(c.Read(0, 0, 100), -EBADF) << "until it is opened and registered anew";
  int live = open(c.path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_LE(api->reg_fd(live, 0), 0);
  api->dereg_fd(c.fd);
  EXPECT_EQ(Stat("fds"), 2u) << "its daemon is gone";
  ASSERT_EQ(dup3(live, c.fd, O_CLOEXEC), c.fd);
  api->dereg_fd(c.fd);
  EXPECT_EQ(Stat("fds"), 1u);
  close(std::exchange(c.fd, live));
  EXPECT_EQ(c.Read(0, 0, 100), 100);
}

TEST_F(Hf3fsEmulator, AStoppedDaemonAnswersWhenItGoesOn) {
  Client c(this);
  Call<void(const char*)>("fst_emu_hf3fs_stop_daemon")(mount.c_str());
  std::atomic<bool> registered{false};
  std::string other = WriteFile("other", 100);
  std::thread asking([&] {
    int fd = open(other.c_str(), O_RDONLY | O_CLOEXEC);
    EXPECT_LE(api->reg_fd(fd, 0), 0);
    registered = true;
    api->dereg_fd(fd);
    close(fd);
  });
  ASSERT_GE(c.Prep(0, 0, 100, 1), 0) << "the library asks nobody";
  EXPECT_EQ(api->submit_ios(&c.ring), 0);
  EXPECT_TRUE(c.Wait(1, 0.1).empty());
  EXPECT_FALSE(registered);
  Call<void()>("fst_emu_hf3fs_continue")();
  EXPECT_EQ(c.Wait(1).at(1), 100);
  asking.join();
  EXPECT_TRUE(registered);
}

// Whoever makes a ring where the daemon's semaphores are not to be found is left with its link, as with the library.
TEST_F(Hf3fsEmulator, AFailingRingLeavesItsLink) {
  Set("fail", "iorwrap:1:-2");
  usrbio::Ior ring = {};
  EXPECT_EQ(api->iorcreate4(&ring, mount.c_str(), 4, true, -1, 0, -1, 0), -ENOENT);
  std::filesystem::directory_iterator left(mount + "/3fs-virt/iovs");
  ASSERT_NE(left, std::filesystem::directory_iterator());
  EXPECT_NE(left->path().filename().string().find(".r-1.t0"), std::string::npos);
  unlink(left->path().c_str());
}

}  // namespace
}  // namespace fst
