// An engine for several devices: transfers to each share its reader and slots, and none holds another up.
#include <gtest/gtest.h>

#include "device/fake_device.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"
#include "support/held_device.h"
#include "support/scripted_device.h"

namespace fst {
namespace {

class SeveralDevicesTest : public EngineTest {
 protected:
  static std::unique_ptr<Reader> SmallReads() {
    FileReaderOptions options;
    options.threads = 2;
    options.chunk = 4096;
    return NewFileReader(options);
  }
  static std::shared_ptr<Device> Gpu(int number) {
    return std::make_shared<FakeDevice>("cuda:" + std::to_string(number), FakeDevice::Options{});
  }
  static TransferOptions On(uint32_t device, std::shared_ptr<MemoryBudget> budget = nullptr) {
    TransferOptions options;
    options.device = device;
    options.budget = std::move(budget);
    return options;
  }
  std::shared_ptr<Engine> OpenFor(std::vector<std::shared_ptr<Device>> devices, std::unique_ptr<Reader> reader) {
    std::shared_ptr<Engine> engine;
    Status created = Engine::Create(std::move(devices), std::move(reader), {}, &engine);
    EXPECT_TRUE(created.ok()) << created.message();
    return engine;
  }
};

TEST_F(SeveralDevicesTest, EachTransferGoesToItsDevice) {
  std::vector<std::shared_ptr<Device>> devices{Gpu(0), Gpu(1), Gpu(2)};
  auto engine = OpenFor(devices, SmallReads());
  std::vector<Model> models;
  for (uint64_t seed = 0; seed < 3; ++seed) models.push_back(Written({}, seed));
  std::vector<std::shared_ptr<Watch>> watches;
  for (uint32_t i = 0; i < 3; ++i) watches.push_back(Watch::Begin(*engine, models[i], On(i)));
  for (auto& watch : watches) watch->ExpectComplete();
  for (uint32_t i = 0; i < 3; ++i) {
    std::shared_ptr<Transfer> transfer;
    ASSERT_TRUE(engine->Start(models[0].plan, On(i), &transfer).ok());
    ASSERT_TRUE(Eventually([&] { return transfer->drained(); }));
    for (uint32_t a = 0; a < models[0].plan.allocations.size(); ++a)
      if (auto buffer = transfer->TakeAllocation(a)) EXPECT_EQ(&buffer->device(), devices[i].get());
  }
}

TEST_F(SeveralDevicesTest, OneThatCopiesSlowlyLeavesSlotsToTheOthers) {
  auto slow = std::make_shared<HeldDevice>("cuda:0", FakeDevice::Options{});
  auto engine = OpenFor({slow, Gpu(1)}, SmallReads());
  const Model model = Written({}), other = Written({}, 2);
  auto held = Watch::Begin(*engine, model, On(0));
  ASSERT_TRUE(Eventually([&] { return slow->Held() > 0; }));
  auto watch = Watch::Begin(*engine, other, On(1));
  auto again = Watch::Begin(*engine, model, On(0));
  watch->ExpectComplete();
  EXPECT_EQ(held->transfer().ready_count() < model.plan.items.size(), true);
  slow->Release();
  held->ExpectComplete();
  again->ExpectComplete();
}

TEST_F(SeveralDevicesTest, AnErrorOfOneLeavesTheOthersAndNothingBehind) {
  auto script = std::make_shared<DeviceScript>();
  script->fail_submit_at = 3;
  auto failing = std::make_shared<ScriptedDevice<FakeDevice>>(script, "cuda:0", FakeDevice::Options{});
  auto engine = OpenFor({failing, Gpu(1)}, SmallReads());
  const Model model = Written({}), other = Written({}, 2);
  auto failed = Watch::Begin(*engine, model, On(0));
  auto watch = Watch::Begin(*engine, other, On(1));
  failed->ExpectFailure(Code::CUDA_ERROR);
  watch->ExpectComplete();
}

TEST_F(SeveralDevicesTest, EachHasABudgetOfItsOwn) {
  const Model model = Written({});
  uint64_t largest = 0;
  for (const PlanAllocation& allocation : model.plan.allocations) largest = std::max(largest, allocation.size);
  auto small = std::make_shared<MemoryBudget>(largest), large = std::make_shared<MemoryBudget>(uint64_t{1} << 40);
  auto engine = OpenFor({Gpu(0), Gpu(1)}, SmallReads());
  auto waiting = Watch::Begin(*engine, model, On(0, small));  // its watch holds what it has seen
  auto watch = Watch::Begin(*engine, model, On(1, large));
  watch->ExpectComplete();
  EXPECT_TRUE(Eventually([&] { return waiting->transfer().waits_for() > 0; }));
  EXPECT_LE(small->held(), largest);
  engine->Cancel(waiting->shared_transfer(), Status(Code::CLOSED, "enough"));
  waiting->ExpectFailure(Code::CLOSED);
}

TEST_F(SeveralDevicesTest, OnlyDevicesThatCopyFromSlotsShareAnEngine) {
  std::shared_ptr<Engine> engine;
  auto host = std::make_shared<HostDevice>();
  Status mixed = Engine::Create({Gpu(0), host}, SmallReads(), {}, &engine);
  EXPECT_EQ(mixed.code(), Code::INVALID_ARGUMENT);
  EXPECT_NE(mixed.message().find("cpu is filled in another way"), std::string::npos) << mixed.message();
  engine = OpenFor({Gpu(0), Gpu(1)}, SmallReads());
  std::shared_ptr<Transfer> transfer;
  EXPECT_EQ(engine->Start(Written({}).plan, On(2), &transfer).code(), Code::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace fst
