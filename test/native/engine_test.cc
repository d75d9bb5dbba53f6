// The whole loop: every device, reader and path, compared with the bytes of the files, and Metrics at zero after each.
// test/README.md lists breaks that were tried, and the test that turns red for each.
#include <fcntl.h>

#include "device/fake_device.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"
#include "support/scripted_device.h"
#include "support/scripted_reader.h"

namespace fst {
namespace {

using Order = ModelShape::Order;

std::unique_ptr<Reader> FakeWith(size_t alignment, bool fills_host, bool reorder) {
  FakeReaderOptions options;
  options.alignment = alignment;
  options.fills_host = fills_host;
  options.reorder = reorder;
  options.ms_per_io = 0.2;
  options.chunk = 16 << 10;
  options.in_flight = 5;
  return NewFakeReader(options);
}

std::unique_ptr<Reader> Scripted(size_t alignment, bool fills_device, bool scatters, uint64_t boundary) {
  auto script = std::make_shared<ReaderScript>();
  ReaderNeeds& needs = script->needs;
  needs.offset_alignment = needs.length_alignment = needs.memory_alignment = alignment;
  needs.fills_device = fills_device;
  needs.scatters = scatters;
  needs.boundary = boundary;
  needs.chunk = 16 << 10;
  return std::make_unique<ScriptedReader>(script);
}

struct ReaderKind {
  const char* name;
  std::unique_ptr<Reader> (*make)();
};

const ReaderKind kReaders[] = {
    {"Buffered",
     [] {
       return NewFileReader({3, false, false, 16 << 10});
     }},
    {"Direct",
     [] {
       return NewFileReader({3, true, false, 16 << 10});
     }},
    {"DirectByThreads",
     [] {
       FileReaderOptions options{3, true, false, 16 << 10};
       options.ring = false;
       return NewFileReader(options);
     }},
    {"DropCache",
     [] {
       return NewFileReader({2, false, true, 64 << 10});
     }},
    {"Skipping",
     [] {
       auto script = std::make_shared<ReaderScript>();
       script->needs.scatters = script->needs.skips = true;
       script->needs.chunk = 64 << 10;
       script->needs.largest_gap = 2048;
       script->needs.picks_holes = 4096;
       script->needs.first_chunk = 4096;
       return std::unique_ptr<Reader>(std::make_unique<ScriptedReader>(script));
     }},
    {"Fake", [] { return FakeWith(1, true, false); }},
    {"FakeReordered", [] { return FakeWith(1, true, true); }},
    {"FakeAligned", [] { return FakeWith(4096, true, true); }},
    {"FakeSlotsOnly", [] { return FakeWith(512, false, true); }},
    {"OnePiece", [] { return Scripted(1, false, false, 0); }},
    {"Gds", [] { return Scripted(4096, true, false, 0); }},
    {"GdsBoundary", [] { return Scripted(4096, true, false, 8192); }},
    {"Boundary", [] { return Scripted(1, false, true, 5000); }},
};

class EveryWay : public ::testing::TestWithParam<std::tuple<int, bool, bool, Order>>, protected EngineTestBase {
 protected:
  void TearDown() override { ExpectAllZero(); }
};

TEST_P(EveryWay, BringsEveryByte) {
  auto [reader, fake_device, always_stage, order] = GetParam();
  ModelShape shape;
  shape.order = order;
  shape.congruent = true;
  shape.max_length = 20000;
  shape.allocation = 64 << 10;
  Model model = Written(shape, static_cast<uint64_t>(reader) * 10 + static_cast<uint64_t>(order));
  std::shared_ptr<Device> device;
  if (fake_device) {
    device = std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{50, 0, 0});
  } else {
    device = std::make_shared<HostDevice>();
  }
  EngineOptions options;
  options.always_stage = always_stage;
  auto engine = Open(device, kReaders[reader].make(), options);
  TransferOptions plain;
  plain.collect_ready = true;
  auto watch = Watch::Begin(*engine, model, plain);
  // At the same time, into memory that exists already.
  TransferOptions given;
  for (const PlanAllocation& allocation : model.plan.allocations) {
    given.preallocated.emplace_back();
    if (allocation.size > 0 && given.preallocated.size() % 3 != 0) {
      ASSERT_TRUE(device->Allocate(allocation.size, &given.preallocated.back()).ok());
    }
  }
  auto second = Watch::Begin(*engine, model, given);
  watch->ExpectComplete();
  second->ExpectComplete();
}

std::string WayName(const ::testing::TestParamInfo<EveryWay::ParamType>& info) {
  static const char* const kOrders[] = {"Files", "Interleaved", "Shuffled"};
  return std::string(kReaders[std::get<0>(info.param)].name) + (std::get<1>(info.param) ? "Fake" : "Host") +
         (std::get<2>(info.param) ? "Staged" : "") + kOrders[static_cast<int>(std::get<3>(info.param))];
}
INSTANTIATE_TEST_SUITE_P(Engine, EveryWay,
                         ::testing::Combine(::testing::Range(0, static_cast<int>(std::size(kReaders))),
                                            ::testing::Bool(), ::testing::Bool(),
                                            ::testing::Values(Order::kFiles, Order::kInterleaved, Order::kShuffled)),
                         WayName);

TEST_F(EngineTest, LoadsBatchByBatchAsTheWindowAllows) {
  ModelShape shape;
  shape.new_batch = 1;
  Model model = Written(shape);
  const Plan& plan = model.plan;
  auto script = std::make_shared<DeviceScript>();
  auto device = std::make_shared<ScriptedDevice<FakeDevice>>(script, std::string("cuda:0"), FakeDevice::Options());
  auto engine = Open(device, FakeWith(1, true, true));
  TransferOptions options;
  options.window = 0;
  auto watch = Watch::Begin(*engine, model, options);
  const uint32_t batches = plan.allocations.back().batch + 1;
  ASSERT_GE(batches, 5U);
  for (uint32_t window = 1; window <= batches; ++window) {
    size_t allowed = 0;
    int allocations = 0;
    while (allowed < plan.items.size() && plan.BatchOf(allowed) < window) ++allowed;
    for (const PlanAllocation& allocation : plan.allocations)
      allocations += allocation.batch < window && allocation.size > 0;
    engine->SetWindow(watch->shared_transfer(), window);
    watch->WaitFor([&] { return watch->transfer().ready_prefix() >= allowed; }, "the batch");
    EXPECT_EQ(watch->transfer().ready_count(), allowed) << "window " << window;
    EXPECT_EQ(script->allocates, allocations) << "memory of a batch that is not allowed yet, window " << window;
  }
  watch->ExpectComplete();
}

Model Edited(Model model, const std::vector<int>& lengths, const std::vector<uint64_t>& full) {
  Plan& plan = model.plan;
  plan.items.clear();
  plan.allocations.clear();
  for (size_t i = 0; i < lengths.size(); ++i) {
    plan.allocations.push_back({static_cast<uint64_t>(lengths[i]), static_cast<uint32_t>(i / 3)});
    plan.items.push_back({static_cast<uint32_t>(i % plan.files.size()), static_cast<uint32_t>(i), full[i % full.size()],
                          static_cast<uint64_t>(lengths[i]), 0});
  }
  return model;
}

TEST_F(EngineTest, EmptyTensorsAnywhereAreReadyInOrder) {
  Model model = Written({});
  for (const std::vector<int>& lengths : std::vector<std::vector<int>>{
           {}, {0}, {0, 0, 0, 0}, {0, 0, 7}, {7, 0, 0}, {0, 7, 0, 0, 0, 9, 0}, {1, 0, 1, 0, 1, 0, 0, 0, 0, 1}}) {
    Model edited = Edited(model, lengths, {0, 100, 5});
    ASSERT_TRUE(edited.plan.Validate().ok());
    for (bool stage : {false, true}) {
      EngineOptions staged;
      staged.always_stage = stage;
      auto engine = Open(std::make_shared<HostDevice>(), FakeWith(1, true, true), staged);
      TransferOptions options;
      options.collect_ready = true;
      auto watch = Watch::Begin(*engine, edited, options);
      watch->ExpectComplete();
    }
  }
}

// Small shards are opened ahead, but only a few are open at a time.
TEST_F(EngineTest, ThousandsOfFilesWithAFewOpen) {
  ModelShape shape;
  shape.files = 3000;
  shape.tensors = 2;
  shape.max_length = 300;
  shape.max_gap = 64;
  Model model = Written(shape);
  auto engine = Open(std::make_shared<HostDevice>(), NewFileReader({4, false, false, 0}));
  std::atomic<bool> done{false};
  int64_t most = 0;
  std::thread sampler([&] {
    while (!done) most = std::max(most, Metrics::Get().open_files.load());
  });
  auto watch = Watch::Begin(*engine, model);
  watch->ExpectComplete();
  done = true;
  sampler.join();
  EXPECT_GT(most, 0);
  EXPECT_LE(most, 8 + 6 + 1) << "opened ahead, in flight, and one between the two";
}

// The plan interleaves more files than are opened ahead.
TEST_F(EngineTest, ManyFilesInterleaved) {
  ModelShape shape;
  shape.files = 40;
  shape.tensors = 4;
  for (Order order : {Order::kInterleaved, Order::kShuffled}) {
    shape.order = order;
    Model model = Written(shape);
    auto engine = Open(std::make_shared<HostDevice>(), Scripted(1, false, true, 0));
    Watch::Begin(*engine, model)->ExpectComplete();
  }
}

TEST_F(EngineTest, SeveralLoadsShareAnEngine) {
  std::vector<Model> models;
  for (uint64_t i = 0; i < 6; ++i) models.push_back(Written({}, i));
  auto engine = Open(std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{50, 0, 0}), FakeWith(4096, true, true));
  std::vector<std::shared_ptr<Watch>> watches;
  for (size_t i = 0; i < models.size(); ++i) {
    TransferOptions options;
    options.collect_ready = i % 2 == 0;
    watches.push_back(Watch::Begin(*engine, models[i], options));
  }
  engine->Cancel(watches[2]->shared_transfer(), Status(Code::CLOSED, "not this one"));
  for (size_t i = 0; i < models.size(); ++i) {
    if (i == 2) {
      watches[i]->WaitDrained();
    } else {
      watches[i]->ExpectComplete();
    }
  }
}

TEST_F(EngineTest, OneSlotIsEnough) {
  Model model = Written({});
  EngineOptions options;
  options.always_stage = true;
  options.staging_limit = 1;
  options.chunk_bytes = 5000;
  auto engine =
      Open(std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{20, 0, 0}), FakeWith(1, true, false), options);
  EXPECT_EQ(engine->StagingBytes(), 8192U);
  Watch::Begin(*engine, model)->ExpectComplete();
}

// 2500 adjacent tensors of 3 bytes; a read has at most 1024 pieces.
TEST_F(EngineTest, ScattersOverManyPieces) {
  Model model = Written({1, 1, 10000, 0, 0});
  Plan& plan = model.plan;
  uint64_t size = plan.files[0].expected.size;
  if (size < 7500) {
    model.contents[0].resize(7500, 'x');
    std::string path = plan.files[0].path;
    FILE* file = fopen(path.c_str(), "wb");
    ASSERT_NE(file, nullptr);
    fwrite(model.contents[0].data(), 1, 7500, file);
    fclose(file);
    plan.files[0].expected = IdentityOf(path);
  }
  plan.allocations = {{2500 * 256, 0}};
  plan.items.clear();
  for (uint64_t i = 0; i < 2500; ++i) plan.items.push_back({0, 0, i * 3, 3, i * 256});
  for (int reader : {0, 7, 10}) {
    auto engine = Open(std::make_shared<HostDevice>(), kReaders[reader].make());
    Watch::Begin(*engine, model)->ExpectComplete();
  }
}

TEST_F(EngineTest, RateLimitLetsOneReadThroughAndThenWaits) {
  Model model = Written({});
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 1 << 10;
  EngineOptions options;
  options.pace = std::make_shared<Pace>(1);  // the second read is due in minutes
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
  auto watch = Watch::Begin(*engine, model);
  EXPECT_TRUE(Eventually([&] { return watch->transfer().bytes_loaded() > 0; }));
  for (int i = 0; i < 20; ++i) engine->SetWindow(watch->shared_transfer(), 1000);  // wakes the loop
  CloseAndWait(*engine);
  EXPECT_EQ(script->submits, 1);
}

TEST_F(EngineTest, OfALoadThatIsWantedWholeSingleItemsAreNoNews) {
  ModelShape shape;
  shape.tensors = 200;
  Model model = Written(shape);
  for (const bool whole : {false, true}) {
    auto engine = Open(std::make_shared<HostDevice>(), Scripted(4, false, false, 0));
    TransferOptions options;
    options.whole = whole;
    auto watch = Watch::Begin(*engine, model, options);
    watch->ExpectComplete();
    // Of the others some may come together.
    if (whole) {
      EXPECT_LE(watch->news(), 2);  // its end, and that nothing of it is in flight
    } else {
      EXPECT_GT(watch->news(), 10);
    }
    CloseAndWait(*engine);
  }
}

TEST_F(EngineTest, ALoadIsNeverReadAboveTheRate) {
  ModelShape shape;
  shape.gap = shape.strided = 0;  // all that is read is loaded
  Model model = Written(shape);
  EngineOptions options;
  options.pace = std::make_shared<Pace>(1 << 20);
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 1 << 10;  // a read every millisecond
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
  const auto began = std::chrono::steady_clock::now();
  auto watch = Watch::Begin(*engine, model);
  watch->ExpectComplete();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  EXPECT_GT(script->submits, 10);
  // The last read need not be over for what it costs.
  const double allowed = seconds * (1 << 20) + (1 << 10);
  EXPECT_LE(static_cast<double>(watch->transfer().bytes_loaded()), allowed);
  CloseAndWait(*engine);
}

TEST_F(EngineTest, EnginesOfOnePaceKeepToItTogether) {
  ModelShape shape;
  shape.gap = shape.strided = 0;
  Model model = Written(shape);
  EngineOptions options;
  options.pace = std::make_shared<Pace>(1 << 20);
  const auto open = [&] {
    auto script = std::make_shared<ReaderScript>();
    script->needs.chunk = 1 << 10;
    return Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
  };
  auto one = open(), other = open();
  const auto began = std::chrono::steady_clock::now();
  auto watch = Watch::Begin(*one, model), other_watch = Watch::Begin(*other, model);
  watch->ExpectComplete();
  other_watch->ExpectComplete();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  // Both may have begun a read at a time; the last ones need not be over for what they cost.
  EXPECT_LE(static_cast<double>(2 * model.Bytes()), seconds * (1 << 20) + (3 << 10));
  CloseAndWait(*one);
  CloseAndWait(*other);
}

TEST_F(EngineTest, UnderALimitReadsAreShort) {
  ModelShape shape;
  shape.files = shape.tensors = 1;
  shape.max_length = 1 << 20;
  shape.empty = shape.gap = shape.strided = 0;
  Model model = Written(shape);
  EngineOptions options;
  options.pace = std::make_shared<Pace>(1 << 26);
  EXPECT_EQ(options.pace->LongestRead(), 512 << 10);
  EXPECT_EQ(Pace(1).LongestRead(), 64 << 10);
  options.pace = std::make_shared<Pace>(15 << 20);
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 1 << 20;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script), options);
  Watch::Begin(*engine, model)->ExpectComplete();
  EXPECT_GE(script->submits, static_cast<int>(model.Bytes() / (128 << 10)));
  CloseAndWait(*engine);
}

// The pause of a rate limit may end while the loop notifies.
TEST_F(EngineTest, RateLimitNeverSleepsThroughItsPause) {
  Model model = Written({});
  EngineOptions options;
  options.pace = std::make_shared<Pace>(4 << 20);  // pauses are longer than a read and shorter than notify
  auto engine = Open(std::make_shared<HostDevice>(), Scripted(1, false, false, 0), options);
  Transfer* seen = nullptr;
  Latch drained(1);
  std::mutex mutex;
  TransferOptions transfer;
  transfer.notify = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::lock_guard<std::mutex> lock(mutex);
    if (seen->drained()) drained.Down();
  };
  std::shared_ptr<Transfer> load;
  {
    std::lock_guard<std::mutex> lock(mutex);
    ASSERT_TRUE(engine->Start(model.plan, transfer, &load).ok());
    seen = load.get();
  }
  EXPECT_TRUE(drained.Wait());
  EXPECT_TRUE(load->status().ok()) << load->status().message();
  CloseAndWait(*engine);
}

TEST_F(EngineTest, ReadsRunAtTheReadersDepth) {
  ModelShape shape;
  shape.tensors = 60;
  Model model = Written(shape);
  auto script = std::make_shared<ReaderScript>();
  script->needs.chunk = 1 << 10;
  script->needs.in_flight = 6;
  script->hold = true;
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(6);
  for (int i = 0; i < 20; ++i) engine->SetWindow(watch->shared_transfer(), 1000);
  EXPECT_EQ(script->submits, 6);
  EXPECT_TRUE(Eventually([&] { return watch->transfer().max_in_flight() == 6; }));
  script->Release();
  watch->ExpectComplete();
}

}  // namespace
}  // namespace fst
