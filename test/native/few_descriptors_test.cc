// With few descriptors left: what is about to be closed is waited for, and where nothing is, the error comes at once.
#include "support/few_descriptors.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "base/fd.h"
#include "base/fd_reserve.h"
#include "base/fd_turn.h"
#include "base/io_error.h"
#include "device/host_device.h"
#include "reader/file_reader.h"
#include "safetensors/header.h"
#include "support/engine_harness.h"

namespace fst {
namespace {

// Takes descriptors until `left` of them are free below the limit.
std::vector<UniqueFd> TakeAllBut(size_t left) {
  std::vector<UniqueFd> taken;
  // Threads that a test before this one left may still close theirs: until nothing more comes for a while.
  for (int rounds = 0; rounds < 3;) {
    UniqueFd fd(open("/", O_RDONLY | O_CLOEXEC));
    if (fd.valid()) {
      taken.push_back(std::move(fd));
      rounds = 0;
      continue;
    }
    ++rounds;
    if (rounds < 3) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const int fd = open("/", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(fd, -1);
  EXPECT_EQ(errno, EMFILE);
  for (; left > 0; --left) taken.pop_back();
  return taken;
}

class FewDescriptorsTest : public EngineTest {
 protected:
  SoftLimit limit_{64};
};

TEST_F(FewDescriptorsTest, AnErrorNamesTheLimitAndTheRemedy) {
  Status status = IoError("/m", "cannot open /m", EMFILE);
  EXPECT_EQ(status.os_error(), EMFILE);
  for (const char* part : {"EMFILE", "may have 64 open", "ulimit -n"})
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  EXPECT_NE(IoError("/m", "cannot open /m", ENFILE).message().find("fs.file-max"), std::string::npos);
  EXPECT_EQ(IoError("/m", "cannot open /m", ENOENT).message(), "cannot open /m: " + ErrnoText(ENOENT));
}

TEST_F(FewDescriptorsTest, HeadersTakeTurns) {
  TempFolder folder;
  std::vector<std::string> paths;
  const std::string header = R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  const std::string length{static_cast<char>(header.size()), 0, 0, 0, 0, 0, 0, 0};
  for (int i = 0; i < 8; ++i) paths.push_back(folder.Write("m" + std::to_string(i), length + header + "."));
  for (size_t left : {1, 0}) {
    std::vector<UniqueFd> taken = TakeAllBut(left);
    std::atomic<int> failed{0};
    std::vector<std::thread> threads;
    for (const std::string& path : paths) {
      threads.emplace_back([&] {
        for (int round = 0; round < 50; ++round) {
          Header read;
          Status status = ReadHeader(path, {}, &read, nullptr, nullptr);
          if (status.ok()) continue;
          EXPECT_EQ(status.os_error(), EMFILE) << status.message();
          ++failed;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, left == 1 ? 0 : 8 * 50);
  }
}

TEST_F(FewDescriptorsTest, ATurnThatFailsForAnotherReasonIsTriedOnce) {
  FdTurn turn;
  int calls = 0;
  Status status = turn.Open([&] {
    ++calls;
    return IoError("/m", "cannot open /m", ENOENT);
  });
  EXPECT_EQ(status.os_error(), ENOENT);
  EXPECT_EQ(calls, 1);
}

TEST_F(FewDescriptorsTest, FilesAreOpenedAsOthersAreClosed) {
  ModelShape shape;
  shape.files = 20;
  Model model = Written(shape);
  for (bool direct : {false, true}) {
    for (size_t left : {1, 2, 5}) {
      auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({2, direct, false, 8 << 10}));
      std::vector<UniqueFd> taken = TakeAllBut(left);
      Watch::Begin(*engine, model)->ExpectComplete();
    }
  }
}

TEST_F(FewDescriptorsTest, SeveralLoadsOfAnEngineShareWhatThereIs) {
  ModelShape shape;
  shape.files = 6;
  Model model = Written(shape);
  auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({2, false, false, 8 << 10}));
  std::vector<UniqueFd> taken = TakeAllBut(1);
  auto one = Watch::Begin(*engine, model), other = Watch::Begin(*engine, model);
  one->WaitDrained();
  other->WaitDrained();
  // One of them may find that nothing is being read which could end.
  for (const auto& watch : {one, other}) {
    const Status status = watch->transfer().status();
    EXPECT_TRUE(status.ok() || status.os_error() == EMFILE) << status.message();
  }
  EXPECT_TRUE(one->transfer().status().ok() || other->transfer().status().ok());
}

TEST_F(FewDescriptorsTest, WithoutAnyTheErrorComesAtOnce) {
  ModelShape shape;
  shape.files = 20;
  Model model = Written(shape);
  auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({2, false, false, 8 << 10}));
  {
    std::vector<UniqueFd> taken = TakeAllBut(0);
    auto watch = Watch::Begin(*engine, model);
    watch->ExpectFailure(Code::IO_ERROR);
    EXPECT_EQ(watch->transfer().status().os_error(), EMFILE);
    EXPECT_EQ(watch->transfer().status().path(), model.plan.files[model.plan.items[0].file].path);
  }
  Watch::Begin(*engine, model)->ExpectComplete();
}

TEST_F(FewDescriptorsTest, AReserveLeavesRoomForLater) {
  FdReserve reserve(3);
  reserve.Take();
  EXPECT_TRUE(reserve.HasRoomFor(3));
  std::vector<UniqueFd> taken = TakeAllBut(2);
  EXPECT_FALSE(reserve.HasRoomFor(3));
  EXPECT_TRUE(reserve.HasRoomFor(2));
  taken.emplace_back(open("/", O_RDONLY | O_CLOEXEC));
  taken.emplace_back(open("/", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(open("/", O_RDONLY | O_CLOEXEC), -1);
  reserve.Give();
  for (int i = 0; i < 3; ++i) taken.emplace_back(open("/", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(taken.back().valid());
  reserve.Take();
  EXPECT_FALSE(reserve.HasRoomFor(0)) << "it has none of its own";
}

}  // namespace
}  // namespace fst
