// Opening the file that a header was read from: what fails is said by value, never by what errno happens to be.
#include "reader/open_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "support/temp_folder.h"

namespace fst {
namespace {

class OpenFileTest : public ::testing::Test {
 protected:
  // OpenUnchanged with an errno left behind by somebody else.
  Status Open(const std::string& path, const FileIdentity& expected, int flags = 0) {
    fd_ = UniqueFd();
    errno = EMFILE;
    Status status = OpenUnchanged(path, flags, expected, &fd_);
    error_ = status.os_error();
    return status;
  }

  TempFolder folder_;
  UniqueFd fd_;
  int error_ = -1;
};

TEST_F(OpenFileTest, GivesTheErrnoOfOpenAndOfNothingElse) {
  const std::string path = folder_.Write("m", "some bytes");
  FileIdentity expected = IdentityOf(path);
  EXPECT_TRUE(Open(path, expected).ok());
  EXPECT_TRUE(fd_.valid());
  EXPECT_EQ(error_, 0);

  Status status = Open(folder_.Path("absent"), expected);
  EXPECT_EQ(status.code(), Code::IO_ERROR);
  EXPECT_NE(status.message().find("ENOENT"), std::string::npos) << status.message();
  EXPECT_EQ(error_, ENOENT);

  EXPECT_EQ(Open(folder_.Path(""), expected).code(), Code::IO_ERROR);
  EXPECT_EQ(error_, 0) << "a folder can be opened";

  ++expected.mtime_ns;
  EXPECT_EQ(Open(path, expected).code(), Code::FILE_CHANGED);
  EXPECT_FALSE(fd_.valid());
  EXPECT_EQ(error_, 0) << "another version of the file can be opened";
}

// Files of the kernel itself have no O_DIRECT.
TEST_F(OpenFileTest, ReadsBufferedOnlyWhatRefusesDirectReads) {
  const std::string status_file = "/proc/self/status", path = folder_.Write("m", "some bytes");
  FileIdentity expected = IdentityOf(status_file);
  if (expected != IdentityOf(status_file)) GTEST_SKIP() << status_file << " changes its identity by itself here";
  EXPECT_EQ(Open(status_file, expected, O_DIRECT).code(), Code::IO_ERROR);
  ASSERT_EQ(error_, EINVAL) << "this kernel opens " << status_file << " with O_DIRECT: the test needs another file";
  bool direct = true;
  EXPECT_TRUE(OpenDirect(status_file, expected, &fd_, &direct).ok());
  EXPECT_TRUE(fd_.valid());
  EXPECT_FALSE(direct);

  errno = EINVAL;
  EXPECT_EQ(OpenDirect(path, expected, &fd_, &direct).code(), Code::FILE_CHANGED);
  EXPECT_TRUE(direct) << "a file that has changed is no reason to read in another way";
  EXPECT_EQ(OpenDirect(folder_.Path("absent"), expected, &fd_, &direct).code(), Code::IO_ERROR);
  EXPECT_TRUE(direct);
}

}  // namespace
}  // namespace fst
