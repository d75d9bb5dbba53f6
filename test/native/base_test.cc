// The small parts: status, threads, the task pool, the completion queue, host memory, devices.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <set>
#include <thread>

#include "base/completion_queue.h"
#include "base/fd.h"
#include "base/file_identity.h"
#include "base/running_clock.h"
#include "base/shared_library.h"
#include "base/task_pool.h"
#include "base/text.h"
#include "base/thread.h"
#include "device/devices.h"
#include "device/host_memory.h"
#include "support/engine_harness.h"

namespace fst {
namespace {

TEST(Status, KeepsThePlaceThatWasKnownFirst) {
  Status status(Code::IO_ERROR, "broken");
  Status placed = status.At("a", "t", 5).At("b", "u", 9);
  EXPECT_EQ(placed.path(), "a");
  EXPECT_EQ(placed.tensor(), "t");
  EXPECT_EQ(placed.offset(), 5);
  EXPECT_EQ(placed.message(), "broken");
  EXPECT_EQ(status.path(), "") << "At changes a copy";
  EXPECT_EQ(status.At("a").At("b", "u", 9).tensor(), "u");
  EXPECT_EQ(status.At("", "", 0).offset(), 0);
}

TEST(Status, OkHasNoPlace) {
  Status ok = Status::Ok().At("a", "t", 5);
  EXPECT_TRUE(ok.ok());
  EXPECT_EQ(ok.code(), Code::kOk);
  EXPECT_EQ(ok.message() + ok.path() + ok.tensor(), "");
  EXPECT_EQ(ok.offset(), -1);
}

TEST(Status, ErrnoTextIsWhatTheCLibrarySays) {
  EXPECT_EQ(ErrnoText(ENOENT), "No such file or directory (ENOENT)");
  EXPECT_NE(ErrnoText(4095).find("4095"), std::string::npos);
}

TEST(Text, IsSplitWithoutEmptyParts) {
  using Parts = std::vector<std::string>;
  EXPECT_EQ(Split("a b\tc", " \t"), (Parts{"a", "b", "c"}));
  EXPECT_EQ(Split("//a//b/", "/"), (Parts{"a", "b"}));
  EXPECT_EQ(Split("", " "), Parts{});
  EXPECT_EQ(Split("  ", " "), Parts{});
}

TEST(Text, IsReadWholeOrNotAtAll) {
  std::string path = ::testing::TempDir() + "/fst-text-XXXXXX";
  UniqueFd file(mkstemp(path.data()));
  ASSERT_TRUE(file.valid());
  const std::string written = std::string(10000, 'x') + "\n" + std::string(1, '\0') + "end";
  ASSERT_EQ(write(file.get(), written.data(), written.size()), static_cast<ssize_t>(written.size()));
  EXPECT_EQ(ReadText(path.c_str()), written);
  unlink(path.c_str());
  EXPECT_EQ(ReadText(path.c_str()), "");
  EXPECT_EQ(ReadText("/"), "") << "a folder opens, and cannot be read";
}

TEST(Status, NamesEveryCode) {
  EXPECT_STREQ(CodeName(Code::kOk), "OK");
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(Code::INVALID_ARGUMENT); ++code)
    names.insert(CodeName(static_cast<Code>(code)));
  EXPECT_EQ(names.size(), static_cast<size_t>(Code::INVALID_ARGUMENT) + 1);
  EXPECT_EQ(names.count("UNKNOWN"), 0U);
}

TEST(RunningClock, CountsAtMostATickFromOneLookToTheNext) {
  using std::chrono::milliseconds;
  RunningClock clock(milliseconds(10));
  auto now = Clock::now();
  clock.Look(now);
  const auto begin = clock.At(now);
  EXPECT_EQ(clock.At(now + milliseconds(7)) - begin, milliseconds(7));
  clock.Look(now += milliseconds(7));
  clock.Look(now += milliseconds(10));
  EXPECT_EQ(clock.At(now) - begin, milliseconds(17));
  EXPECT_EQ(clock.At(now + std::chrono::hours(1)) - begin, milliseconds(27)) << "the process was stopped";
  clock.Look(now += std::chrono::hours(1));
  EXPECT_EQ(clock.At(now + milliseconds(1)) - begin, milliseconds(28));
}

TEST(Status, SaysErrnoInWordsAndByName) {
  EXPECT_EQ(ErrnoText(EIO), "Input/output error (EIO)");
  EXPECT_EQ(ErrnoText(EMFILE), "Too many open files (EMFILE)");
  EXPECT_EQ(ErrnoText(ENOSPC), "No space left on device (ENOSPC)");
  EXPECT_NE(ErrnoText(4095).find("4095"), std::string::npos);
}

TEST(Status, FormatsTextOfAnyLength) {
  std::string longer(5000, 'x');
  EXPECT_EQ(Format("%s-%d", longer.c_str(), 7), longer + "-7");
  EXPECT_EQ(Format("%s", ""), "");
}

TEST(Thread, HasItsNameAndNoSignalsButItsOwnFaults) {
  Latch done(1);
  char name[32] = "";
  bool blocked = false, faults_blocked = true;
  ASSERT_TRUE(StartThread("fst-a-name-that-is-too-long", [&] {
                pthread_getname_np(pthread_self(), name, sizeof name);
                sigset_t mask;
                pthread_sigmask(SIG_SETMASK, nullptr, &mask);
                blocked = sigismember(&mask, SIGTERM) == 1;
                faults_blocked = sigismember(&mask, SIGSEGV) == 1 || sigismember(&mask, SIGBUS) == 1;
                done.Down();
              }).ok());
  ASSERT_TRUE(done.Wait());
  EXPECT_STREQ(name, "fst-a-name-that");
  EXPECT_TRUE(blocked);
  EXPECT_FALSE(faults_blocked) << "a crash would be silent";
  sigset_t mine;
  pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_EQ(sigismember(&mine, SIGTERM), 0) << "the caller's own signals stay";
}

// A thread that ends before its starter goes on must not be touched any more.
TEST(Thread, MayEndAtOnce) {
  for (int i = 0; i < 300; ++i) {
    Latch done(1);
    ASSERT_TRUE(StartThread("fst-short", [&done] { done.Down(); }).ok());
    ASSERT_TRUE(done.Wait());
  }
}

// In a program of their own: limits cannot be raised again, and a user without rights is bound by them.
class RefusedThreadsDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { ::testing::FLAGS_gtest_death_test_style = "threadsafe"; }
  static void RefuseThreads() {
    rlimit none{0, 0};
    if (setrlimit(RLIMIT_NPROC, &none) != 0 || (geteuid() == 0 && setuid(65534) != 0)) _exit(99);
  }
};

TEST_F(RefusedThreadsDeathTest, AreAnErrorWithARemedy) {
  EXPECT_EXIT(
      {
        RefuseThreads();
        Status status = StartThread("fst-x", [] {});
        bool says = status.message().find("ulimit -u") != std::string::npos;
        _exit(status.code() == Code::OUT_OF_HOST_MEMORY && says ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(RefusedThreadsDeathTest, LeaveAPoolWithoutAnyUnableToTakeTasks) {
  EXPECT_EXIT(
      {
        RefuseThreads();
        TaskPool pool("fst-x", 2);
        bool refused = pool.Post([] {}).code() == Code::OUT_OF_HOST_MEMORY;
        _exit(refused && !pool.Post([] {}).ok() ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

// One thread is enough for what is posted later.
TEST_F(RefusedThreadsDeathTest, AreNotNeededByAPoolThatHasOne) {
  EXPECT_EXIT(
      {
        TaskPool pool("fst-x", 4);
        Latch first(1);
        Latch all(20);
        if (!pool.Post([&] { first.Down(); }).ok() || !first.Wait()) _exit(98);
        RefuseThreads();
        for (int i = 0; i < 20; ++i) {
          if (!pool.Post([&] { all.Down(); }).ok()) _exit(1);
        }
        _exit(all.Wait() ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(TaskPool, RunsEverythingOnAtMostItsThreads) {
  std::atomic<int> running{0}, most{0}, ran{0};
  Latch done(500);
  {
    TaskPool pool("fst-pool", 3);
    for (int i = 0; i < 500; ++i) {
      ASSERT_TRUE(pool.Post([&] {
                        int now = ++running, before = most;
                        while (now > before && !most.compare_exchange_weak(before, now)) {
                        }
                        ++ran;
                        --running;
                        done.Down();
                      })
                      .ok());
    }
  }  // what was posted still runs
  ASSERT_TRUE(done.Wait());
  EXPECT_EQ(ran, 500);
  EXPECT_LE(most, 3);
}

TEST(TaskPool, UsesAllItsThreads) {
  Latch all(3), done(3);
  TaskPool pool("fst-pool", 3);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pool.Post([&] {
                      all.Down();
                      EXPECT_TRUE(all.Wait()) << "the tasks wait for each other: three threads are needed";
                      done.Down();
                    })
                    .ok());
  }
  EXPECT_TRUE(done.Wait());
}

TEST(TaskPool, OneThreadRunsInOrder) {
  std::vector<int> order;
  Latch done(100);
  TaskPool pool("fst-pool", 1);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(pool.Post([&, i] {
                      order.push_back(i);
                      done.Down();
                    })
                    .ok());
  }
  ASSERT_TRUE(done.Wait());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

// Whoever waits for a task may post the next one, which then finds a thread that is free.
TEST(TaskPool, WorkThatComesPieceByPieceStaysOnOneThread) {
  std::set<std::thread::id> threads;
  TaskPool pool("fst-pool", 8);
  for (int i = 0; i < 200; ++i) {
    Latch done(1);
    ASSERT_TRUE(pool.Post([&] {
                      threads.insert(std::this_thread::get_id());
                      TaskPool::AfterTask([&] { done.Down(); });
                    })
                    .ok());
    ASSERT_TRUE(done.Wait());
  }
  EXPECT_EQ(threads.size(), 1U);
}

TEST(TaskPool, TheThreadThatWasBusyLastIsTheFirstToWorkAgain) {
  constexpr int kThreads = 3;
  TaskPool pool("fst-pool", kThreads);
  std::vector<std::unique_ptr<Latch>> go, over;
  std::vector<std::thread::id> threads(kThreads);
  Latch begun(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    go.push_back(std::make_unique<Latch>(1));
    over.push_back(std::make_unique<Latch>(1));
  }
  for (size_t i = 0; i < kThreads; ++i) {
    ASSERT_TRUE(pool.Post([&, i] {
                      threads[i] = std::this_thread::get_id();
                      begun.Down();
                      EXPECT_TRUE(go[i]->Wait());
                      TaskPool::AfterTask([&, i] { over[i]->Down(); });
                    })
                    .ok());
  }
  ASSERT_TRUE(begun.Wait());
  for (size_t i : {2, 0, 1}) {
    go[i]->Down();
    ASSERT_TRUE(over[i]->Wait());
  }
  for (int i = 0; i < 20; ++i) {
    std::thread::id thread;
    Latch done(1);
    ASSERT_TRUE(pool.Post([&] {
                      thread = std::this_thread::get_id();
                      TaskPool::AfterTask([&] { done.Down(); });
                    })
                    .ok());
    ASSERT_TRUE(done.Wait());
    EXPECT_EQ(thread, threads[1]);
  }
}

TEST(TaskPool, WhatIsForAfterATaskRunsInOrderAndElsewhereAtOnce) {
  std::vector<std::string> order;
  TaskPool::AfterTask([&] { order.emplace_back("at once"); });
  EXPECT_EQ(order.size(), 1U);
  Latch done(1);
  TaskPool pool("fst-pool", 1);
  ASSERT_TRUE(pool.Post([&] {
                    TaskPool::AfterTask([&] { order.emplace_back("first"); });
                    TaskPool::AfterTask([&] {
                      order.emplace_back("second");
                      done.Down();
                    });
                    order.emplace_back("task");
                  })
                  .ok());
  ASSERT_TRUE(done.Wait());
  EXPECT_EQ(order, (std::vector<std::string>{"at once", "task", "first", "second"}));
}

TEST(TaskPool, LetsGoOfWhatATaskHolds) {
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> weak = held;
  TaskPool pool("fst-pool", 1);
  ASSERT_TRUE(pool.Post([held = std::move(held)] {}).ok());
  EXPECT_TRUE(Eventually([&] { return weak.expired(); }));
}

TEST(SharedLibrary, FindsWhatTheProcessHasLoaded) {
  std::vector<std::string> loaded = SharedLibrary::Loaded("libc.");
  ASSERT_EQ(loaded.size(), 1U);
  EXPECT_NE(loaded[0].find("/libc."), std::string::npos) << loaded[0];
  EXPECT_TRUE(SharedLibrary::Loaded("libno-such-library").empty());
  SharedLibrary library;
  EXPECT_FALSE(SharedLibrary::Open("libno-such-library.so", &library).ok());
  EXPECT_EQ(library.Find("malloc"), nullptr);
  ASSERT_TRUE(SharedLibrary::Open(loaded[0], &library, RTLD_NOLOAD).ok());
  void* (*function)(size_t) = nullptr;
  std::string missing;
  library.Resolve("malloc", &function, &missing);
  EXPECT_NE(function, nullptr);
  library.Resolve("no_such_function", &function, nullptr);
  library.Resolve("no_such_function", &function, &missing);
  library.Resolve("nor_this_one", &function, &missing);
  EXPECT_EQ(function, nullptr);
  EXPECT_EQ(missing, "no_such_function, nor_this_one");
}

TEST(CompletionQueue, GivesAllThatCameAndSleepsOtherwise) {
  CompletionQueue queue;
  std::vector<Completion> out(3);
  queue.Take(&out, Clock::now());
  EXPECT_TRUE(out.empty()) << "the deadline has passed";
  queue.Wake();
  queue.Take(&out, Clock::time_point::max());
  EXPECT_TRUE(out.empty());
  queue.Put({Completion::Kind::kRead, 1, Status()});
  queue.Put({Completion::Kind::kCopy, 2, Status(Code::IO_ERROR, "x")});
  queue.Take(&out, Clock::time_point::max());
  ASSERT_EQ(out.size(), 2U);
  EXPECT_EQ(out[1].tag, 2U);
  EXPECT_EQ(out[1].status.code(), Code::IO_ERROR);
}

TEST(CompletionQueue, LosesNothingBetweenThreads) {
  CompletionQueue queue;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&queue, t] {
      for (uint64_t i = 0; i < 2000; ++i) {
        queue.Put({Completion::Kind::kRead, t * 2000 + i, Status()});
        if (i % 7 == 0) queue.Wake();
      }
    });
  }
  std::vector<bool> seen(8000);
  std::vector<Completion> out;
  for (size_t count = 0; count < 8000;) {
    queue.Take(&out, Clock::time_point::max());
    for (const Completion& completion : out) {
      EXPECT_FALSE(seen[completion.tag]);
      seen[completion.tag] = true;
      ++count;
    }
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(HostMemory, IsAlignedAndWritable) {
  for (size_t bytes : {size_t{1}, size_t{255}, size_t{4095}, size_t{4096}, size_t{100000}, (size_t{2} << 20) - 1,
                       size_t{2} << 20, (size_t{2} << 20) + 1, size_t{9} << 20}) {
    void* memory = nullptr;
    ASSERT_TRUE(AllocateHost(bytes, &memory).ok());
    size_t alignment = bytes < 4096 ? 256 : bytes < (size_t{2} << 20) ? 4096 : size_t{2} << 20;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % alignment, 0U) << bytes;
    memset(memory, 1, bytes);
    FreeHost(memory, bytes);
  }
}

size_t MappedPages() {
  FILE* file = fopen("/proc/self/statm", "re");
  unsigned long pages = 0;
  EXPECT_EQ(fscanf(file, "%lu", &pages), 1);
  fclose(file);
  return pages;
}

TEST(HostMemory, LargeMemoryGoesBackWhole) {
  size_t before = MappedPages();
  for (int i = 0; i < 100; ++i) {
    void* memory = nullptr;
    ASSERT_TRUE(AllocateHost((size_t{64} << 20) + 1, &memory).ok());
    FreeHost(memory, (size_t{64} << 20) + 1);
  }
  EXPECT_LT(MappedPages(), before + (64 << 20) / 4096) << "100 mappings of 64 MiB came and went";
}

TEST(HostMemory, TooMuchIsRefused) {
  for (size_t bytes : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX / 8}) {
    void* memory = nullptr;
    Status status = AllocateHost(bytes, &memory);
    EXPECT_EQ(status.code(), Code::OUT_OF_HOST_MEMORY) << bytes;
    EXPECT_NE(status.message().find("available"), std::string::npos);
  }
  EXPECT_GT(AvailableHostBytes(), 0U);
  EXPECT_LT(AvailableHostBytes(), uint64_t{1} << 60);
}

TEST(Devices, AreOpenedOnceAndByName) {
  std::shared_ptr<Device> first, second;
  ASSERT_TRUE(OpenDevice("cpu", false, &first).ok());
  ASSERT_TRUE(OpenDevice("cpu", false, &second).ok());
  EXPECT_EQ(first, second);
  FakeDevice::Options options;
  UseFakeDevices(&options);
  EXPECT_TRUE(OpenDevice("cuda:0", false, &second).ok());
  EXPECT_EQ(second->name(), "cuda:0");
  EXPECT_FALSE(second->host_accessible());
  UseFakeDevices(nullptr);
  ASSERT_TRUE(OpenDevice("cpu", false, &second).ok());
  EXPECT_EQ(first, second) << "the host stays";
}

TEST(Devices, CopyBetweenBuffersAndTheHost) {
  std::shared_ptr<Device> devices[] = {std::make_shared<HostDevice>(),
                                       std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options())};
  for (const auto& device : devices) {
    std::shared_ptr<DeviceBuffer> a, b;
    ASSERT_TRUE(device->Allocate(1000, &a).ok());
    ASSERT_TRUE(device->Allocate(3 << 20, &b).ok());
    std::string bytes(1000, 'x'), back(500, '\0');
    bytes.replace(100, 5, "hello");
    ASSERT_TRUE(device->Write(*a, 0, 1000, bytes.data()).ok());
    CopyRegion region{100, 2 << 20, 500};
    ASSERT_TRUE(device->Copy(*a, *b, &region, 1).ok());
    ASSERT_TRUE(device->Read(*b, 2 << 20, 500, back.data()).ok());
    EXPECT_EQ(back, bytes.substr(100, 500));
  }
  EXPECT_TRUE(Eventually(AllZero));
}

}  // namespace
}  // namespace fst
