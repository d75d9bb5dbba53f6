// Loads through Engine, CudaDevice and a reader, on the emulated CUDA driver and cuFile: files with known bytes, a plan
// over them, and a check of what reached device memory.
#pragma once
#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/metrics.h"
#include "device/devices.h"
#include "emulated_cuda.h"
#include "emulated_cufile.h"
#include "reader/fake_reader.h"
#include "reader/file_reader.h"
#include "reader/gds/cufile_driver.h"
#include "reader/gds/gds_reader.h"
#include "transfer/engine.h"

namespace fst::test {

using MakeReader = std::function<std::unique_ptr<Reader>()>;

// A file of known bytes with tensors at given places.
struct TestFile {
  std::string path;
  Bytes content;
};

struct Loaded {
  Status status;  // of the load
  bool drained = false;
  std::vector<Bytes> tensors;  // by item, when the status is OK
  std::vector<Reader::Fallback> fallbacks;
  uint64_t staging_bytes = 0;
};

class CudaLoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    cu = LoadEmulatedCuda();
    ASSERT_NE(cu, nullptr);
    cuda.reset();
    cufile.reset();
    char made[] = "/tmp/cuda_load_XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    folder = made;
  }

  void TearDown() override {
    cuda.reset();
    cufile.reset();
    ExpectNothingHeld();
    cufile::CloseDriver();
    CloseDevices();
    ReleaseContexts();
    for (const TestFile& file : files) unlink(file.path.c_str());
    rmdir(folder.c_str());
  }

  // Forgets the devices of the process: the next load opens them anew.
  void CloseDevices() { UseFakeDevices(nullptr); }

  // Devices keep their contexts until the process ends; other tests count them. What a lost one held goes with it.
  void ReleaseContexts() {
    EXPECT_EQ(cu->CtxSetCurrent(nullptr), cuda::kSuccess);
    cuda.set_strict(0);
    for (int device : {0, 1}) {
      unsigned long long before;
      do {
        before = cuda.retained_contexts();
        (void)cu->DevicePrimaryCtxRelease(device);
      } while (cuda.retained_contexts() < before);
    }
    cuda.reset();
  }

  void AddFile(size_t bytes, unsigned seed) {
    TestFile file{folder + "/" + std::to_string(files.size()) + ".bin", Pattern(bytes, seed)};
    FILE* out = fopen(file.path.c_str(), "we");
    ASSERT_NE(out, nullptr);
    ASSERT_EQ(fwrite(file.content.data(), 1, bytes, out), bytes);
    ASSERT_EQ(fclose(out), 0);
    files.push_back(std::move(file));
  }

  // Tensors of `bytes` each, one after the other from `begin` in the file, at `alignment` in one allocation that begins
  // at destination `shift`.
  void AddTensors(uint32_t file, uint64_t begin, const std::vector<uint64_t>& lengths, uint64_t shift = 0,
                  uint64_t alignment = 256) {
    auto allocation = static_cast<uint32_t>(plan.allocations.size());
    uint64_t used = shift, offset = begin;
    for (uint64_t length : lengths) {
      used = (used + alignment - 1) / alignment * alignment;
      plan.items.push_back({file, allocation, offset, length, used});
      used += length;
      offset += length;
    }
    plan.allocations.push_back({used, 0});
  }

  // Two files of a few chunks with tensors that are and are not congruent to their place, edges and an empty one.
  void AddModel() {
    AddFile(700'000, 1);
    AddFile(300'000, 2);
    AddTensors(0, 4096, {200'000, 0, 4096, 100'000, 1});
    AddTensors(0, 4096 + 304'097, {150'000, 5}, 0);
    AddTensors(1, 264, {100'000, 100'000, 99'000});
  }

  Loaded Load(const std::string& name, const MakeReader& make, EngineOptions options = {}) {
    Loaded result;
    std::shared_ptr<Device> device;
    result.status = OpenDevice(name, false, &device);
    result.drained = true;
    if (!result.status.ok()) return result;
    plan.files.clear();
    for (const TestFile& file : files) {
      PlanFile planned{file.path, {}};
      int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
      EXPECT_TRUE(FileIdentity::Of(fd, file.path, &planned.expected).ok());
      close(fd);
      plan.files.push_back(planned);
    }
    EXPECT_TRUE(plan.Validate().ok());
    std::shared_ptr<Engine> engine;
    Status created = Engine::Create(device, make(), options, &engine);
    EXPECT_TRUE(created.ok()) << created.message();
    std::shared_ptr<Transfer> transfer;
    Status started = engine->Start(plan, {}, &transfer);
    EXPECT_TRUE(started.ok()) << started.message();
    result.drained = WaitFor([&] { return transfer->drained(); });
    result.status = transfer->status();
    result.fallbacks = engine->TakeFallbacks();
    result.staging_bytes = engine->StagingBytes();
    std::vector<std::shared_ptr<DeviceBuffer>> buffers;
    for (uint32_t i = 0; i < plan.allocations.size(); ++i) buffers.push_back(transfer->TakeAllocation(i));
    bool closed = false;
    std::mutex mutex;
    engine->Close([&] {
      std::lock_guard<std::mutex> lock(mutex);
      closed = true;
    });
    EXPECT_TRUE(WaitFor([&] {
      std::lock_guard<std::mutex> lock(mutex);
      return closed;
    }));
    transfer.reset();
    if (!result.status.ok()) return result;
    for (const PlanItem& item : plan.items) {
      Bytes bytes(item.length);
      if (item.length > 0) {
        Status read = device->Read(*buffers[item.allocation], item.destination, item.length, bytes.data());
        if (!read.ok() && result.status.ok()) result.status = read;
      }
      result.tensors.push_back(std::move(bytes));
    }
    return result;
  }

  // Byte-equal tensors, or the name of the first one that is not.
  std::string Wrong(const Loaded& loaded) const {
    if (loaded.tensors.size() != plan.items.size()) return "no tensors";
    for (size_t i = 0; i < plan.items.size(); ++i) {
      const PlanItem& item = plan.items[i];
      const unsigned char* from = files[item.file].content.data() + item.offset;
      if (loaded.tensors[i] != Bytes(from, from + item.length)) return "item " + std::to_string(i);
    }
    return "";
  }

  template <class Condition>
  bool WaitFor(Condition condition) {
    for (int i = 0; i < 30'000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  // Nothing of a load is left, in this process's counters and the emulators'. What a lost context held counts as gone.
  void ExpectNothingHeld() {
    WaitForFrees();
    EXPECT_EQ(cuda.live_allocations(), 0u);
    EXPECT_EQ(cuda.live_pinned(), 0u);
    EXPECT_EQ(cuda.live_streams(), 0u);
    EXPECT_EQ(cuda.live_events(), 0u);
    EXPECT_EQ(cufile.live_handles(), 0u);
    EXPECT_EQ(cufile.live_buffers(), 0u);
    EXPECT_EQ(cufile.in_flight(), 0u);
    const Metrics& metrics = Metrics::Get();
    EXPECT_EQ(metrics.device_bytes, 0);
    EXPECT_EQ(metrics.staging_bytes, 0);
    EXPECT_EQ(metrics.open_files, 0);
    EXPECT_EQ(metrics.in_flight, 0);
  }

  const cuda::DriverApi* cu = nullptr;
  const CudaControl& cuda = EmulatedCudaControl();
  const CufileControl& cufile = EmulatedCufileControl();
  std::string folder;
  std::vector<TestFile> files;
  Plan plan;
};

inline MakeReader ByFile(bool direct = false, size_t chunk = 64 << 10, int threads = 2) {
  return [=] {
    FileReaderOptions options;
    options.threads = threads;
    options.direct = direct;
    options.chunk = chunk;
    return NewFileReader(options);
  };
}

inline MakeReader ByGds(bool chosen = true, size_t chunk = 64 << 10, int threads = 2) {
  return [=] {
    GdsReaderOptions options;
    options.threads = threads;
    options.chunk = chunk;
    options.chosen = chosen;
    return NewGdsReader(options);
  };
}

}  // namespace fst::test
