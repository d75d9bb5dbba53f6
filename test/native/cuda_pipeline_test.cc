// Loads through page-locked slots: how many there are, how they are allocated and freed.
#include <atomic>

#include "cuda_load_fixture.h"

namespace fst {
namespace {

using test::ByFile;
using test::Loaded;

class CudaPipelineTest : public test::CudaLoadTest {
 protected:
  std::shared_ptr<Engine> Open(EngineOptions options) {
    EXPECT_TRUE(OpenDevice("cuda:0", false, &device).ok());
    std::shared_ptr<Engine> engine;
    EXPECT_TRUE(Engine::Create(device, ByFile()(), options, &engine).ok());
    plan.files.clear();
    for (const test::TestFile& file : files) {
      PlanFile planned{file.path, {}};
      int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
      EXPECT_TRUE(FileIdentity::Of(fd, file.path, &planned.expected).ok());
      close(fd);
      plan.files.push_back(planned);
    }
    return engine;
  }

  void LoadOnce(Engine& engine) {
    std::shared_ptr<Transfer> transfer;
    ASSERT_TRUE(engine.Start(plan, {}, &transfer).ok());
    ASSERT_TRUE(WaitFor([&] { return transfer->drained(); }));
    ASSERT_TRUE(transfer->status().ok()) << transfer->status().message();
  }

  void CloseAndWait(Engine& engine) {
    auto closed = std::make_shared<std::atomic<bool>>(false);
    engine.Close([closed] { *closed = true; });
    EXPECT_TRUE(WaitFor([&] { return closed->load(); }));
  }

  std::shared_ptr<Device> device;
};

TEST_F(CudaPipelineTest, SlotsAreLockedOnceAndServeEveryLoad) {
  AddModel();
  auto engine = Open({});
  for (int load = 0; load < 3; ++load) LoadOnce(*engine);
  EXPECT_EQ(cuda.call_count("cuMemHostRegister_v2"), 2u) << "a few, then the others";
  EXPECT_EQ(cuda.call_count("cuStreamCreate"), 1u);
  EXPECT_EQ(cuda.unpinned_async_copies(), 0u);
  EXPECT_EQ(cuda.live_pinned_bytes(), engine->StagingBytes());
  EXPECT_EQ(static_cast<uint64_t>(Metrics::Get().staging_bytes), engine->StagingBytes()) << "and they are counted";
  CloseAndWait(*engine);
  EXPECT_EQ(cuda.live_pinned(), 0u);
  device.reset();
}

TEST_F(CudaPipelineTest, ASmallLoadLocksAFewSlots) {
  AddFile(1 << 20, 3);
  AddTensors(0, 0, {64 << 10, 1000});  // two reads
  auto engine = Open({});
  LoadOnce(*engine);
  EXPECT_EQ(cuda.live_pinned_bytes(), uint64_t{2} * (64 << 10));
  EXPECT_GT(engine->StagingBytes(), cuda.live_pinned_bytes());
  CloseAndWait(*engine);
  device.reset();
}

TEST_F(CudaPipelineTest, SlotsStayWithinTheirLimit) {
  AddModel();
  EngineOptions options;
  for (uint64_t limit : {uint64_t{1}, uint64_t{130} << 10, uint64_t{300} << 10}) {
    cuda.reset();
    options.staging_limit = limit;
    auto engine = Open(options);
    LoadOnce(*engine);
    EXPECT_LE(cuda.peak_pinned_bytes(), std::max<uint64_t>(limit, 64 << 10)) << "one slot there must be";
    CloseAndWait(*engine);
  }
  device.reset();
}

// A read that hangs delays no copy, and a copy no read.
TEST_F(CudaPipelineTest, ReadsGoOnWhileCopiesArePending) {
  AddFile(1 << 20, 3);
  AddTensors(0, 0, {1 << 20});
  auto engine = Open({});
  cuda.hold(1);
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(engine->Start(plan, {}, &transfer).ok());
  // All slots are read and wait for their copies.
  const uint64_t slots = engine->StagingBytes() / (64 << 10);
  EXPECT_GT(slots, 2u);
  EXPECT_TRUE(WaitFor([&] { return cuda.pending() == slots; })) << cuda.pending() << " copies of " << slots;
  EXPECT_EQ(transfer->bytes_loaded(), 0u);
  cuda.hold(0);
  EXPECT_TRUE(WaitFor([&] { return transfer->drained(); }));
  EXPECT_EQ(transfer->bytes_loaded(), uint64_t{1} << 20);
  CloseAndWait(*engine);
  device.reset();
}

}  // namespace
}  // namespace fst
