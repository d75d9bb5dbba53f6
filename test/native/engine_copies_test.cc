// What the loop hands to the device's stream: the right pieces, each inside one allocation, and none of a load that has
// failed.
#include <cstring>

#include "base/metrics.h"
#include "convert/float_convert.h"
#include "device/fake_device.h"
#include "support/engine_harness.h"
#include "support/scripted_device.h"
#include "support/scripted_reader.h"

namespace fst {
namespace {

// Its allocations are adjacent in memory, as a GPU's may be.
class AdjacentDevice : public FakeDevice {
 public:
  AdjacentDevice() : FakeDevice("cuda:0", Options{20, 0, 0}) {
    EXPECT_EQ(posix_memalign(reinterpret_cast<void**>(&memory_), 4096, kBytes), 0);
  }
  ~AdjacentDevice() override { free(memory_); }

  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override {
    EXPECT_EQ(bytes % 256, 0U);
    EXPECT_LE(used_bytes_ + bytes, kBytes);
    const uint64_t address = reinterpret_cast<uint64_t>(memory_) + used_bytes_;
    used_bytes_ += bytes;
    allocations.push_back({0, address, bytes});
    *out = MakeBuffer(shared_from_this(), address, bytes, &Metrics::Get().device_bytes, [] {});
    return Status::Ok();
  }

  Status NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) override {
    std::unique_ptr<CopyStream> inner;
    FST_RETURN_IF_ERROR(FakeDevice::NewStream(std::move(queue), &inner));
    *out = std::make_unique<Stream>(std::move(inner), *this);
    return Status::Ok();
  }

  // Written by the I/O thread; the test may read them when the transfer has drained.
  std::vector<CopyPiece> allocations, pieces;

 private:
  static constexpr size_t kBytes = 1 << 20;

  class Stream : public CopyStream {
   public:
    Stream(std::unique_ptr<CopyStream> inner, AdjacentDevice& device) : inner_(std::move(inner)), device_(device) {}
    Status Submit(const CopyPiece* pieces, size_t count, bool from_device, uint64_t tag) override {
      device_.pieces.insert(device_.pieces.end(), pieces, pieces + count);
      return inner_->Submit(pieces, count, from_device, tag);
    }

   private:
    std::unique_ptr<CopyStream> inner_;
    AdjacentDevice& device_;
  };

  char* memory_ = nullptr;
  size_t used_bytes_ = 0;
};

class EngineCopiesTest : public EngineTest {
 protected:
  // A model of one file of some tens of KiB, with this plan.
  Model Planned(std::vector<PlanItem> items, std::vector<PlanAllocation> allocations) {
    ModelShape shape;
    shape.files = 1;
    shape.empty = shape.gap = 0;
    Model model = Written(shape);
    model.plan.items = std::move(items);
    model.plan.allocations = std::move(allocations);
    EXPECT_TRUE(model.plan.Validate().ok());
    return model;
  }

  std::shared_ptr<ReaderScript> script = std::make_shared<ReaderScript>();
  std::shared_ptr<AdjacentDevice> device = std::make_shared<AdjacentDevice>();
};

TEST_F(EngineCopiesTest, NeighboursGoInOneCopy) {
  Model model = Planned({{0, 0, 100, 512, 0}, {0, 0, 612, 256, 512}, {0, 0, 868, 1000, 768}}, {{2048, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  EXPECT_EQ(device->pieces.size(), 1U);
}

TEST_F(EngineCopiesTest, NeighboursInMemoryAreCopiedApartWhereTheFileHasAHole) {
  Model model = Planned({{0, 0, 100, 512, 0}, {0, 0, 912, 256, 512}, {0, 0, 1168, 1000, 768}}, {{2048, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  EXPECT_EQ(script->submits, 1) << "one read";
  EXPECT_EQ(device->pieces.size(), 2U);
}

TEST_F(EngineCopiesTest, ShortRunsThatWereReadWithTheirHolesGoInOneCopy) {
  PlanItem item{0, 0, 100, 10 * 64, 0};
  item.run = 64;
  item.stride = 300;
  Model model = Planned({item, {0, 0, 3000, 512, 768}}, {{2048, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  EXPECT_EQ(script->submits, 1) << "one read";
  EXPECT_EQ(device->pieces.size(), 2U);
}

TEST_F(EngineCopiesTest, NeighboursInTheFileAreCopiedApartWhereMemoryHasAHole) {
  Model model = Planned({{0, 0, 100, 500, 0}, {0, 0, 600, 256, 512}}, {{1024, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  EXPECT_EQ(device->pieces.size(), 2U);
}

// The two are adjacent in the file and in memory, but no copy may cross from one allocation into the other.
TEST_F(EngineCopiesTest, NoCopyCrossesTheEndOfAnAllocation) {
  Model model = Planned({{0, 0, 100, 512, 0}, {0, 1, 612, 256, 0}}, {{512, 0}, {256, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  ASSERT_EQ(device->allocations.size(), 2U);
  ASSERT_EQ(device->allocations[0].destination + 512, device->allocations[1].destination);
  ASSERT_EQ(device->pieces.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(device->pieces[i].destination, device->allocations[i].destination);
    EXPECT_EQ(device->pieces[i].length, device->allocations[i].length);
  }
}

// A GPU copies while the longer ones are read.
TEST_F(EngineCopiesTest, TheFirstReadsOfALoadAreShort) {
  script->needs.chunk = 8192;
  script->needs.first_chunk = 1024;
  Model model = Planned({{0, 0, 100, 30000, 0}}, {{30208, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  const std::vector<size_t> first{924, 1024, 2048, 4096, 8192, 8192, 30000 - 24476};
  for (int load = 0; load < 2; ++load) {
    device->pieces.clear();
    Watch::Begin(*engine, model)->ExpectComplete();
    std::vector<size_t> lengths;
    for (const CopyPiece& piece : device->pieces) lengths.push_back(piece.length);
    EXPECT_EQ(lengths, first) << "load " << load;
  }
}

// Its slots are page-locked, which takes long: two at first.
TEST_F(EngineCopiesTest, ASmallLoadHasNoShortReadsAndSoNoMoreSlots) {
  class LocksPages : public AdjacentDevice {
    bool staging_is_expensive() const override { return true; }
  };
  script->needs.chunk = 8192;
  script->needs.first_chunk = 1024;
  script->needs.slots_at_first = 2;
  for (uint64_t bytes : {16000, 30000}) {
    device = std::make_shared<LocksPages>();
    Model model = Planned({{0, 0, 100, bytes, 0}}, {{30208, 0}});
    auto engine = Open(device, std::make_unique<ScriptedReader>(script));
    Watch::Begin(*engine, model)->ExpectComplete();
    EXPECT_EQ(device->pieces.front().length, bytes == 16000 ? 8092U : 924U);
    EXPECT_EQ(Metrics::Get().staging_bytes, (bytes == 16000 ? 2 : script->needs.slots) * 8192);
    engine.reset();
  }
}

TEST_F(EngineCopiesTest, ALoadThatHasEndedStartsNoCopy) {
  script->needs.chunk = 4096;
  script->hold = true;
  Model model = Planned({{0, 0, 0, 4096, 0}, {0, 0, 4096, 4096, 4096}}, {{8192, 0}});
  auto engine = Open(device, std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(2);
  engine->Cancel(watch->shared_transfer(), Status(Code::CLOSED, "enough"));
  watch->WaitFailed();
  script->Release();
  watch->ExpectFailure(Code::CLOSED);
  EXPECT_TRUE(device->pieces.empty());
  EXPECT_EQ(watch->transfer().ready_count(), 0U);
}

TEST_F(EngineCopiesTest, AReadStraightIntoPlaceOfALoadThatHasEndedCompletesNothing) {
  script->needs.chunk = 4096;
  script->hold = true;
  Model model = Planned({{0, 0, 0, 4096, 0}, {0, 0, 4096, 4096, 4096}}, {{8192, 0}});
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(2);
  engine->Cancel(watch->shared_transfer(), Status(Code::CLOSED, "enough"));
  watch->WaitFailed();
  script->Release();
  watch->ExpectFailure(Code::CLOSED);
  EXPECT_EQ(watch->transfer().ready_count(), 0U);
}

// The copy of a slot begins when all its parts are converted.
TEST_F(EngineCopiesTest, WhatConvertsIsCopiedWhenItIsConverted) {
  constexpr uint64_t kElements = 1 << 20;
  TempFolder folder;
  Model model;
  std::vector<float> values(kElements);
  for (uint64_t i = 0; i < kElements; ++i) values[i] = static_cast<float>(i % 2048);
  std::string content(reinterpret_cast<const char*>(values.data()), kElements * sizeof(float));
  const std::string path = folder.Write("values", content);
  model.plan.files.push_back({path, IdentityOf(path)});
  PlanItem item{0, 0, 0, content.size(), 0};
  item.from = DType::F32;
  item.to = DType::F16;
  model.plan.items.push_back(item);
  model.plan.allocations.push_back({kElements * 2, 0});
  ASSERT_TRUE(model.plan.Validate().ok());
  script->needs.chunk = content.size();
  EngineOptions options;
  options.converts = true;
  auto engine = Open(std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{0, 0, 0}),
                     std::make_unique<ScriptedReader>(script), options);
  std::shared_ptr<Transfer> transfer;
  ASSERT_TRUE(engine->Start(model.plan, {}, &transfer).ok());
  ASSERT_TRUE(Eventually([&] { return transfer->drained(); }));
  ASSERT_TRUE(transfer->status().ok()) << transfer->status().message();
  std::vector<uint16_t> expected(kElements);
  ConvertFloats(DType::F32, DType::F16, values.data(), expected.data(), kElements);
  std::shared_ptr<DeviceBuffer> buffer = transfer->TakeAllocation(0);
  EXPECT_EQ(memcmp(reinterpret_cast<const void*>(buffer->address()), expected.data(), kElements * 2), 0);
}

// A reader that completes a read twice: the second completion is ignored, whatever op uses the place by then.
TEST_F(EngineCopiesTest, ACompletionThatComesTwiceIsHeardOnce) {
  script->needs.chunk = 4096;
  script->repeats = true;
  Model model = Written({});
  auto engine = Open(std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{50, 0, 0}),
                     std::make_unique<ScriptedReader>(script));
  Watch::Begin(*engine, model)->ExpectComplete();
  auto straight = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  Watch::Begin(*straight, model)->ExpectComplete();
}

TEST_F(EngineCopiesTest, ALateCompletionIsNotThatOfTheNextRead) {
  script->needs.chunk = 4096;
  script->needs.in_flight = 1;
  script->hold = true;
  Model model = Planned({{0, 0, 0, 4096, 0}, {0, 0, 4096, 4096, 4096}}, {{8192, 0}});
  auto engine = Open(std::make_shared<HostDevice>(), std::make_unique<ScriptedReader>(script));
  auto watch = Watch::Begin(*engine, model);
  script->WaitHeld(1);
  const uint64_t first = script->ReleaseOne();
  script->WaitHeld(1);  // the second read uses the place of the first one's op
  script->Complete(first);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(watch->transfer().ready_count(), 1U);
  script->Release();
  watch->ExpectComplete();
}

}  // namespace
}  // namespace fst
