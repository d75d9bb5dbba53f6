// Items with digests: right bytes arrive as without, wrong ones never count as ready.
#include <algorithm>

#include "base/digest.h"
#include "device/fake_device.h"
#include "device/host_device.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"

namespace fst {
namespace {

class EngineDigestTest : public EngineTest {
 protected:
  // Long tensors, which are several reads each, among short and empty ones. Every `sha256`th is digested by SHA-256.
  Model Digested(size_t sha256 = 2) {
    ModelShape shape;
    shape.files = 2;
    shape.tensors = 12;
    shape.max_length = 300000;
    shape.strided = 0;
    shape.allocation = 1 << 20;
    Model model = Written(shape);
    for (size_t item = 0; item < model.plan.items.size(); ++item) {
      const DigestKind kind = item % sha256 == 0 ? DigestKind::kSha256 : DigestKind::kXxh3;
      model.plan.digests.push_back(DigestOf(kind, model.BytesOf(item), model.plan.items[item].length));
    }
    EXPECT_TRUE(model.plan.Validate().ok());
    return model;
  }

  // The longest item, whose last read comes late.
  static size_t Longest(const Model& model) {
    size_t longest = 0;
    for (size_t item = 0; item < model.plan.items.size(); ++item)
      if (model.plan.items[item].length > model.plan.items[longest].length) longest = item;
    return longest;
  }

  static std::unique_ptr<Reader> Reading(bool fills_host) {
    FakeReaderOptions options;
    options.chunk = 16 << 10;
    options.in_flight = 8;
    options.reorder = true;
    options.fills_host = fills_host;
    return NewFakeReader(options);
  }

  // `chunk`: of reads of the page cache by threads, which digest what arrives. 0: of the fake reader's.
  struct Way {
    const char* name;
    bool fills_host, always_stage, on_gpu;
    size_t chunk;
    size_t sha256;
  };
  static constexpr Way kWays[] = {
      {"straight into place", true, false, false, 0, 2},
      {"through slots", true, true, false, 0, 2},
      {"onto another device", false, false, true, 0, 2},
      {"as short reads arrive", true, false, false, 16 << 10, SIZE_MAX},
      {"as long reads arrive", true, false, false, 1 << 20, SIZE_MAX},
      {"as they arrive in slots", true, true, false, 16 << 10, SIZE_MAX},
      {"of two kinds, as they arrive", true, false, false, 64 << 10, 7},
      {"as they arrive, onto another device", false, false, true, 400 << 10, SIZE_MAX},
  };

  std::shared_ptr<Engine> EngineFor(const Way& way) {
    EngineOptions options;
    options.always_stage = way.always_stage;
    std::shared_ptr<Device> device = way.on_gpu ? std::make_shared<FakeDevice>("cuda:0", FakeDevice::Options{20, 0, 0})
                                                : std::make_shared<HostDevice>();
    std::shared_ptr<Engine> engine;
    FileReaderOptions by_threads;
    by_threads.chunk = way.chunk;
    by_threads.threads = 3;
    auto reader = way.chunk > 0 ? NewFileReader(by_threads) : Reading(way.fills_host);
    EXPECT_TRUE(Engine::Create(std::move(device), std::move(reader), options, &engine).ok());
    return engine;
  }
};

TEST_F(EngineDigestTest, RightBytesArriveByEveryWay) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(way.name);
    const Model model = Digested(way.sha256);
    auto engine = EngineFor(way);
    Watch::Begin(*engine, model)->ExpectComplete();
    CloseAndWait(*engine);
  }
}

TEST_F(EngineDigestTest, ItemWithAnotherDigestIsNeverReady) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(way.name);
    Model model = Digested(way.sha256);
    const size_t wrong = Longest(model);
    model.plan.digests[wrong].bytes[3] ^= 1;
    auto engine = EngineFor(way);
    auto watch = Watch::Begin(*engine, model);
    watch->ExpectFailure(Code::CHECKSUM_MISMATCH);
    EXPECT_LE(watch->transfer().ready_prefix(), wrong);
    const Status status = watch->transfer().status();
    EXPECT_EQ(status.path(), model.plan.files[model.plan.items[wrong].file].path);
    EXPECT_EQ(status.offset(), static_cast<int64_t>(model.plan.items[wrong].offset));
    EXPECT_NE(status.message().find(DigestText(model.plan.digests[wrong])), std::string::npos) << status.message();
    CloseAndWait(*engine);
  }
}

TEST_F(EngineDigestTest, LoadThatFailsWhileReadsWaitForTheirTurnDrains) {
  for (const Way& way : kWays) {
    SCOPED_TRACE(way.name);
    const Model model = Digested(way.sha256);
    auto engine = EngineFor(way);
    auto watch = Watch::Begin(*engine, model);
    engine->Cancel(watch->shared_transfer(), Status(Code::CLOSED, "enough"));
    watch->WaitDrained();
    Watch::Begin(*engine, model)->ExpectComplete();  // the slots are there again
    CloseAndWait(*engine);
  }
}

TEST_F(EngineDigestTest, ItemsWithHolesHaveNone) {
  Model model = Digested();
  auto strided = std::find_if(model.plan.items.begin(), model.plan.items.end(),
                              [](const PlanItem& item) { return item.length > 1000; });
  strided->length = 100;
  strided->run = 10;
  strided->stride = 20;
  EXPECT_EQ(model.plan.Validate().code(), Code::INVALID_ARGUMENT);
  model.plan.digests.pop_back();
  EXPECT_EQ(model.plan.Validate().code(), Code::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace fst
