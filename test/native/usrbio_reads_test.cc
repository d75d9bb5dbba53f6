// What a USRBIO reader makes of completions: whose they are, and whether they are data.
#include "reader/usrbio/usrbio_reads.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <string>

#include "reader/usrbio/usrbio_files.h"

namespace fst::usrbio {
namespace {

struct Number : Descriptor {
  explicit Number(int number) : Descriptor(number) {}
};

// A file that the daemon knows by its last descriptor only.
class NoFile : public RegisteredFile {
 public:
  NoFile() : RegisteredFile("/mount/file", {}) {}
  std::shared_ptr<Descriptor> descriptor() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return descriptor_;
  }
  Status Renew(const Descriptor& known) override {
    ++renewals;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!renewing.ok()) return renewing;
    if (&known == descriptor_.get()) descriptor_ = std::make_shared<Number>(known.number + 1);
    return Status::Ok();
  }
  Status CheckUnchanged() override { return Status::Ok(); }

  Status renewing;
  std::atomic<int> renewals{0};

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Descriptor> descriptor_ = std::make_shared<Number>(7);
};

class UsrbioReadsTest : public ::testing::Test {
 protected:
  void Add(uint64_t tag) {
    ReadRequest request;
    request.file = file;
    request.length = request.required = sizeof bytes;
    request.pieces.push_back({reinterpret_cast<uint64_t>(bytes), sizeof bytes, reinterpret_cast<uint64_t>(bytes)});
    reads->Add(std::move(request), tag);
  }
  uint64_t Take() {
    Reads::Next next;
    EXPECT_TRUE(reads->TakeWaiting(&next));
    return next.userdata;
  }
  void Complete(uint64_t userdata, int64_t result) {
    Cqe completion = {};
    completion.result = result;
    completion.userdata = reinterpret_cast<const void*>(userdata);  // NOLINT(performance-no-int-to-ptr)
    reads->Completed(&completion, 1);
  }
  // What has completed: tag and code.
  std::vector<std::pair<uint64_t, std::string>> Taken() {
    std::vector<Completion> completions;
    queue->Wake();
    queue->Take(&completions, Clock::time_point::max());
    std::vector<std::pair<uint64_t, std::string>> taken;
    for (const Completion& c : completions) taken.emplace_back(c.tag, c.status.ok() ? "OK" : CodeName(c.status.code()));
    return taken;
  }
  using List = std::vector<std::pair<uint64_t, std::string>>;
  // What checkers make of completions comes later.
  List WaitForOne() {
    for (int i = 0; i < 10000; ++i) {
      List taken = Taken();
      if (!taken.empty()) return taken;
      usleep(1000);
    }
    return {};
  }
  Reads::Next WaitForNext() {
    Reads::Next next = {};
    for (int i = 0; i < 10000 && !reads->TakeWaiting(&next); ++i) usleep(1000);
    return next;
  }

  uint8_t bytes[64] = {};
  std::shared_ptr<NoFile> file = std::make_shared<NoFile>();
  std::shared_ptr<CompletionQueue> queue = std::make_shared<CompletionQueue>();
  std::shared_ptr<Reads> reads = std::make_shared<Reads>(queue, "/mount");
};

TEST_F(UsrbioReadsTest, ACompletionOfAnEarlierRingIsNobodys) {
  Add(1);
  const uint64_t former = Take();
  reads->EndGeneration();
  Complete(former, sizeof bytes);
  EXPECT_EQ(Taken(), List());
  reads->BeginGeneration({});
  const uint64_t now = Take();
  EXPECT_NE(former, now);
  Complete(former, sizeof bytes);
  Complete(former, -EIO);
  EXPECT_EQ(Taken(), List());
  Complete(now, sizeof bytes);
  EXPECT_EQ(Taken(), (List{{1, "OK"}}));
}

TEST_F(UsrbioReadsTest, ACompletionThatComesTwiceCountsOnce) {
  Add(1);
  Add(2);
  const uint64_t first = Take();
  Complete(first, sizeof bytes);
  Complete(first, sizeof bytes);
  Complete(first + 1000, sizeof bytes);
  EXPECT_EQ(Taken(), (List{{1, "OK"}}));
  Complete(Take(), sizeof bytes);
  EXPECT_EQ(Taken(), (List{{2, "OK"}}));
}

TEST_F(UsrbioReadsTest, MoreBytesThanAskedForAreAnError) {
  Add(1);
  Complete(Take(), sizeof bytes + 1);
  EXPECT_EQ(Taken(), (List{{1, "THREEFS_ERROR"}}));
}

// In the order in which they were asked for, whichever the former ring had.
TEST_F(UsrbioReadsTest, AllReadsOfALostRingWaitAgain) {
  for (uint64_t tag = 1; tag <= 3; ++tag) Add(tag);
  const uint64_t first = Take();
  Take();
  Complete(first, sizeof bytes);
  reads->EndGeneration();
  reads->BeginGeneration({});
  EXPECT_EQ(Taken(), (List{{1, "OK"}}));
  for (uint64_t tag = 2; tag <= 3; ++tag) {
    Complete(Take(), sizeof bytes);
    EXPECT_EQ(Taken(), (List{{tag, "OK"}}));
  }
}

// A restarted daemon does not know the files of before.
TEST_F(UsrbioReadsTest, ReadsOfAForgottenFileAreRepeatedThroughANewDescriptor) {
  Add(1);
  Add(2);
  const uint64_t first = Take(), second = Take();
  Complete(first, -EBADF);
  Complete(second, -EBADF);
  for (int i = 0; i < 2; ++i) {
    Reads::Next next = WaitForNext();
    EXPECT_EQ(next.through->number, 8) << "it is opened once for both";
    Complete(next.userdata, sizeof bytes);
  }
  EXPECT_EQ(Taken().size(), 2u);
  EXPECT_EQ(file->renewals, 2);
}

TEST_F(UsrbioReadsTest, AFileThatStaysUnknownIsAnErrorInTheEnd) {
  Add(1);
  uint64_t userdata = Take();
  for (int i = 0; i < 3; ++i) {
    Complete(userdata, -EBADF);
    userdata = WaitForNext().userdata;
  }
  Complete(userdata, -EBADF);
  EXPECT_EQ(WaitForOne(), (List{{1, "THREEFS_ERROR"}}));
  EXPECT_EQ(file->renewals, 3);
}

TEST_F(UsrbioReadsTest, AForgottenFileThatCannotBeOpenedAnewIsItsError) {
  file->renewing = Status(Code::THREEFS_DISCONNECTED, "told to be dead");
  Add(1);
  Complete(Take(), -EBADF);
  EXPECT_EQ(WaitForOne(), (List{{1, "THREEFS_DISCONNECTED"}}));
}

// The daemon may still read for a ring that is left.
TEST_F(UsrbioReadsTest, WhatAFailedReadWentThroughStaysOpen) {
  Add(1);
  Add(2);
  (void)Take();
  std::weak_ptr<Descriptor> first = file->descriptor();
  Complete(Take(), -EBADF);
  EXPECT_EQ(WaitForNext().through->number, 8);
  EXPECT_FALSE(first.expired()) << "a read that went through it is still in the ring";
  std::vector<std::shared_ptr<Descriptor>> open;
  reads->FailAll(Status(Code::STALLED, "given up"), &open);
  EXPECT_FALSE(first.expired());
  open.clear();
  EXPECT_TRUE(first.expired());
}

// A dead daemon's mount answers ENOTCONN for its links: only the mount itself tells.
TEST_F(UsrbioReadsTest, SilenceOfADeadMountIsNoticedWhileItsLinksCannotBeRead) {
  std::string absent = ::testing::TempDir() + "/fst-absent-" + std::to_string(getpid());
  std::ofstream file(absent + "-file");
  reads = std::make_shared<Reads>(queue, absent);
  reads->BeginGeneration({{absent + "-file/link", "/dev/shm/x"}});  // ENOTDIR: not known to be gone
  reads->Silent();
  std::vector<Completion> completions;
  queue->Take(&completions, Clock::now() + std::chrono::seconds(20));
  Status why;
  EXPECT_EQ(reads->TakeHealth(&why), Reads::Health::kDead);
  EXPECT_EQ(why.code(), Code::THREEFS_DISCONNECTED);
  unlink((absent + "-file").c_str());
}

}  // namespace
}  // namespace fst::usrbio
