// Loads under observation: an item is compared with its file the moment the engine says that it is ready.
#pragma once
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "base/metrics.h"
#include "support/model.h"
#include "transfer/engine.h"

namespace fst {

// How long a test waits before it calls something a hang.
constexpr std::chrono::seconds kHang{30};

inline bool AllZero() {
  const Metrics& metrics = Metrics::Get();
  return metrics.device_bytes == 0 && metrics.host_bytes == 0 && metrics.staging_bytes == 0 &&
         metrics.open_files == 0 && metrics.rings == 0 && metrics.in_flight == 0;
}

// Polls until other threads have made the predicate true.
template <class Predicate>
bool Eventually(Predicate predicate) {
  for (auto end = Clock::now() + kHang; Clock::now() < end; std::this_thread::sleep_for(std::chrono::milliseconds(1)))
    if (predicate()) return true;
  return predicate();
}

// One load. `model` outlives it.
class Watch {
 public:
  static std::shared_ptr<Watch> Begin(Engine& engine, const Model& model, TransferOptions options = {}) {
    auto watch = std::shared_ptr<Watch>(new Watch(model, options));
    options.notify = [weak = std::weak_ptr<Watch>(watch)] {
      if (auto alive = weak.lock()) alive->OnNews();
    };
    std::lock_guard<std::mutex> lock(watch->mutex_);  // the first notification waits until transfer_ is set
    EXPECT_TRUE(engine.Start(model.plan, std::move(options), &watch->transfer_).ok());
    return watch;
  }

  Transfer& transfer() { return *transfer_; }
  const std::shared_ptr<Transfer>& shared_transfer() { return transfer_; }
  int news() {
    std::lock_guard<std::mutex> lock(mutex_);
    return news_;
  }

  template <class Predicate>
  void WaitFor(Predicate predicate, const char* what) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(wake_.wait_for(lock, kHang, predicate)) << "no news of: " << what;
  }
  void WaitDrained() {
    WaitFor([this] { return transfer_->drained(); }, "drained");
  }
  void WaitFailed() {
    WaitFor([this] { return !transfer_->status().ok(); }, "an error");
  }

  // Waits for success and compares everything.
  void ExpectComplete() {
    WaitDrained();
    ASSERT_TRUE(transfer_->status().ok()) << transfer_->status().message();
    std::lock_guard<std::mutex> lock(mutex_);
    Check();
    EXPECT_EQ(checked_, model_.plan.items.size());
    EXPECT_EQ(transfer_->ready_count(), model_.plan.items.size());
    EXPECT_EQ(transfer_->bytes_loaded(), model_.Bytes());
    if (collects_) {
      EXPECT_EQ(collected_.size(), model_.plan.items.size());
    }
  }
  void ExpectFailure(Code code) {
    WaitDrained();
    EXPECT_STREQ(CodeName(transfer_->status().code()), CodeName(code)) << transfer_->status().message();
  }

 private:
  Watch(const Model& model, const TransferOptions& options)
      : model_(model),
        preallocated_(options.preallocated),
        collects_(options.collect_ready),
        held_(model.plan.allocations.size()) {
    preallocated_.resize(held_.size());
  }

  void OnNews() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++news_;
    Check();
    wake_.notify_all();
  }

  void Check() {
    for (size_t prefix = transfer_->ready_prefix(); checked_ < prefix; ++checked_) Compare(checked_);
    if (!collects_) return;
    for (uint32_t item : transfer_->TakeReady()) {
      EXPECT_TRUE(collected_.insert(item).second) << "item " << item << " was ready twice";
      Compare(item);
    }
  }

  void Compare(size_t item) {
    const PlanItem& planned = model_.plan.items[item];
    if (planned.length == 0) return;
    std::shared_ptr<DeviceBuffer>& buffer = held_[planned.allocation];
    if (buffer == nullptr) buffer = preallocated_[planned.allocation];
    if (buffer == nullptr) buffer = transfer_->TakeAllocation(planned.allocation);
    if (buffer == nullptr) {
      EXPECT_FALSE(transfer_->status().ok()) << "no memory for item " << item;
      return;
    }
    EXPECT_EQ(buffer->address() % 256, 0U);
    EXPECT_TRUE(model_.Holds(item, reinterpret_cast<const char*>(buffer->address()) + planned.destination))
        << "wrong bytes in item " << item << " of " << planned.length << " bytes";
  }

  const Model& model_;
  std::vector<std::shared_ptr<DeviceBuffer>> preallocated_;
  const bool collects_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Transfer> transfer_;
  std::vector<std::shared_ptr<DeviceBuffer>> held_;  // by allocation
  std::set<uint32_t> collected_;
  size_t checked_ = 0;
  int news_ = 0;
};

// Counts down to zero from any thread.
class Latch {
 public:
  explicit Latch(int count) : left_(count) {}
  void Down() {
    std::lock_guard<std::mutex> lock(mutex_);
    --left_;
    wake_.notify_all();
  }
  bool Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    return wake_.wait_for(lock, kHang, [this] { return left_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  int left_;
};

inline void CloseAndWait(Engine& engine) {
  auto closed = std::make_shared<Latch>(1);
  engine.Close([closed] { closed->Down(); });
  ASSERT_TRUE(closed->Wait()) << "close() hangs";
}

class EngineTestBase {
 protected:
  std::shared_ptr<Engine> Open(std::shared_ptr<Device> device, std::unique_ptr<Reader> reader,
                               EngineOptions options = {}) {
    std::shared_ptr<Engine> engine;
    EXPECT_TRUE(Engine::Create(std::move(device), std::move(reader), options, &engine).ok());
    return engine;
  }

  Model Written(const ModelShape& shape, uint64_t seed = 1) {
    Random random(seed);
    Model model = RandomModel(random, shape);
    TempFolder& folder = *folders_.emplace_back(std::make_unique<TempFolder>());
    WriteFiles(random, folder, &model);
    return model;
  }

  static void ExpectAllZero() {
    Metrics& m = Metrics::Get();
    EXPECT_TRUE(Eventually(AllZero)) << "device " << m.device_bytes << ", host " << m.host_bytes << ", staging "
                                     << m.staging_bytes << ", files " << m.open_files << ", in flight " << m.in_flight;
  }

 private:
  std::vector<std::unique_ptr<TempFolder>> folders_;
};

// Checks that nothing is held after each test.
class EngineTest : public ::testing::Test, protected EngineTestBase {
 protected:
  void TearDown() override { ExpectAllZero(); }
};

}  // namespace fst
