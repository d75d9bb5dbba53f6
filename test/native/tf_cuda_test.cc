// The op's kernel for GPUs on the emulated CUDA driver, whose memory crashes a host that touches it and whose streams
// are late on purpose, against a stand-in for the TensorFlow calls that it makes. TensorFlow computes on a stream of
// its own in the same primary context; here a copy out of a tensor stands for its kernels.
#include <chrono>
#include <set>
#include <thread>

#include "base/metrics.h"
#include "device/cuda_device.h"
#include "device/devices.h"
#include "emulated_cuda.h"
#include "support/fake_tensorflow.h"
#include "tf/adopt.h"

namespace fst::tf {
namespace {

using cuda::CUdeviceptr;
using cuda::kSuccess;
using fake::Unref;
using test::Bytes;

constexpr int kCount = 25'000;
constexpr size_t kTensorBytes = 4 * kCount;

class TfCudaTest : public test::EmulatedCudaTest {
 protected:
  void SetUp() override {
    EmulatedCudaTest::SetUp();
    tensorflow_.Reset();
    std::string op;
    ASSERT_TRUE(Register(FakeApi(), &op).ok());
    Status opened = CudaDevice::Open(0, false, &device_);
    ASSERT_TRUE(opened.ok()) << opened.message();
    ASSERT_EQ(cu->CtxSetCurrent(context), kSuccess);
    ASSERT_EQ(cu->StreamCreate(&stream_, cuda::kStreamNonBlocking), kSuccess);
    ASSERT_EQ(cu->MemAlloc(&result_, kTensorBytes), kSuccess);
    tensorflow_.allocate = [this](size_t bytes) {
      CUdeviceptr memory = 0;
      EXPECT_EQ(cu->MemAlloc(&memory, bytes), kSuccess);
      return reinterpret_cast<void*>(memory);
    };
    tensorflow_.free = [this](void* memory) {
      EXPECT_EQ(cu->MemFree(reinterpret_cast<CUdeviceptr>(memory)), kSuccess);
    };
  }

  void TearDown() override {
    ctl.reset();
    EXPECT_TRUE(Eventually([] { return Metrics::Get().device_bytes.load() == 0; })) << "leaked";
    WaitForFrees();
    EXPECT_EQ(tensorflow_.live_tensors, 0);
    EXPECT_EQ(tensorflow_.live_statuses, 0);
    EXPECT_EQ(Pending(), 0u);
    EXPECT_EQ(cu->StreamDestroy(stream_), kSuccess);
    EXPECT_EQ(cu->MemFree(result_), kSuccess);
    tensorflow_.Reset();
    device_.reset();
    EXPECT_EQ(cu->DevicePrimaryCtxRelease(0), kSuccess);  // the device's, which it keeps for the process
    EmulatedCudaTest::TearDown();
  }

  // A tensor of known bytes, `skip` bytes into an allocation.
  Adoptable Memory(size_t skip = 0, unsigned seed = 1) {
    std::shared_ptr<DeviceBuffer> memory;
    Status allocated = device_->Allocate(kTensorBytes + skip, &memory);
    EXPECT_TRUE(allocated.ok()) << allocated.message();
    Status written = device_->Write(*memory, skip, kTensorBytes, test::Pattern(kTensorBytes, seed).data());
    EXPECT_TRUE(written.ok()) << written.message();
    uint64_t address = memory->address() + skip;
    return {std::move(memory), address, kTensorBytes, kFloat, {kCount}};
  }

  int32_t Token(Adoptable adoptable) {
    int32_t token = 0;
    Status status = Offer(std::move(adoptable), &token);
    EXPECT_TRUE(status.ok()) << status.message();
    return token;
  }

  // What a kernel of TensorFlow reads from a tensor, now.
  Bytes Read(const TF_Tensor* tensor) {
    Bytes bytes(kTensorBytes);
    EXPECT_EQ(cu->MemcpyDtoD(result_, reinterpret_cast<CUdeviceptr>(tensor->data), kTensorBytes), kSuccess);
    EXPECT_EQ(cu->MemcpyDtoH(bytes.data(), result_, kTensorBytes), kSuccess);
    return bytes;
  }
  // What a queued kernel reads, which runs when the emulator lets it.
  void QueueRead(const TF_Tensor* tensor) {
    ASSERT_EQ(cu->MemcpyDtoDAsync(result_, reinterpret_cast<CUdeviceptr>(tensor->data), kTensorBytes, stream_),
              kSuccess);
  }

  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 10'000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return condition();
  }

  FakeTensorFlow& tensorflow_ = FakeTensorFlow::Get();
  std::shared_ptr<Device> device_;
  cuda::CUstream stream_ = nullptr;  // TensorFlow's
  CUdeviceptr result_ = 0;           // of its kernels
};

TEST_F(TfCudaTest, AlignedMemoryIsTheOutputWithoutACopy) {
  for (size_t skip : {0, 256, 64}) {
    Adoptable adoptable = Memory(skip);
    auto* expected = reinterpret_cast<void*>(adoptable.address);
    TF_OpKernelContext run{Token(std::move(adoptable)), kFloat, true};
    const unsigned long long executed = ctl.executed();
    tensorflow_.Run(&run);
    ASSERT_NE(run.output, nullptr) << run.failure;
    EXPECT_EQ(run.output->data, expected);
    EXPECT_EQ(run.output->shape, std::vector<int64_t>{kCount});
    EXPECT_EQ(ctl.executed(), executed) << "something was copied";
    EXPECT_EQ(Read(run.output), test::Pattern(kTensorBytes, 1));
    Unref(run.output);
  }
}

TEST_F(TfCudaTest, UnalignedMemoryIsCopiedOnTheDeviceOnce) {
  for (int major : {1, 2}) {
    tensorflow_.major = major;
    TF_OpKernelContext run{Token(Memory(4)), kFloat, true};
    const unsigned long long executed = ctl.executed(), bytes = ctl.copied_bytes();
    ctl.set_delay_us(2000);
    tensorflow_.Run(&run);
    ctl.set_delay_us(0);
    ASSERT_NE(run.output, nullptr) << run.failure;
    EXPECT_EQ(ctl.executed(), executed + 1);
    EXPECT_EQ(ctl.copied_bytes(), bytes + kTensorBytes);
    EXPECT_EQ(ctl.call_count("cuMemcpyDtoH_v2") + ctl.call_count("cuMemcpyDtoHAsync_v2"), unsigned(major - 1))
        << "through the host";  // Read() of the round before
    EXPECT_EQ(Metrics::Get().device_bytes.load(), 0) << "ours is not needed any more";
    EXPECT_EQ(Read(run.output), test::Pattern(kTensorBytes, 1));
    Unref(run.output);
  }
}

// TensorFlow's allocator gives memory out again by the order of work on its stream: kernels that were queued before may
// still write there.
TEST_F(TfCudaTest, ACopyWaitsForWhatTensorFlowQueuedOnTheMemoryBefore) {
  CUdeviceptr reused = 0, large = 0;
  ASSERT_EQ(cu->MemAlloc(&reused, kTensorBytes), kSuccess);
  ASSERT_EQ(cu->MemAlloc(&large, 20 * kTensorBytes), kSuccess);
  tensorflow_.allocate = [=](size_t) { return reinterpret_cast<void*>(reused); };
  int32_t token = Token(Memory(4));
  ctl.set_bandwidth(20 * kTensorBytes * 10);  // 100 ms for the first fill; the device's streams share it
  ASSERT_EQ(cu->MemsetD8Async(large, 1, 20 * kTensorBytes, stream_), kSuccess);
  ASSERT_EQ(cu->MemsetD8Async(reused, 1, kTensorBytes, stream_), kSuccess);
  TF_OpKernelContext run{token, kFloat, true};
  tensorflow_.Run(&run);
  ASSERT_NE(run.output, nullptr) << run.failure;
  ASSERT_EQ(cu->StreamSynchronize(stream_), kSuccess);
  EXPECT_EQ(Read(run.output), test::Pattern(kTensorBytes, 1)) << "overwritten by a kernel from before";
  Unref(run.output);
  ASSERT_EQ(cu->MemFree(large), kSuccess);
}

// The emulator aborts when memory is freed under an operation.
TEST_F(TfCudaTest, MemoryIsFreedWhenTheDeviceIsDoneWithItAndNotOnTensorFlowsThread) {
  TF_OpKernelContext run{Token(Memory()), kFloat, true};
  tensorflow_.Run(&run);
  ASSERT_NE(run.output, nullptr) << run.failure;
  ctl.hold(1);
  QueueRead(run.output);
  Unref(run.output);  // returns: another thread waits
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_GT(Metrics::Get().device_bytes.load(), 0) << "counted as free under running kernels";
  EXPECT_EQ(ctl.live_allocations(), 2u) << "freed under running kernels";
  ctl.hold(0);
  EXPECT_TRUE(Eventually([this] { return ctl.live_allocations() == 1; }));
  Bytes bytes(kTensorBytes);
  ASSERT_EQ(cu->MemcpyDtoH(bytes.data(), result_, kTensorBytes), kSuccess);
  EXPECT_EQ(bytes, test::Pattern(kTensorBytes, 1)) << "what the kernel read";
}

TEST_F(TfCudaTest, AModelsWeightsAreWaitedForTogetherAndShareTheirAllocation) {
  constexpr int kWeights = 200;
  std::shared_ptr<DeviceBuffer> memory;
  ASSERT_TRUE(device_->Allocate(kWeights * 256, &memory).ok());
  std::vector<TF_Tensor*> weights;
  for (uint64_t i = 0; i < kWeights; ++i) {
    TF_OpKernelContext run{Token({memory, memory->address() + 256 * i, 4, kFloat, {}}), kFloat, true};
    tensorflow_.Run(&run);
    ASSERT_NE(run.output, nullptr) << run.failure;
    weights.push_back(run.output);
  }
  memory.reset();
  const unsigned long long before = ctl.call_count("cuCtxSynchronize");
  ctl.hold(1);
  ASSERT_EQ(cu->MemsetD8Async(result_, 0, kTensorBytes, stream_), kSuccess);
  TF_Tensor* last = weights.back();
  weights.pop_back();
  for (TF_Tensor* weight : weights) Unref(weight);
  ctl.hold(0);
  EXPECT_TRUE(Eventually([&] { return ctl.pending() == 0; }));
  EXPECT_EQ(ctl.live_allocations(), 2u) << "one weight still needs it";
  Unref(last);
  EXPECT_TRUE(Eventually([this] { return ctl.live_allocations() == 1; }));
  EXPECT_LE(ctl.call_count("cuCtxSynchronize") - before, 3u);
}

TEST_F(TfCudaTest, ThreadsMayRunAndReleaseAtOnce) {
  std::vector<std::thread> threads;
  ctl.set_delay_us(20);
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      ASSERT_EQ(cu->CtxSetCurrent(context), kSuccess);
      for (unsigned i = 0; i < 20; ++i) {
        TF_OpKernelContext run{Token(Memory(i % 2 == 0 ? 0 : 4, t)), kFloat, true};
        tensorflow_.Run(&run);
        ASSERT_NE(run.output, nullptr) << run.failure;
        Bytes bytes(kTensorBytes);
        ASSERT_EQ(cu->MemcpyDtoH(bytes.data(), reinterpret_cast<CUdeviceptr>(run.output->data), kTensorBytes),
                  kSuccess);
        EXPECT_EQ(bytes, test::Pattern(kTensorBytes, t));
        Unref(run.output);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(TfCudaTest, WhatWouldCrashTensorFlowIsRefusedBefore) {
  TF_OpKernelContext dtype{Token(Memory()), kInt32, true};
  tensorflow_.Run(&dtype);
  EXPECT_NE(dtype.failure.find("TF_DataType 1, but the op was asked for 3"), std::string::npos) << dtype.failure;
  TF_OpKernelContext on_host{Token(Memory()), kFloat, false};
  tensorflow_.Run(&on_host);
  EXPECT_NE(on_host.failure.find("is on cuda:0, but TensorFlow runs the op on the host"), std::string::npos);
  TF_OpKernelContext never{0, kFloat, true};
  tensorflow_.Run(&never);
  EXPECT_NE(never.failure.find("stands for no memory"), std::string::npos);
}

TEST_F(TfCudaTest, TensorFlowsOwnFailuresLeakNothing) {
  TF_OpKernelContext no_memory{Token(Memory(4)), kFloat, true};
  no_memory.allocate_fails = true;
  tensorflow_.Run(&no_memory);
  EXPECT_EQ(no_memory.failure, "out of memory");
  TF_OpKernelContext no_output{Token(Memory()), kFloat, true};
  no_output.output_fails = true;
  tensorflow_.Run(&no_output);
  EXPECT_EQ(no_output.failure, "no output");
}

// Each call of the driver that the copy and the release make, failing once: an error of TensorFlow's that names the
// call, or nothing at all where it was tried again; TearDown sees that nothing is left.
TEST_F(TfCudaTest, EveryFailingCallIsAnErrorOrTriedAgainAndLeaksNothing) {
  int failed = 0;
  for (const char* function :
       {"cuCtxSetCurrent", "cuCtxSynchronize", "cuMemcpyDtoD_v2", "cuStreamSynchronize", "cuMemFree_v2"}) {
    for (unsigned long long nth = 1; nth <= 4; ++nth) {
      SCOPED_TRACE(std::string(function) + " " + std::to_string(nth));
      TF_OpKernelContext copied{Token(Memory(4)), kFloat, true}, aliased{Token(Memory()), kFloat, true};
      ASSERT_EQ(ctl.set_fail(function, nth, cuda::kUnknown), 0);
      tensorflow_.Run(&copied);
      tensorflow_.Run(&aliased);
      ASSERT_NE(aliased.output, nullptr) << aliased.failure;
      if (copied.failure.empty()) {
        EXPECT_TRUE(copied.output != nullptr);
      } else {
        ++failed;
        EXPECT_NE(copied.failure.find("CUDA"), std::string::npos) << copied.failure;
      }
      ctl.set_delay_us(2000);
      QueueRead(aliased.output);
      Unref(aliased.output);
      EXPECT_TRUE(Eventually([] { return Metrics::Get().device_bytes.load() == 0; })) << "leaked";
      WaitForFrees();
      ctl.reset();
      if (copied.failure.empty()) {
        EXPECT_EQ(Read(copied.output), test::Pattern(kTensorBytes, 1));
      }
      if (copied.output != nullptr) Unref(copied.output);
    }
  }
  EXPECT_GE(failed, 4);
}

TEST_F(TfCudaTest, ALostDeviceIsAnErrorAndIsNotWaitedFor) {
  TF_OpKernelContext kept{Token(Memory()), kFloat, true}, copied{Token(Memory(4)), kFloat, true};
  tensorflow_.Run(&kept);
  ASSERT_NE(kept.output, nullptr) << kept.failure;
  tensorflow_.free = [this](void* memory) {
    EXPECT_EQ(cu->MemFree(reinterpret_cast<CUdeviceptr>(memory)), cuda::kIllegalAddress);
  };
  ASSERT_EQ(ctl.set_fail("execute", 1, cuda::kIllegalAddress), 0);
  tensorflow_.Run(&copied);
  EXPECT_NE(copied.failure.find("ILLEGAL_ADDRESS"), std::string::npos) << copied.failure;
  if (copied.output != nullptr) Unref(copied.output);
  Unref(kept.output);
}

}  // namespace
}  // namespace fst::tf
