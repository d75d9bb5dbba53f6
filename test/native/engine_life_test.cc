// Cancel and close at any moment: nothing hangs, nothing is freed under a read or a copy, nothing leaks.
#include "device/fake_device.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"
#include "support/scripted_reader.h"

namespace fst {
namespace {

std::shared_ptr<Device> AnyDevice(Random& random) {
  if (Chance(random, 0.5)) return std::make_shared<HostDevice>();
  return std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{static_cast<int>(Below(random, 200)), 0, 0});
}

std::unique_ptr<Reader> AnyReader(Random& random) {
  if (Chance(random, 0.3)) return NewFileReader({2, Chance(random, 0.5), Chance(random, 0.5), 8 << 10});
  FakeReaderOptions options;
  options.chunk = 8 << 10;
  options.in_flight = 1 + static_cast<int>(Below(random, 8));
  options.alignment = Chance(random, 0.5) ? 4096 : 1;
  options.ms_per_io = 0.3;
  options.reorder = true;
  return NewFakeReader(options);
}

// Waits for a random time, from nothing to about as long as a load takes.
void AnyMoment(Random& random) {
  uint64_t us = Below(random, 4) == 0 ? 0 : Below(random, 4000);
  if (us > 0) std::this_thread::sleep_for(std::chrono::microseconds(us));
}

class EngineLife : public EngineTest {
 protected:
  static constexpr uint64_t kRounds = 60;
};

TEST_F(EngineLife, CancelAtAnyMoment) {
  Model model = Written({});
  for (uint64_t round = 0; round < kRounds; ++round) {
    Random random(round);
    EngineOptions options;
    options.always_stage = Chance(random, 0.5);
    auto engine = Open(AnyDevice(random), AnyReader(random), options);
    std::vector<std::shared_ptr<Watch>> watches;
    for (int i = 0; i < 3; ++i) watches.push_back(Watch::Begin(*engine, model));
    AnyMoment(random);
    engine->Cancel(watches[1]->shared_transfer(), Status(Code::CLOSED, "cancelled"));
    watches[0]->ExpectComplete();
    watches[1]->WaitDrained();
    if (!watches[1]->transfer().status().ok()) watches[1]->ExpectFailure(Code::CLOSED);
    watches[2]->ExpectComplete();
  }
}

TEST_F(EngineLife, CloseAtAnyMoment) {
  Model model = Written({});
  for (uint64_t round = 0; round < kRounds; ++round) {
    Random random(1000 + round);
    EngineOptions options;
    options.always_stage = Chance(random, 0.5);
    auto engine = Open(AnyDevice(random), AnyReader(random), options);
    std::vector<std::shared_ptr<Watch>> watches;
    for (uint64_t i = Below(random, 4); i > 0; --i) watches.push_back(Watch::Begin(*engine, model));
    AnyMoment(random);
    CloseAndWait(*engine);
    EXPECT_EQ(Metrics::Get().in_flight, 0);
    EXPECT_EQ(Metrics::Get().staging_bytes, 0);
    for (auto& watch : watches) {
      EXPECT_TRUE(watch->transfer().drained());
      if (!watch->transfer().status().ok()) watch->ExpectFailure(Code::CLOSED);
    }
  }
}

// Without waiting: the handles of the engine, of the loads, or of both are dropped halfway.
TEST_F(EngineLife, LetGoAtAnyMoment) {
  Model model = Written({});
  for (uint64_t round = 0; round < kRounds; ++round) {
    Random random(2000 + round);
    auto engine = Open(AnyDevice(random), AnyReader(random));
    std::shared_ptr<Transfer> first, second;
    ASSERT_TRUE(engine->Start(model.plan, {}, &first).ok());
    ASSERT_TRUE(engine->Start(model.plan, {}, &second).ok());
    AnyMoment(random);
    switch (Below(random, 3)) {
      case 0:
        engine.reset();
        break;
      case 1:
        first.reset();
        second.reset();
        break;
      default:
        first.reset();
        engine.reset();
    }
  }
}

TEST_F(EngineLife, CallsFromManyThreads) {
  Model model = Written({});
  for (uint64_t round = 0; round < 20; ++round) {
    Random random(3000 + round);
    auto engine = Open(AnyDevice(random), AnyReader(random));
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        Random own(round * 10 + i);
        for (int k = 0; k < 3; ++k) {
          std::shared_ptr<Transfer> transfer;
          TransferOptions options;
          options.window = 1;
          options.collect_ready = true;
          Status started = engine->Start(model.plan, options, &transfer);
          if (!started.ok()) {
            EXPECT_EQ(started.code(), Code::CLOSED);
            return;
          }
          engine->SetWindow(transfer, UINT32_MAX);
          AnyMoment(own);
          transfer->TakeReady();
          if (transfer->ready_prefix() > 0) transfer->TakeAllocation(0);
          if (k == 1) engine->Cancel(transfer, Status(Code::CLOSED, "cancelled"));
          if (i == 3 && k == 2) engine->Close(nullptr);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CloseAndWait(*engine);
  }
}

TEST_F(EngineLife, AfterCloseNothingStarts) {
  Model model = Written({});
  auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({}));
  Latch closed(3);
  engine->Close([&] { closed.Down(); });
  engine->Close([&] { closed.Down(); });
  std::shared_ptr<Transfer> transfer;
  EXPECT_EQ(engine->Start(model.plan, {}, &transfer).code(), Code::CLOSED);
  EXPECT_EQ(transfer, nullptr);
  CloseAndWait(*engine);
  engine->Close([&] { closed.Down(); });  // called at once: the engine has ended
  EXPECT_TRUE(closed.Wait());
}

// Close waits for hanging reads, and their memory stays.
TEST_F(EngineLife, CloseWaitsForReadsThatHang) {
  Model model = Written({});
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 8 << 10;
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(2);
  std::atomic<bool> closed{false};
  engine->Close([&] { closed = true; });
  watch->WaitFailed();
  EXPECT_EQ(watch->transfer().status().code(), Code::CLOSED);
  engine.reset();
  EXPECT_FALSE(closed);
  EXPECT_FALSE(script->gone);
  EXPECT_GT(Metrics::Get().host_bytes, 0) << "memory under a read was given back";
  script->Release();
  EXPECT_TRUE(Eventually([&] { return closed.load(); }));
  EXPECT_TRUE(script->gone);
}

// A handle of a load may live long after the load; its memory must not.
TEST_F(EngineLife, CancelDropsMemoryThatNobodyTook) {
  Model model = Written({});
  for (bool close_first : {false, true}) {
    auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({}));
    std::shared_ptr<Transfer> transfer;
    ASSERT_TRUE(engine->Start(model.plan, {}, &transfer).ok());
    EXPECT_TRUE(Eventually([&] { return transfer->drained(); }));
    EXPECT_GT(Metrics::Get().host_bytes, 0);
    if (close_first) CloseAndWait(*engine);
    engine->Cancel(transfer, Status(Code::CLOSED, "not required"));
    EXPECT_TRUE(Eventually([] { return Metrics::Get().host_bytes == 0; }));
    EXPECT_TRUE(transfer->status().ok()) << "it had ended";
    CloseAndWait(*engine);
  }
}

TEST_F(EngineLife, MemoryThatWasGivenIsNotKept) {
  Model model = Written({});
  auto device = std::make_shared<HostDevice>();
  auto engine = Open(device, NewFileReader({}));
  TransferOptions options;
  for (const PlanAllocation& allocation : model.plan.allocations) {
    options.preallocated.emplace_back();
    if (allocation.size > 0) {
      ASSERT_TRUE(device->Allocate(allocation.size, &options.preallocated.back()).ok());
    }
  }
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(engine->Start(model.plan, std::move(options), &transfer).ok());
  EXPECT_TRUE(Eventually([&] { return transfer->drained(); }));
  EXPECT_TRUE(transfer->status().ok());
  EXPECT_EQ(Metrics::Get().host_bytes, 0);
}

// The transfer releases a taken allocation with its last item.
TEST_F(EngineLife, TakenMemoryGoesWithItsLastHolder) {
  Model model = Written({});
  auto engine = Open(std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{20, 0, 0}), NewFileReader({}));
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(engine->Start(model.plan, {}, &transfer).ok());
  EXPECT_TRUE(Eventually([&] { return transfer->drained(); }));
  for (uint32_t i = 0; i < model.plan.allocations.size(); ++i) {
    auto buffer = transfer->TakeAllocation(i);
    EXPECT_EQ(buffer == nullptr, model.plan.allocations[i].size == 0);
    if (buffer != nullptr) {
      EXPECT_EQ(buffer.use_count(), 1);
    }
  }
  EXPECT_EQ(Metrics::Get().device_bytes, 0);
}

}  // namespace
}  // namespace fst
