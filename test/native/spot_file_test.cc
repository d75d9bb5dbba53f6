// Reads by the thread that asks: all bytes, or the word that a reader has to read them; never a wait, never data of a
// file that changed.
#include "reader/spot_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <vector>

#include "support/engine_harness.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

int injected = 0;  // the errno of a read that fails

ssize_t Fails(int, const iovec*, int, off_t) {
  errno = injected;
  return -1;
}
ssize_t ReadsOneByteLess(int fd, const iovec* to, int, off_t offset) {
  return pread(fd, to->iov_base, to->iov_len - 1, offset);
}
std::string changed_path;
ssize_t ReadsWhileTheFileChanges(int fd, const iovec* to, int, off_t offset) {
  const ssize_t got = pread(fd, to->iov_base, to->iov_len, offset);
  EXPECT_EQ(truncate(changed_path.c_str(), 10), 0);
  return got;
}

class SpotFileTest : public ::testing::TestWithParam<const char*> {
 protected:
  SpotFileTest() : folder_(GetParam()) {
    for (int i = 0; i < 100000; ++i) bytes_ += static_cast<char>(i * 31 + i / 256);
    path_ = folder_.Write("m", bytes_);
    expected_ = IdentityOf(path_);
    open_before_ = Metrics::Get().open_files;
  }
  void TearDown() override {
    file_.reset();
    fds_.reset();
    EXPECT_TRUE(Eventually([this] { return Metrics::Get().open_files == open_before_; })) << Metrics::Get().open_files;
  }

  void Open(SpotFile::ReadNow read_now = nullptr) {
    Status status = SpotFile::Open(fds_, path_, expected_, &file_, read_now);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_NE(file_, nullptr);
  }
  // Whether a read of some ranges gave their bytes; fails where it gave others.
  bool Reads() {
    std::vector<char> memory(70000, '?');
    const std::vector<SpotFile::Range> ranges = {
        {0, 1, memory.data()}, {12345, 60000, memory.data() + 1}, {bytes_.size() - 7, 7, memory.data() + 60001}};
    if (!file_->Read(ranges.data(), ranges.size())) return false;
    EXPECT_EQ(std::string(memory.data(), 60008),
              bytes_.substr(0, 1) + bytes_.substr(12345, 60000) + bytes_.substr(bytes_.size() - 7));
    return true;
  }

  TempFolder folder_;
  std::string path_, bytes_;
  FileIdentity expected_;
  int64_t open_before_ = 0;
  std::shared_ptr<HeaderFdCache> fds_ = std::make_shared<HeaderFdCache>();
  std::shared_ptr<SpotFile> file_;
};

INSTANTIATE_TEST_SUITE_P(, SpotFileTest, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& info) { return std::string(info.param) == "/tmp" ? "Disk" : "Memory"; });

TEST_P(SpotFileTest, ReadsWhatIsInMemory) {
  Open();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Reads());
  EXPECT_EQ(Metrics::Get().open_files, open_before_ + 1);
}

TEST_P(SpotFileTest, LeavesToReadersWhatIsNotThereAtOnce) {
  for (int error : {EAGAIN, EOPNOTSUPP, EIO, EINTR}) {
    injected = error;
    Open(Fails);
    EXPECT_FALSE(Reads()) << error;
  }
  Open(ReadsOneByteLess);
  EXPECT_FALSE(Reads());
  EXPECT_EQ(Metrics::Get().open_files, open_before_ + 1) << "its descriptor is used again";
}

TEST_P(SpotFileTest, LeavesToReadersWhatTheDiskHas) {
  if (std::string(GetParam()) != "/tmp") GTEST_SKIP() << "on tmpfs all is in memory";
  Open();
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(fsync(fd), 0);
  std::vector<char> memory(bytes_.size());
  const SpotFile::Range whole{0, bytes_.size(), memory.data()};
  // A page that another processor is about to put on a list of the kernel's is not dropped, and a disk may be done with
  // what the read has made the kernel read before the kernel looks: then all bytes are there, which is as right.
  EXPECT_TRUE(Eventually([&] {
    if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) return false;
    if (!file_->Read(&whole, 1)) return true;
    EXPECT_EQ(std::string(memory.data(), memory.size()), bytes_);
    return false;
  }));
  close(fd);
}

TEST_P(SpotFileTest, NeverReadsPastTheEnd) {
  Open();
  std::vector<char> memory(100);
  const SpotFile::Range past{bytes_.size() - 50, 100, memory.data()};
  EXPECT_FALSE(file_->Read(&past, 1));
  const SpotFile::Range behind{bytes_.size() + 8192, 100, memory.data()};
  EXPECT_FALSE(file_->Read(&behind, 1));
}

TEST_P(SpotFileTest, LeavesAFileThatChangedToReaders) {
  Open();
  ASSERT_EQ(truncate(path_.c_str(), 50000), 0);
  EXPECT_FALSE(Reads());
}

TEST_P(SpotFileTest, LeavesAFileThatWasReplacedToReaders) {
  Open();
  const std::string other = folder_.Write("other", bytes_);
  ASSERT_EQ(rename(other.c_str(), path_.c_str()), 0);
  EXPECT_FALSE(Reads());
}

TEST_P(SpotFileTest, GivesNothingOfAFileThatChangesWhileItIsRead) {
  changed_path = path_;
  Open(ReadsWhileTheFileChanges);
  std::vector<char> memory(100);
  const SpotFile::Range range{0, 100, memory.data()};
  EXPECT_FALSE(file_->Read(&range, 1));
}

TEST_P(SpotFileTest, IsNotOpenedWhenItChangedBefore) {
  ++expected_.mtime_ns;
  EXPECT_EQ(SpotFile::Open(fds_, path_, expected_, &file_).code(), Code::FILE_CHANGED);
  EXPECT_EQ(file_, nullptr);
}

TEST_P(SpotFileTest, DescriptorsThatRunOutTakeItsOwn) {
  Open();
  EXPECT_TRUE(HeaderFdCache::EvictAll(HeaderFdCache::evictions()));
  EXPECT_FALSE(Reads());
  Open();
  EXPECT_TRUE(Reads());
}

TEST_P(SpotFileTest, ReadsNothingAfterItsDescriptorsWereClosed) {
  Open();
  fds_->Close(nullptr);
  EXPECT_FALSE(Reads());
  Open();
  EXPECT_FALSE(Reads()) << "they take no more";
}

TEST(SpotFileOfNoDisk, BelongsToReaders) {
  const std::string path = "/proc/self/status";
  FileIdentity identity;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_TRUE(FileIdentity::Of(fd, path, &identity).ok());
  close(fd);
  std::shared_ptr<SpotFile> file;
  Status status = SpotFile::Open(std::make_shared<HeaderFdCache>(), path, identity, &file);
  EXPECT_EQ(file, nullptr) << "/proc is not asked on the event loop";
}

}  // namespace
}  // namespace fst
