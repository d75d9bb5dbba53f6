#include "reader/usrbio/usrbio_sweep.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace fst::usrbio {
namespace {

// A file of /dev/shm that is open until Abandon: loaders of other tests sweep, too.
class Left {
 public:
  explicit Left(size_t bytes = 8192, const char* prefix = "hf3fs-iov-") {
    path_ =
        std::string("/dev/shm/") + prefix + "sweep-test-" + std::to_string(getpid()) + "-" + std::to_string(++made_);
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    EXPECT_GE(fd_, 0) << path_;
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(bytes)), 0);
  }
  ~Left() {
    Abandon();
    unlink(path_.c_str());
  }
  void Abandon() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }
  const char* path() const { return path_.c_str(); }
  bool exists() const {
    struct stat st;
    return lstat(path(), &st) == 0;
  }

 private:
  static int made_;
  int fd_;
  std::string path_;
};
int Left::made_ = 0;

TEST(UsrbioSweep, WhatNobodyHasOpenGoes) {
  Left buffer(48 << 20), ring(50'000);
  buffer.Abandon();
  ring.Abandon();
  SweepShm();
  EXPECT_FALSE(buffer.exists());
  EXPECT_FALSE(ring.exists());
}

TEST(UsrbioSweep, WhatSomebodyHasOpenStays) {
  Left left;
  EXPECT_GE(SweepShm(), 1u);
  EXPECT_TRUE(left.exists());
  // As the client library: mapped, and its descriptor closed.
  void* memory = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, left.fd(), 0);
  ASSERT_NE(memory, MAP_FAILED);
  left.Abandon();
  EXPECT_GE(SweepShm(), 1u);
  EXPECT_TRUE(left.exists());
  munmap(memory, 8192);
  SweepShm();
  EXPECT_FALSE(left.exists());
}

TEST(UsrbioSweep, WhatAnotherProcessHasOpenStaysUntilThatDies) {
  Left left;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  pid_t child = fork();
  if (child == 0) {
    (void)!write(ready[1], "1", 1);
    for (;;) pause();
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  left.Abandon();
  SweepShm();
  EXPECT_TRUE(left.exists());
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  SweepShm();
  EXPECT_FALSE(left.exists());
  close(ready[0]);
  close(ready[1]);
}

TEST(UsrbioSweep, EmptyFileStaysWhileItsMakerMayBeAboutToOpenIt) {
  Left left(0);
  left.Abandon();
  EXPECT_GE(SweepShm(), 1u);
  EXPECT_TRUE(left.exists());
  timespec long_ago[2] = {{1, 0}, {1, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, left.path(), long_ago, 0), 0);
  SweepShm();
  EXPECT_FALSE(left.exists());
}

TEST(UsrbioSweep, OtherNamesAndUsersAndKindsStay) {
  Left other(8192, "fst-");
  other.Abandon();
  SweepShm();
  EXPECT_TRUE(other.exists());

  const std::string link = "/dev/shm/hf3fs-iov-link-" + std::to_string(getpid());
  ASSERT_EQ(symlink(other.path(), link.c_str()), 0);
  SweepShm();
  EXPECT_EQ(unlink(link.c_str()), 0);
  EXPECT_TRUE(other.exists());

  Left of_another_user;
  if (chown(of_another_user.path(), 65534, 65534) != 0) GTEST_SKIP() << "only root gives files away";
  of_another_user.Abandon();
  SweepShm();
  EXPECT_TRUE(of_another_user.exists());
}

}  // namespace
}  // namespace fst::usrbio
