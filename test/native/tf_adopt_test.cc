// The op and its kernel for the host, against a stand-in for TensorFlow. The kernel for GPUs is in tf_cuda_test.cc.
#include <gtest/gtest.h>

#include <thread>

#include "base/metrics.h"
#include "device/devices.h"
#include "support/fake_tensorflow.h"
#include "tf/adopt.h"

namespace fst::tf {
namespace {

using fake::Unref;

class TfAdopt : public ::testing::Test {
 protected:
  void SetUp() override {
    tensorflow_.Reset();
    ASSERT_TRUE(Register(FakeApi(), &op_).ok());
    ASSERT_TRUE(OpenDevice("cpu", false, &host_).ok());
  }
  void TearDown() override {
    EXPECT_EQ(tensorflow_.live_tensors, 0);
    EXPECT_EQ(tensorflow_.live_statuses, 0);
    EXPECT_EQ(Pending(), 0u);
    EXPECT_EQ(Metrics::Get().host_bytes.load(), 0);
  }

  // Floats 1 … count.
  Adoptable Memory(int count) {
    std::shared_ptr<DeviceBuffer> memory;
    EXPECT_TRUE(host_->Allocate(4 * count, &memory).ok());
    uint64_t address = memory->address();
    for (int i = 0; i < count; ++i) reinterpret_cast<float*>(address)[i] = static_cast<float>(i + 1);
    return {std::move(memory), address, static_cast<size_t>(4 * count), kFloat, {count}};
  }
  int32_t Token(Adoptable adoptable) {
    int32_t token = 0;
    Status status = Offer(std::move(adoptable), &token);
    EXPECT_TRUE(status.ok()) << status.message();
    return token;
  }
  void Run(TF_OpKernelContext* context) { tensorflow_.Run(context); }

  FakeTensorFlow& tensorflow_ = FakeTensorFlow::Get();
  std::string op_;
  std::shared_ptr<Device> host_;
};

TEST_F(TfAdopt, TheOpTakesATokenInHostMemoryOnBothDevices) {
  EXPECT_EQ(tensorflow_.op.name, op_);
  EXPECT_EQ(tensorflow_.op.input, "token: int32");
  EXPECT_EQ(tensorflow_.op.attr, "T: type");
  EXPECT_EQ(tensorflow_.op.output, "output: T");
  EXPECT_TRUE(tensorflow_.op.stateful);
  ASSERT_EQ(tensorflow_.kernels.size(), 2u);
  for (auto& kernel : tensorflow_.kernels) EXPECT_EQ(kernel.host_argument, "token");
  std::string again;
  ASSERT_TRUE(Register(FakeApi(), &again).ok());
  EXPECT_EQ(again, op_);
  EXPECT_EQ(tensorflow_.kernels.size(), 2u);
}

TEST_F(TfAdopt, HostMemoryIsTheOutputAndIsFreedWithIt) {
  Adoptable adoptable = Memory(3);
  auto* expected = reinterpret_cast<void*>(adoptable.address);
  TF_OpKernelContext context{Token(std::move(adoptable)), kFloat, false};
  Run(&context);
  ASSERT_NE(context.output, nullptr) << context.failure;
  EXPECT_EQ(context.output->data, expected);
  EXPECT_EQ(context.output->shape, std::vector<int64_t>{3});
  EXPECT_GT(Metrics::Get().host_bytes.load(), 0);
  Unref(context.output);
  EXPECT_EQ(Metrics::Get().host_bytes.load(), 0);
}

TEST_F(TfAdopt, AFailureOnTheWayIsTensorFlowsErrorAndLeaksNothing) {
  TF_OpKernelContext context{Token(Memory(5)), kFloat, false};
  context.output_fails = true;
  Run(&context);
  EXPECT_EQ(context.failure, "no output");
}

TEST_F(TfAdopt, WhatWouldAbortTensorFlowIsRefusedBefore) {
  TF_OpKernelContext dtype{Token(Memory(2)), kInt32, false};
  Run(&dtype);
  EXPECT_NE(dtype.failure.find("TF_DataType 1, but the op was asked for 3"), std::string::npos) << dtype.failure;
  TF_OpKernelContext host_on_gpu{Token(Memory(2)), kFloat, true};
  Run(&host_on_gpu);
  EXPECT_NE(host_on_gpu.failure.find("is on cpu, but TensorFlow runs the op on a GPU"), std::string::npos);
}

TEST_F(TfAdopt, ATokenIsTakenOnce) {
  int32_t token = Token(Memory(2));
  TF_OpKernelContext first{token, kFloat, false}, second{token, kFloat, false}, never{0, kFloat, false};
  Run(&first);
  Run(&second);
  Run(&never);
  EXPECT_NE(first.output, nullptr);
  EXPECT_NE(second.failure.find("stands for no memory"), std::string::npos);
  EXPECT_NE(never.failure.find("stands for no memory"), std::string::npos);
  Unref(first.output);
}

TEST_F(TfAdopt, WhatIsNotTakenIsGivenBack) {
  int32_t token = Token(Memory(2));
  EXPECT_EQ(Pending(), 1u);
  Release(token);
  Release(token);
  EXPECT_EQ(Metrics::Get().host_bytes.load(), 0);
}

TEST_F(TfAdopt, OffersThatTensorFlowWouldNotSurviveAreRefused) {
  auto refused = [&](auto change) {
    Adoptable adoptable = Memory(2);
    change(&adoptable);
    int32_t token;
    EXPECT_EQ(Offer(std::move(adoptable), &token).code(), Code::INVALID_ARGUMENT);
  };
  refused([](Adoptable* a) { a->shape = {3}; });
  refused([](Adoptable* a) { a->shape = {-1, -2}; });
  refused([](Adoptable* a) { a->shape = {int64_t{1} << 62, int64_t{1} << 62, int64_t{1} << 62}; });
  refused([](Adoptable* a) { a->dtype = 7; });
  refused([](Adoptable* a) { a->length = 0, a->shape = {0}; });
  refused([](Adoptable* a) { a->address += 4; });
  refused([](Adoptable* a) { a->address -= 4; });
  refused([](Adoptable* a) { a->length = 4000, a->shape = {1000}; });
}

TEST_F(TfAdopt, ThreadsMayOfferRunAndReleaseAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        TF_OpKernelContext context(Token(Memory(2)), kFloat, false);
        if (i % 2 == 0) Release(context.token);
        Run(&context);
        EXPECT_EQ(context.output == nullptr, i % 2 == 0);
        if (context.output != nullptr) Unref(context.output);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(TfLibrary, IsNotThereInAProcessThatHasLoadedNone) {
  Api api;
  Status status = FindTensorFlow(&api);
  EXPECT_EQ(status.code(), Code::DEVICE_UNAVAILABLE);
  EXPECT_NE(status.message().find("require @tensorflow/tfjs-node"), std::string::npos);
}

}  // namespace
}  // namespace fst::tf
