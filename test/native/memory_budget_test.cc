// A budget of device memory, counted by the emulated driver itself: what is held is never above it, whoever frees when.
#include "transfer/memory_budget.h"

#include <deque>

#include "cuda_load_fixture.h"
#include "support/temp_folder.h"

namespace fst::test {
namespace {

constexpr uint64_t kTensor = 100'000;
constexpr size_t kTensors = 60;

class MemoryBudgetTest : public CudaLoadTest {
 protected:
  void SetUp() override {
    CudaLoadTest::SetUp();
    AddFile(kTensors * kTensor, 1);
    for (size_t i = 0; i < kTensors; ++i) {
      AddTensors(0, i * kTensor, {kTensor});
      plan.allocations.back().batch = static_cast<uint32_t>(i);
    }
  }

  Plan WithFiles() const {
    Plan result = plan;
    result.files.push_back({files[0].path, IdentityOf(files[0].path)});
    return result;
  }

  // Takes each tensor when it is ready, and keeps `kept` of them. Returns what the next one waits for when no more came
  // for a while; 0 when all have come.
  static uint64_t Consume(Transfer& transfer, size_t kept) {
    std::deque<std::shared_ptr<DeviceBuffer>> held;
    for (uint32_t i = 0; i < kTensors; ++i) {
      for (int waited = 0; transfer.ready_prefix() <= i; ++waited) {
        if (!transfer.status().ok() || waited > 20'000) return UINT64_MAX;
        if (waited > 200 && transfer.waits_for() > 0) return transfer.waits_for();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      held.push_back(transfer.TakeAllocation(i));
      if (held.size() > kept) held.pop_front();
    }
    return 0;
  }
};

TEST_F(MemoryBudgetTest, IsNeverExceededByTheDriversOwnCount) {
  for (uint64_t limit : {kTensor, 3 * kTensor + 5, 10 * kTensor}) {
    cuda.reset();
    std::shared_ptr<Device> device;
    ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
    TransferOptions options;
    options.budget = std::make_shared<MemoryBudget>(limit);
    std::shared_ptr<Engine> engine;
    ASSERT_TRUE(Engine::Create(device, NewFileReader({}), {}, &engine).ok());
    const uint64_t before = cuda.live_bytes();
    std::shared_ptr<Transfer> transfer;
    ASSERT_TRUE(engine->Start(WithFiles(), options, &transfer).ok());
    EXPECT_EQ(Consume(*transfer, 0), 0U) << transfer->status().message();
    EXPECT_LE(cuda.peak_bytes() - before, limit);
    engine.reset();
    transfer.reset();
    EXPECT_TRUE(WaitFor([] { return Metrics::Get().staging_bytes == 0 && Metrics::Get().open_files == 0; }));
    WaitForFrees();
    EXPECT_EQ(options.budget->held(), 0U);
  }
}

TEST_F(MemoryBudgetTest, SaysWhatItWaitsForWhileAllIsHeld) {
  std::shared_ptr<Device> device;
  ASSERT_TRUE(OpenDevice("cuda:0", false, &device).ok());
  TransferOptions options;
  options.budget = std::make_shared<MemoryBudget>(4 * kTensor);
  std::shared_ptr<Engine> engine;
  ASSERT_TRUE(Engine::Create(device, NewFileReader({}), {}, &engine).ok());
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(engine->Start(WithFiles(), options, &transfer).ok());
  EXPECT_EQ(Consume(*transfer, 10), kTensor);
  engine->Cancel(transfer, Status(Code::CLOSED, "enough"));
  engine.reset();
  transfer.reset();
  EXPECT_TRUE(WaitFor([] { return Metrics::Get().staging_bytes == 0 && Metrics::Get().in_flight == 0; }));
}

}  // namespace
}  // namespace fst::test
