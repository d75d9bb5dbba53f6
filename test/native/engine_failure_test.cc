// An error at any point ends its load with the right code, does not touch other loads, and leaks nothing.
#include <unistd.h>

#include "device/fake_device.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"
#include "support/scripted_device.h"
#include "support/scripted_reader.h"

namespace fst {
namespace {

std::shared_ptr<Device> Fake(FakeDevice::Options options = {20, 0, 0}) {
  return std::make_shared<FakeDevice>("cuda:0", options);
}

std::shared_ptr<ReaderScript> SmallReads() {
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 8 << 10;
  script->needs.scatters = true;
  return script;
}

FakeReaderOptions Late() {
  FakeReaderOptions options;
  options.chunk = 8 << 10;
  options.in_flight = 4;
  options.ms_per_io = 0.2;
  options.reorder = true;
  return options;
}

// The nth read fails, on either device, direct and staged. It may be a read of either load.
TEST_F(EngineTest, AFailingReadEndsItsLoadOnly) {
  Model model = Written({});
  for (int nth : {1, 2, 5, 11}) {
    for (int mode = 0; mode < 8; ++mode) {
      FakeReaderOptions options = Late();
      ((mode & 1) != 0 ? options.fail_at : options.short_at) = nth;
      EngineOptions staged;
      staged.always_stage = (mode & 2) != 0;
      auto engine = Open((mode & 4) != 0 ? Fake() : std::make_shared<HostDevice>(), NewFakeReader(options), staged);
      auto first = Watch::Begin(*engine, model), second = Watch::Begin(*engine, model);
      first->WaitDrained();
      second->WaitDrained();
      Watch& failed = first->transfer().status().ok() ? *second : *first;
      Watch& other = &failed == first.get() ? *second : *first;
      failed.ExpectFailure((mode & 1) != 0 ? Code::IO_ERROR : Code::SHORT_READ);
      EXPECT_FALSE(failed.transfer().status().path().empty());
      EXPECT_GE(failed.transfer().status().offset(), 0);
      other.ExpectComplete();
      EXPECT_EQ(failed.transfer().TakeAllocation(0), nullptr);
    }
  }
}

TEST_F(EngineTest, AFailingCopyEndsTheLoad) {
  Model model = Written({});
  for (int nth : {1, 3, 7}) {
    auto engine = Open(Fake({20, nth, 0}), NewFakeReader(Late()));
    auto watch = Watch::Begin(*engine, model);
    watch->ExpectFailure(Code::CUDA_ERROR);
    Watch::Begin(*engine, model)->ExpectComplete();
  }
}

TEST_F(EngineTest, ARefusedSubmissionEndsTheLoad) {
  Model model = Written({});
  for (int nth : {1, 2, 6}) {
    for (bool stage : {false, true}) {
      auto script = SmallReads();
      script->fail_submit_at = nth;
      EngineOptions options;
      options.always_stage = stage;
      options.staging_limit = 16 << 10;  // few slots: the next load hangs if one is lost
      auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
      Watch::Begin(*engine, model)->ExpectFailure(Code::IO_ERROR);
      Watch::Begin(*engine, model)->ExpectComplete();
    }
  }
}

TEST_F(EngineTest, ADeviceThatRefusesEndsTheLoad) {
  Model model = Written({});
  struct Refusal {
    int allocate, staging, submit;
    Code code;
  };
  for (const Refusal& refusal :
       {Refusal{1, 0, 0, Code::OUT_OF_DEVICE_MEMORY}, Refusal{3, 0, 0, Code::OUT_OF_DEVICE_MEMORY},
        Refusal{0, 1, 0, Code::OUT_OF_HOST_MEMORY}, Refusal{0, 0, 1, Code::CUDA_ERROR},
        Refusal{0, 0, 4, Code::CUDA_ERROR}}) {
    auto script = std::make_shared<DeviceScript>();
    script->fail_allocate_at = refusal.allocate;
    script->fail_staging_at = refusal.staging;
    script->fail_submit_at = refusal.submit;
    auto device =
        std::make_shared<ScriptedDevice<FakeDevice>>(script, std::string("cuda:0"), FakeDevice::Options{20, 0, 0});
    EngineOptions options;
    options.staging_limit = 16 << 10;
    auto engine = Open(device, NewFakeReader(Late()), options);
    Watch::Begin(*engine, model)->ExpectFailure(refusal.code);
    Watch::Begin(*engine, model)->ExpectComplete();
  }
}

TEST_F(EngineTest, WithoutAStreamOrAReaderEveryLoadFails) {
  Model model = Written({});
  auto device_script = std::make_shared<DeviceScript>();
  device_script->fail_stream = true;
  auto reader_script = SmallReads();
  auto engine = Open(std::make_shared<ScriptedDevice<HostDevice>>(device_script),
                     std::make_unique<ScriptedReader>(reader_script));
  for (int i = 0; i < 2; ++i) Watch::Begin(*engine, model)->ExpectFailure(Code::CUDA_ERROR);
  CloseAndWait(*engine);
  EXPECT_TRUE(reader_script->gone);

  reader_script->start = Status(Code::THREEFS_ERROR, "told not to start");
  engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(reader_script));
  for (int i = 0; i < 2; ++i) Watch::Begin(*engine, model)->ExpectFailure(Code::THREEFS_ERROR);
  CloseAndWait(*engine);
  EXPECT_EQ(reader_script->opens, 0);
}

TEST_F(EngineTest, AFileThatCannotBeOpenedEndsTheLoad) {
  ModelShape shape;
  shape.files = 20;
  Model model = Written(shape);
  for (int nth : {1, 7, 20}) {
    auto script = SmallReads();
    script->fail_open_at = nth;
    auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
    Watch::Begin(*engine, model)->ExpectFailure(Code::IO_ERROR);
    Watch::Begin(*engine, model)->ExpectComplete();
  }
}

TEST_F(EngineTest, AFileThatChangedIsNeverData) {
  for (bool direct : {false, true}) {
    ModelShape shape;
    shape.files = 2;
    Model model = Written(shape);
    const PlanFile& file = model.plan.files[1];
    ASSERT_EQ(truncate(file.path.c_str(), static_cast<off_t>(file.expected.size / 2)), 0);
    auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({2, direct, false, 8 << 10}));
    auto watch = Watch::Begin(*engine, model);
    watch->ExpectFailure(Code::FILE_CHANGED);
    EXPECT_EQ(watch->transfer().status().path(), file.path);
    ASSERT_EQ(unlink(file.path.c_str()), 0);
    Watch::Begin(*engine, model)->ExpectFailure(Code::IO_ERROR);
  }
}

// The file is truncated while its reads are held.
TEST_F(EngineTest, AFileThatShrinksUnderItsReadsIsNeverData) {
  ModelShape shape;
  shape.files = 1;
  Model model = Written(shape);
  auto script = SmallReads();
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(1);
  ASSERT_EQ(truncate(model.plan.files[0].path.c_str(), 10), 0);
  script->Release();
  watch->ExpectFailure(Code::UNEXPECTED_EOF);
}

TEST_F(EngineTest, MemoryThatCannotBeHadIsRefusedBeforeAnyIsTaken) {
  Model model = Written({});
  auto script = std::make_shared<DeviceScript>();
  auto device = std::make_shared<ScriptedDevice<FakeDevice>>(script, std::string("cuda:0"),
                                                             FakeDevice::Options{20, 0, model.Bytes() / 2});
  auto engine = Open(device, NewFakeReader(Late()));
  Watch::Begin(*engine, model)->ExpectFailure(Code::OUT_OF_DEVICE_MEMORY);
  EXPECT_EQ(script->allocates, 0);
}

// Begins loads with ever longer limits until `reads` of one are held: on a busy machine a load may reach its limit
// before its first read.
template <class Begin>
std::shared_ptr<Watch> BeginUntilHeld(ReaderScript& script, size_t reads, Begin begin) {
  for (std::chrono::milliseconds limit(40);; limit *= 4) {
    std::shared_ptr<Watch> watch = begin(limit);
    bool held = Eventually([&] { return script.Held() >= reads || !watch->transfer().status().ok(); });
    EXPECT_TRUE(held);
    if (!held || script.Held() >= reads) return watch;
    script.Release();
    script.hold = true;
    watch->WaitDrained();
  }
}

// The error shows at the deadline, memory stays until the read has completed, and the I/O thread sleeps meanwhile.
TEST_F(EngineTest, ADeadlineEndsALoadWhoseReadsHang) {
  Model model = Written({});
  auto script = SmallReads();
  script->needs.in_flight = 1;
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto hung = BeginUntilHeld(*script, 1, [&](std::chrono::milliseconds limit) {
    TransferOptions options;
    options.deadline = Clock::now() + limit;
    return Watch::Begin(*engine, model, options);
  });
  auto waiting = Watch::Begin(*engine, model);  // its turns of the loop show in needs_calls
  hung->WaitFailed();
  EXPECT_EQ(hung->transfer().status().code(), Code::TIMEOUT);
  EXPECT_FALSE(hung->transfer().drained());
  EXPECT_GT(Metrics::Get().host_bytes, 0);
  int before = script->needs_calls;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(script->needs_calls - before, 50) << "the loop spins";
  script->Release();
  hung->WaitDrained();
  waiting->ExpectComplete();
  CloseAndWait(*engine);
}

TEST_F(EngineTest, ALoadThatIsCompleteIsNotLateForItsDeadline) {
  Model nothing;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(SmallReads()));
  TransferOptions options;
  options.deadline = Clock::now() - std::chrono::seconds(1);
  Watch::Begin(*engine, nothing, options)->ExpectComplete();
  CloseAndWait(*engine);
}

TEST_F(EngineTest, AStalledReadEndsItsLoadAndThoseThatWaitForIt) {
  Model model = Written({});
  for (bool stage : {false, true}) {
    auto script = SmallReads();
    script->needs.in_flight = 2;
    script->hold = true;
    std::shared_ptr<Engine> engine;
    auto stalled = BeginUntilHeld(*script, 2, [&](std::chrono::milliseconds limit) {
      EngineOptions options;
      options.always_stage = stage;
      options.stall_timeout = limit;
      if (engine != nullptr) CloseAndWait(*engine);
      engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
      return Watch::Begin(*engine, model);
    });
    auto waiting = Watch::Begin(*engine, model);
    stalled->WaitFailed();
    EXPECT_EQ(stalled->transfer().status().code(), Code::STALLED);
    EXPECT_FALSE(stalled->transfer().status().path().empty());
    waiting->ExpectFailure(Code::STALLED);
    EXPECT_FALSE(stalled->transfer().drained());
    script->Release();  // writes late, into memory that must not be freed yet
    stalled->WaitDrained();
    EXPECT_TRUE(Eventually([&] {  // on a busy machine a good load may stall as well
      auto after = Watch::Begin(*engine, model);
      after->WaitDrained();
      return after->transfer().status().ok();
    }));
    CloseAndWait(*engine);  // the last notification still reads the model
  }
}

TEST_F(EngineTest, AnOpenThatHangsIsAStall) {
  Model model = Written({});
  auto script = SmallReads();
  script->hold_opens = true;
  EngineOptions options;
  options.stall_timeout = std::chrono::milliseconds(40);
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
  auto watch = Watch::Begin(*engine, model);
  watch->WaitFailed();
  EXPECT_EQ(watch->transfer().status().code(), Code::STALLED);
  script->Release();
  watch->WaitDrained();
}

// close(2) asks the store: on one whose daemon was stopped it hangs.
TEST_F(EngineTest, AFileThatDoesNotCloseHoldsUpNeitherItsErrorNorOtherLoads) {
  Model model = Written({});
  auto script = SmallReads();
  script->needs.in_flight = 1;
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto failed = Watch::Begin(*engine, model);
  script->WaitHeld(1);
  ASSERT_TRUE(Eventually([&] { return script->opens == static_cast<int>(model.plan.files.size()); }));
  script->hold_closes = true;
  engine->Cancel(failed->shared_transfer(), Status(Code::CLOSED, "cancelled"));
  failed->WaitFailed();
  auto other = Watch::Begin(*engine, model);
  engine->Cancel(other->shared_transfer(), Status(Code::CLOSED, "cancelled"));
  other->WaitFailed();
  EXPECT_FALSE(failed->transfer().drained());
  script->Release();
  failed->ExpectFailure(Code::CLOSED);
  other->ExpectFailure(Code::CLOSED);  // it may have opened files, too, whose closes hang as well
  EXPECT_EQ(Metrics::Get().in_flight, 0);
  CloseAndWait(*engine);
}

TEST_F(EngineTest, AnIoThreadThatHangsStaysInItsTurn) {
  auto script = SmallReads();
  script->hold_start = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  const uint64_t turn = engine->turn();
  EXPECT_EQ(turn % 2, 1U);
  engine->SetWindow(std::make_shared<Transfer>(Plan(), TransferOptions()), 1);  // wakes it
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(engine->turn(), turn);
  script->Release();
  EXPECT_TRUE(Eventually([&] { return engine->turn() > turn && engine->turn() % 2 == 0; }));
  CloseAndWait(*engine);
}

// The first error stays, whatever follows it.
TEST_F(EngineTest, TheFirstErrorStays) {
  Model model = Written({});
  auto script = SmallReads();
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(1);
  engine->Cancel(watch->shared_transfer(), Status(Code::CHECKSUM_MISMATCH, "first"));
  engine->Cancel(watch->shared_transfer(), Status(Code::CLOSED, "second"));
  watch->WaitFailed();
  ASSERT_EQ(truncate(model.plan.files[0].path.c_str(), 0), 0);
  script->Release();
  watch->ExpectFailure(Code::CHECKSUM_MISMATCH);
}

}  // namespace
}  // namespace fst
