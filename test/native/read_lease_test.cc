// A lease makes who opens its file for writing wait until its holder lets them go on; no handler of the process sees
// the signal.
#include "base/read_lease.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "support/temp_folder.h"

namespace fst {
namespace {

using std::chrono::milliseconds;

class Holder : public LeaseHolder {
 public:
  bool OnBreak() override {
    size_when_broken = SizeOf();
    return ++breaks > refusals;
  }
  void OnLost() override { ++lost; }
  off_t SizeOf() const {
    struct stat info;
    return stat(path.c_str(), &info) == 0 ? info.st_size : -1;
  }
  std::string path;
  std::atomic<int> breaks{0}, lost{0};
  int refusals = 0;
  std::atomic<off_t> size_when_broken{-1};
};

class ReadLeaseTest : public ::testing::Test {
 protected:
  UniqueFd NewFile(const std::string& name) {
    const std::string path = folder_.Path(name);
    std::ofstream(path) << "bytes";
    return UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  }
  std::shared_ptr<Holder> HolderOf(const std::string& name) {
    auto holder = std::make_shared<Holder>();
    holder->path = folder_.Path(name);
    return holder;
  }
  static int Threads() {
    int count = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string name;
      std::getline(std::ifstream(task.path() / "comm"), name);
      count += name == "fst-lease";
    }
    return count;
  }
  static bool ThreadEnds() {
    for (int i = 0; i < 500 && Threads() > 0; ++i) std::this_thread::sleep_for(milliseconds(10));
    return Threads() == 0;
  }

  TempFolder folder_;
};

TEST_F(ReadLeaseTest, WriterWaitsForTheHolder) {
  UniqueFd fd = NewFile("a");
  auto holder = HolderOf("a");
  ASSERT_EQ(TakeReadLease(fd.get(), holder), 0);
  ASSERT_EQ(truncate(holder->path.c_str(), 0), 0);
  EXPECT_EQ(holder->breaks, 1);
  EXPECT_EQ(holder->size_when_broken, 5);
  EXPECT_EQ(holder->lost, 0);
  EndReadLease(fd.get());
  EXPECT_TRUE(ThreadEnds());
}

TEST_F(ReadLeaseTest, HolderIsAskedAgain) {
  UniqueFd fd = NewFile("a");
  auto holder = HolderOf("a");
  holder->refusals = 2;
  ASSERT_EQ(TakeReadLease(fd.get(), holder), 0);
  UniqueFd writing(open(holder->path.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_TRUE(writing.valid());
  EXPECT_EQ(holder->breaks, 3);
  EndReadLease(fd.get());
}

TEST_F(ReadLeaseTest, WhoDoesNotWaitIsToldToComeBack) {
  UniqueFd fd = NewFile("a");
  auto holder = HolderOf("a");
  ASSERT_EQ(TakeReadLease(fd.get(), holder), 0);
  EXPECT_EQ(open(holder->path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK), -1);
  EXPECT_EQ(errno, EAGAIN);
  for (int i = 0; i < 500 && holder->breaks == 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(holder->breaks, 1);
  EndReadLease(fd.get());
}

TEST_F(ReadLeaseTest, ReadersRenamesAndLinksBreakNothing) {
  UniqueFd fd = NewFile("a");
  auto holder = HolderOf("a");
  ASSERT_EQ(TakeReadLease(fd.get(), holder), 0);
  UniqueFd reading(open(holder->path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(reading.valid());
  EXPECT_EQ(rename(holder->path.c_str(), (holder->path + "2").c_str()), 0);
  EXPECT_EQ(unlink((holder->path + "2").c_str()), 0);
  EXPECT_EQ(holder->breaks, 0);
  EndReadLease(fd.get());
}

TEST_F(ReadLeaseTest, FileThatIsOpenForWritingIsRefused) {
  UniqueFd fd = NewFile("a");
  UniqueFd writing(open(folder_.Path("a").c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(TakeReadLease(fd.get(), HolderOf("a")), EAGAIN);
  EXPECT_TRUE(ThreadEnds());
}

TEST_F(ReadLeaseTest, HolderThatIsGoneHoldsNobodyUp) {
  auto fd = std::make_unique<UniqueFd>(NewFile("a"));
  auto holder = HolderOf("a");
  const std::string path = holder->path;
  ASSERT_EQ(TakeReadLease(fd->get(), holder), 0);
  EndReadLease(fd->get());
  fd.reset();
  holder.reset();
  EXPECT_EQ(truncate(path.c_str(), 0), 0);
  EXPECT_TRUE(ThreadEnds());
}

TEST_F(ReadLeaseTest, ManyWritersAtOnceAreServed) {
  constexpr int kFiles = 100;
  std::vector<UniqueFd> fds;
  std::vector<std::shared_ptr<Holder>> holders;
  for (int i = 0; i < kFiles; ++i) {
    fds.push_back(NewFile(std::to_string(i)));
    holders.push_back(HolderOf(std::to_string(i)));
    ASSERT_EQ(TakeReadLease(fds.back().get(), holders.back()), 0);
  }
  std::vector<std::thread> writers;
  for (int t = 0; t < 4; ++t) {
    writers.emplace_back([&, t] {
      for (int i = t; i < kFiles; i += 4) EXPECT_EQ(truncate(holders[i]->path.c_str(), 1), 0);
    });
  }
  for (std::thread& writer : writers) writer.join();
  for (int i = 0; i < kFiles; ++i) {
    EXPECT_EQ(holders[i]->size_when_broken, 5);
    EndReadLease(fds[i].get());
  }
  EXPECT_TRUE(ThreadEnds());
}

// Called while another one is, and not before that.
class MeetingHolder : public Holder {
 public:
  explicit MeetingHolder(std::atomic<int>* present) : present_(present) {}
  bool OnBreak() override {
    ++*present_;
    for (int i = 0; i < 1000 && *present_ < 2; ++i) std::this_thread::sleep_for(milliseconds(10));
    met = *present_ == 2;
    return true;
  }
  std::atomic<bool> met{false};

 private:
  std::atomic<int>* const present_;
};

TEST_F(ReadLeaseTest, SlowHolderHoldsUpNoOther) {
  std::atomic<int> present{0};
  UniqueFd fds[] = {NewFile("a"), NewFile("b")};
  std::shared_ptr<MeetingHolder> holders[2];
  std::vector<std::thread> writers;
  for (int i = 0; i < 2; ++i) {
    holders[i] = std::make_shared<MeetingHolder>(&present);
    ASSERT_EQ(TakeReadLease(fds[i].get(), holders[i]), 0);
    writers.emplace_back([path = folder_.Path(i == 0 ? "a" : "b")] { EXPECT_EQ(truncate(path.c_str(), 0), 0); });
  }
  for (std::thread& writer : writers) writer.join();
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(holders[i]->met);
    EndReadLease(fds[i].get());
  }
  EXPECT_TRUE(ThreadEnds());
}

TEST_F(ReadLeaseTest, AnotherProcessWaits) {
  UniqueFd fd = NewFile("a");
  auto holder = HolderOf("a");
  ASSERT_EQ(TakeReadLease(fd.get(), holder), 0);
  const pid_t child = fork();
  if (child == 0) _exit(truncate(holder->path.c_str(), 0) == 0 ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(holder->breaks, 1);
  EndReadLease(fd.get());
}

}  // namespace
}  // namespace fst
