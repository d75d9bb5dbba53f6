// exit() while other threads call into a library: each ends in a process of its own, which a death test is.
#include "base/exit_gate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

namespace fst {
namespace {

// A library with a static object: what is called after it was destroyed crashes.
std::atomic<bool> destroyed{false};
std::atomic<int> calls{0};

struct Table {
  int (*work)(int us);
  void (*forget)();
};

struct Library {
  static const Table* raw() {
    static const Table table = {
        [](int us) {
          usleep(static_cast<useconds_t>(us));
          if (destroyed) abort();
          ++calls;
          return 0;
        },
        [] {
          if (destroyed) abort();
        },
    };
    return &table;
  }
};

constexpr auto Work = &Gated<Library, &Table::work, -5>::Function;

// As dlopen would register the destructor of a static object, before the gate is registered.
void Load() {
  atexit([] {
    destroyed = true;
    usleep(20000);  // whoever is still inside shows
  });
  if (!ExitGate::CloseBeforeDestructors().ok()) abort();
}

void CallForEver(int us) {
  std::thread([us] {
    for (;;) Work(us);
  }).detach();
}

TEST(ExitGateDeathTest, WaitsForCallsInsideAndParksLaterOnes) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Load();
        for (int us : {0, 0, 10, 3000}) CallForEver(us);
        while (calls < 1000) usleep(100);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

TEST(ExitGateDeathTest, AThreadThatDoesNotComeOutIsWaitedForASecondOnly) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        if (!ExitGate::CloseBeforeDestructors().ok()) abort();
        CallForEver(60'000'000);
        usleep(10000);
        alarm(10);
        exit(3);
      },
      ::testing::ExitedWithCode(3), "");
}

// The thread that runs exit() cannot be parked: its calls are refused.
TEST(ExitGateDeathTest, RefusesTheThreadThatExits) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        atexit([] {
          if (Work(0) != -5) abort();
          Gated<Library, &Table::forget, 0>::Function();
        });
        Load();
        exit(Work(0) == 0 ? 9 : 1);
      },
      ::testing::ExitedWithCode(9), "");
}

}  // namespace
}  // namespace fst
