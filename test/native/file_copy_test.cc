// Copies from file to file: every byte at its place, or an error that says which of the two files is at fault.
#include "reader/file_copy.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "base/fd.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

std::string Bytes(size_t count) {
  std::string bytes(count, '\0');
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>((i * 2654435761U >> 13) ^ i);
  return bytes;
}

std::string ReadAll(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  EXPECT_EQ(fstat(fd.get(), &info), 0);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  EXPECT_EQ(pread(fd.get(), bytes.data(), bytes.size(), 0), info.st_size);
  return bytes;
}

class FileCopyTest : public ::testing::Test {
 protected:
  Status Copy(const FileIdentity& expected, const std::vector<CopyRange>& ranges, const std::string& target) {
    const UniqueFd fd(open(target.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd.valid());
    return CopyRanges(source_, expected, ranges, {fd.get(), 0, target, true}, &progress_);
  }

  TempFolder folder_;
  const std::string bytes_ = Bytes((3 << 20) + 123);
  const std::string source_ = folder_.Write("source", bytes_), target_ = folder_.Path("target");
  std::atomic<uint64_t> progress_{0};
};

TEST_F(FileCopyTest, PutsEachRangeWhereItBelongs) {
  const uint64_t large = (2 << 20) + 77;  // more than a piece, and no whole number of them
  ASSERT_TRUE(Copy(IdentityOf(source_), {{1001, large, 9}, {5, 0, 3}, {0, 9, 0}}, target_).ok());
  EXPECT_TRUE(ReadAll(target_) == bytes_.substr(0, 9) + bytes_.substr(1001, large));
  EXPECT_EQ(progress_, large + 9);
}

// The kernel copies the pages between the edges.
TEST_F(FileCopyTest, PutsPagesWithTheirEdgesWhereTheyBelong) {
  for (uint64_t inside : {0, 1, 4095}) {
    const uint64_t offset = 4096 + inside, position = 8192 + inside, length = (2 << 20) + 77;
    progress_ = 0;
    ASSERT_TRUE(Copy(IdentityOf(source_), {{0, position, 0}, {offset, length, position}}, target_).ok());
    EXPECT_TRUE(ReadAll(target_).substr(0, position + length) ==
                bytes_.substr(0, position) + bytes_.substr(offset, length))
        << inside;
    EXPECT_EQ(progress_, position + length);
  }
}

TEST_F(FileCopyTest, NoticesASourceThatIsAnotherOrShorter) {
  const FileIdentity before = IdentityOf(source_);
  FileIdentity other = before;
  ++other.mtime_ns;
  EXPECT_EQ(Copy(other, {{0, 9, 0}}, target_).code(), Code::FILE_CHANGED);
  EXPECT_EQ(progress_, 0u);
  EXPECT_EQ(Copy(before, {{bytes_.size() - 9, 10, 0}}, target_).code(), Code::UNEXPECTED_EOF);
  const uint64_t page = 1 << 20;
  EXPECT_EQ(Copy(before, {{page, bytes_.size() - page + 1, 0}}, target_).code(), Code::UNEXPECTED_EOF);
  EXPECT_EQ(Copy(before, {{page + 1, bytes_.size() - page, 0}}, target_).code(), Code::UNEXPECTED_EOF);
}

// The target is the source: its bytes change while they are read.
TEST_F(FileCopyTest, NoticesASourceThatIsWrittenMeanwhile) {
  EXPECT_EQ(Copy(IdentityOf(source_), {{0, 9, bytes_.size()}}, source_).code(), Code::FILE_CHANGED);
}

TEST_F(FileCopyTest, SaysThatTheTargetIsFull) {
  const Status status = Copy(IdentityOf(source_), {{0, 2 << 20, 0}}, "/dev/full");
  EXPECT_EQ(status.code(), Code::IO_ERROR);
  EXPECT_NE(status.message().find("cannot write /dev/full: "), std::string::npos) << status.message();
}

}  // namespace
}  // namespace fst
