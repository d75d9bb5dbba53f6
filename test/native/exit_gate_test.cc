// exit() while other threads call into a library: each ends in a process of its own, which a death test is.
#include "base/exit_gate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <type_traits>

#include "base/shared_library.h"

namespace fst {
namespace {

// A library with a static object: what is called after it was destroyed crashes.
std::atomic<bool> destroyed{false};
std::atomic<int> calls{0};

struct Library {
  Gated<int (*)(int us), std::integral_constant<int, -5>> work;
  Gated<void (*)(), std::integral_constant<int, 0>> forget;
};

constexpr Library library = {
    {[](int us) {
      usleep(static_cast<useconds_t>(us));
      if (destroyed) abort();
      ++calls;
      return 0;
    }},
    {[] {
      if (destroyed) abort();
    }},
};

void RegisterDestructor() {
  atexit([] {
    destroyed = true;
    usleep(20000);  // a thread that is still inside shows
  });
}

// As dlopen would register the destructor of a static object, before the gate is registered.
void Load() {
  RegisterDestructor();
  if (!ExitGate::CloseBeforeDestructors().ok()) abort();
}

void CallForEver(int us) {
  std::thread([us] {
    for (;;) library.work(us);
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

// cuInit registers handlers, too.
TEST(ExitGateDeathTest, ClosesBeforeHandlersThatWereRegisteredLater) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        if (!ExitGate::CloseBeforeDestructors().ok()) abort();
        Load();
        for (int us : {0, 0, 10, 3000}) CallForEver(us);
        while (calls < 1000) usleep(100);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

// Calls a library for ever that has a static object, after it has loaded it.
void LoadAndCall() {
  SharedLibrary opened;
  if (!SharedLibrary::Open(FST_BINARY_DIR "/test-support/libslow_to_load.so", &opened).ok()) abort();
  Gated<int (*)(), std::integral_constant<int, -5>> work;
  opened.Resolve("work", &work, nullptr);
  for (;; ++calls) work();
}

TEST(ExitGateDeathTest, ClosesBeforeALibraryIsDestroyed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::thread(LoadAndCall).detach();
        while (calls < 1000) usleep(100);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

// A thread may be in dlopen when exit() begins; then it calls.
TEST(ExitGateDeathTest, WaitsForALibraryThatIsBeingLoaded) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::thread(LoadAndCall).detach();
        usleep(100'000);
        exit(7);
      },
      ::testing::ExitedWithCode(7), "");
}

TEST(ExitGateDeathTest, LoadsNothingOnTheThreadThatExits) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        atexit([] {
          SharedLibrary library;
          Status opened = SharedLibrary::Open("libm.so.6", &library);
          if (opened.code() != Code::COPIER_UNAVAILABLE || opened.message().find("is exiting") == std::string::npos)
            abort();
        });
        Load();
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
          if (library.work(0) != -5) abort();
          library.forget();
        });
        Load();
        exit(library.work(0) == 0 ? 9 : 1);
      },
      ::testing::ExitedWithCode(9), "");
}

// What a library wants back, it gets before its calls are refused.
TEST(ExitGateDeathTest, GivesBackBeforeItCloses) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Load();
        ExitGate::BeforeClosing([] {
          if (library.work(0) == 0) fputs("given back\n", stderr);
        });
        Load();  // another library: its handler runs first
        exit(7);
      },
      ::testing::ExitedWithCode(7), "^given back\n$");
}

}  // namespace
}  // namespace fst
