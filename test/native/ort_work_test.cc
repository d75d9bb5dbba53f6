#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

#include "base/task_pool.h"
#include "ort/work.h"

namespace fst::ort {
namespace {

using std::chrono::milliseconds;

// What runs from its beginning until it may go on.
struct Held {
  std::promise<void> begun, go;
  std::atomic<bool> done{false};

  void Run() {
    begun.set_value();
    go.get_future().wait();
    done = true;
  }
};

TEST(OrtWorkTest, WorkRunsAndIsWaitedFor) {
  auto group = WorkGroup::Make();
  Held held;
  ASSERT_TRUE(group->Post(nullptr, [&] { held.Run(); }).ok());
  held.begun.get_future().wait();
  EXPECT_FALSE(group->End(milliseconds(0)));
  EXPECT_FALSE(held.done.load());
  held.go.set_value();
  EXPECT_TRUE(group->End(std::nullopt));
  EXPECT_TRUE(held.done.load());
}

// It may hold values of ONNX Runtime, whose library exit() is about to destroy.
TEST(OrtWorkTest, WhatWorkLeavesForAfterwardsIsWaitedFor) {
  auto group = WorkGroup::Make();
  Held held;
  ASSERT_TRUE(group->Post(nullptr, [&] { TaskPool::AfterTask([&] { held.Run(); }); }).ok());
  held.begun.get_future().wait();
  EXPECT_FALSE(group->End(milliseconds(0)));
  held.go.set_value();
  EXPECT_TRUE(group->End(std::nullopt));
  EXPECT_TRUE(held.done.load());
}

TEST(OrtWorkTest, NothingBeginsAfterTheEnd) {
  auto group = WorkGroup::Make();
  EXPECT_TRUE(group->End(std::nullopt));
  std::atomic<bool> ran{false};
  ASSERT_TRUE(group->Post(nullptr, [&] { ran = true; }).ok());
  // Another group's work is behind it in the same queue, or beside it.
  auto other = WorkGroup::Make();
  std::promise<void> passed;
  ASSERT_TRUE(other->Post(nullptr, [&] { passed.set_value(); }).ok());
  passed.get_future().wait();
  EXPECT_TRUE(other->End(std::nullopt));
  EXPECT_FALSE(ran.load());
}

TEST(OrtWorkTest, TheEndStopsWhatRuns) {
  auto group = WorkGroup::Make();
  auto control = std::make_shared<Control>();
  std::promise<void> begun;
  ASSERT_TRUE(group
                  ->Post(control,
                         [&] {
                           begun.set_value();
                           while (!control->stopped()) std::this_thread::sleep_for(milliseconds(1));
                         })
                  .ok());
  begun.get_future().wait();
  EXPECT_TRUE(group->End(std::nullopt));
  EXPECT_TRUE(control->stopped());
}

TEST(OrtWorkTest, WhatWorkHoldsIsGivenBackBeforeTheEnd) {
  auto group = WorkGroup::Make();
  auto held = std::make_shared<int>(1);
  std::weak_ptr<int> seen = held;
  std::promise<void> begun;
  ASSERT_TRUE(group
                  ->Post(nullptr,
                         [held = std::move(held), &begun] {
                           begun.set_value();
                           std::this_thread::sleep_for(milliseconds(5));
                         })
                  .ok());
  begun.get_future().wait();
  EXPECT_TRUE(group->End(std::nullopt));
  EXPECT_TRUE(seen.expired());
}

TEST(OrtWorkTest, ManyGroupsEndAtAnyMoment) {
  for (int round = 0; round < 50; ++round) {
    std::vector<std::shared_ptr<WorkGroup>> groups;
    std::atomic<int> running{0};
    for (int i = 0; i < 4; ++i) groups.push_back(WorkGroup::Make());
    for (int i = 0; i < 100; ++i) {
      auto control = std::make_shared<Control>();
      ASSERT_TRUE(groups[i % 4]
                      ->Post(control,
                             [&running, control] {
                               ++running;
                               if (control->stopped()) std::this_thread::yield();
                               --running;
                             })
                      .ok());
    }
    for (auto& group : groups) EXPECT_TRUE(group->End(std::nullopt));
    EXPECT_EQ(running.load(), 0);
  }
}

}  // namespace
}  // namespace fst::ort
