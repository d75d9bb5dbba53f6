// io_uring by system calls: reads arrive whole, what does not goes to another way to read, and nothing is left behind.
#include "reader/ring_reads.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "reader/open_file.h"
#include "support/engine_harness.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

constexpr size_t kBlock = 4096;

class RingReadsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    files_before_ = Metrics::Get().open_files;
    const int error = RingReads::Open(
        4, queue_,
        [this](ReadRequest request, uint64_t tag) {
          request.file.reset();
          queue_->Put({Completion::Kind::kRead, tag, Status(Code::IO_ERROR, "not by the ring")});
        },
        &ring_);
    if (error != 0) GTEST_SKIP() << "no io_uring here: " << ErrnoText(error);
    ASSERT_EQ(posix_memalign(reinterpret_cast<void**>(&memory_), kBlock, 64 * kBlock), 0);
    memset(memory_, '?', 64 * kBlock);
  }
  void TearDown() override {
    ring_.reset();
    EXPECT_TRUE(Eventually([this] { return Metrics::Get().open_files == files_before_; }));
    free(memory_);
  }

  std::shared_ptr<ReaderFile> Opened(const std::string& path, int flags = O_DIRECT) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
    EXPECT_GE(fd, 0) << path;
    return std::make_shared<FdFile>(path, IdentityOf(path), UniqueFd(fd));
  }
  ReadRequest BlockOf(const std::shared_ptr<ReaderFile>& file, size_t block, size_t required = kBlock) {
    ReadRequest request;
    request.file = file;
    request.offset = block * kBlock;
    request.length = kBlock;
    request.required = required;
    request.pieces.push_back({reinterpret_cast<uint64_t>(memory_ + block * kBlock), kBlock, 0});
    return request;
  }
  std::vector<Completion> Wait(size_t count) {
    std::vector<Completion> all, some;
    while (all.size() < count) {
      queue_->Take(&some, Clock::time_point::max());
      all.insert(all.end(), some.begin(), some.end());
    }
    return all;
  }

  TempFolder folder_;
  int64_t files_before_ = 0;
  std::shared_ptr<CompletionQueue> queue_ = std::make_shared<CompletionQueue>();
  std::unique_ptr<RingReads> ring_;
  char* memory_ = nullptr;
};

TEST_F(RingReadsTest, BringsManyBlocksThroughAFewPlaces) {
  std::string bytes;
  for (size_t i = 0; i < 63 * kBlock + 100; ++i) bytes += static_cast<char>(i * 7 + i / kBlock);
  auto file = Opened(folder_.Write("m", bytes));
  std::vector<bool> seen(64);
  size_t in_flight = 0;
  auto take = [&](size_t count) {
    for (const Completion& completion : Wait(count)) {
      EXPECT_EQ(completion.kind, Completion::Kind::kRead);
      EXPECT_TRUE(completion.status.ok()) << completion.status.message();
      EXPECT_FALSE(seen[completion.tag]);
      seen[completion.tag] = true;
      --in_flight;
    }
  };
  for (size_t block = 0; block < 64; ++block) {
    ReadRequest request = BlockOf(file, block, block == 63 ? 100 : kBlock);
    while (!ring_->Read(&request, block)) {
      EXPECT_EQ(request.file, file) << "a read that was not taken is still the caller's";
      EXPECT_GT(in_flight, 0U);
      take(1);
    }
    EXPECT_EQ(request.file, nullptr);
    ++in_flight;
  }
  take(in_flight);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 64);
  EXPECT_EQ(std::string(memory_, bytes.size()), bytes);
}

TEST_F(RingReadsTest, LeavesToOthersWhatItCannotBringWhole) {
  auto shrunk = Opened(folder_.Write("m", std::string(2 * kBlock, 'x')));
  ASSERT_EQ(truncate(folder_.Path("m").c_str(), kBlock + 10), 0);
  ReadRequest request = BlockOf(shrunk, 1);
  ASSERT_TRUE(ring_->Read(&request, 5));
  EXPECT_EQ(Wait(1)[0].status.message(), "not by the ring");
  const int folder = open(folder_.Path("").c_str(), O_RDONLY | O_CLOEXEC | O_DIRECTORY);
  request = BlockOf(std::make_shared<FdFile>("folder", shrunk->identity(), UniqueFd(folder)), 0);
  ASSERT_TRUE(ring_->Read(&request, 6));
  EXPECT_EQ(Wait(1)[0].status.message(), "not by the ring") << "EISDIR";
  request = BlockOf(shrunk, 0);
  request.pieces.push_back(request.pieces[0]);
  EXPECT_FALSE(ring_->Read(&request, 7)) << "two pieces";
}

TEST_F(RingReadsTest, GivesNothingOfAFileThatHasChanged) {
  auto file = Opened(folder_.Write("m", std::string(2 * kBlock, 'x')));
  ASSERT_EQ(truncate(folder_.Path("m").c_str(), 3 * kBlock), 0);
  ReadRequest request = BlockOf(file, 0);
  file.reset();
  ASSERT_TRUE(ring_->Read(&request, 1));
  EXPECT_EQ(Wait(1)[0].status.code(), Code::FILE_CHANGED);
  EXPECT_EQ(Metrics::Get().open_files, files_before_ + 1) << "the file is closed before its read completes";
}

TEST_F(RingReadsTest, EndsAtOnceWhenNothingIsInFlight) {
  ring_.reset();
  EXPECT_EQ(Metrics::Get().open_files, files_before_);
}

TEST_F(RingReadsTest, LeavesAReadThatHangsToItsThread) {
  int pipe[2];
  ASSERT_EQ(pipe2(pipe, O_CLOEXEC), 0);
  std::shared_ptr<ReaderFile> file =
      std::make_shared<FdFile>("pipe", IdentityOf(folder_.Write("m", "x")), UniqueFd(pipe[0]));
  ReadRequest request = BlockOf(file, 0, 1);
  file.reset();
  ASSERT_TRUE(ring_->Read(&request, 1));
  ring_.reset();
  EXPECT_EQ(Metrics::Get().open_files, files_before_ + 2) << "the ring, and what it reads";
  ASSERT_EQ(write(pipe[1], "bytes", 5), 5);
  EXPECT_EQ(Wait(1)[0].status.code(), Code::IO_ERROR) << "not a regular file: what arrived is not handed out";
  EXPECT_EQ(memcmp(memory_, "bytes", 5), 0);
  close(pipe[1]);
}

}  // namespace
}  // namespace fst
