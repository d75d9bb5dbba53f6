#include "base/probe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

namespace fst {
namespace {

class ProbeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/probe-XXXXXX";
    int fd = mkstemp(name);
    ASSERT_GE(fd, 0);
    path_ = name;
    ASSERT_EQ(ftruncate(fd, 4096), 0);
    ASSERT_EQ(close(fd), 0);
  }
  void TearDown() override { unlink(path_.c_str()); }

  std::string path_;
};

TEST_F(ProbeTest, FileThatNobodyWritesCanBeLeasedAndLookedAt) {
  FileProbe found;
  ASSERT_TRUE(ProbeFile(path_, &found).ok());
  EXPECT_EQ(found.resident_map, 0);
  EXPECT_EQ(found.lease, 0);
  EXPECT_TRUE(found.resident_read == 0 || found.resident_read == EOPNOTSUPP) << found.resident_read;
  EXPECT_TRUE(found.cache_counts == 0 || found.cache_counts == ENOSYS) << found.cache_counts;
}

TEST_F(ProbeTest, FileThatIsOpenForWritingCannotBeLeased) {
  int writer = open(path_.c_str(), O_WRONLY);
  FileProbe found;
  ASSERT_TRUE(ProbeFile(path_, &found).ok());
  EXPECT_EQ(found.lease, EAGAIN);
  close(writer);
  ASSERT_TRUE(ProbeFile(path_, &found).ok());
  EXPECT_EQ(found.lease, 0);
}

TEST_F(ProbeTest, LeaseIsGivenBack) {
  FileProbe found;
  ASSERT_TRUE(ProbeFile(path_, &found).ok());
  int writer = open(path_.c_str(), O_WRONLY | O_NONBLOCK);  // EWOULDBLOCK where a lease is held
  EXPECT_GE(writer, 0);
  close(writer);
}

TEST_F(ProbeTest, FileThatIsNotThereIsAnError) {
  FileProbe found;
  EXPECT_EQ(ProbeFile(path_ + ".none", &found).code(), Code::IO_ERROR);
}

TEST_F(ProbeTest, ProbesOfTheSystemLeaveNoDescriptor) {
  int before = dup(0);
  close(before);
  SystemProbe found = ProbeSystem();
  EXPECT_TRUE(found.io_uring == 0 || found.io_uring == EPERM || found.io_uring == ENOSYS) << found.io_uring;
  int after = dup(0);
  EXPECT_EQ(after, before);
  close(after);
}

}  // namespace
}  // namespace fst
