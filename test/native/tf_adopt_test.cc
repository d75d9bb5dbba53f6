// The op's kernels against a stand-in for the TensorFlow calls that they make. It is as strict as TensorFlow is fatal:
// what would abort or crash a process there fails the test here.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "base/metrics.h"
#include "device/devices.h"
#include "device/host_memory.h"
#include "tf/adopt.h"

namespace fst::tf {

struct TF_Status {
  TF_Code code = kOk;
  std::string message;
};
struct TF_Tensor {
  TF_DataType dtype;
  std::vector<int64_t> shape;
  void* data;
  size_t length;
  Deallocator deallocate;
  void* argument;
  int references = 1;
};
struct TF_OpDefinitionBuilder {
  std::string name, attr, input, output;
  bool stateful = false;
};
struct TF_KernelBuilder {
  std::string op, device, host_argument;
  void (*compute)(void*, TF_OpKernelContext*);
};
struct TF_OpKernelContext {
  TF_OpKernelContext(int32_t token, TF_DataType asked, bool gpu) : token(token), asked(asked), gpu(gpu) {}
  int32_t token;
  TF_DataType asked;
  bool gpu;
  bool output_fails = false, allocate_fails = false;
  TF_Tensor* output = nullptr;
  std::string failure;
};

namespace {

// ---- the stand-in ----
struct Fake {
  TF_OpDefinitionBuilder op;
  std::vector<TF_KernelBuilder> kernels;
  int major = 2;
  std::atomic<int> live_tensors{0}, live_statuses{0};
} fake;

size_t Size(TF_DataType type) { return type == kFloat || type == kInt32 ? 4 : type == 2 ? 8 : 0; }
void Unref(TF_Tensor* tensor) {
  if (--tensor->references > 0) return;
  if (tensor->deallocate != nullptr) tensor->deallocate(tensor->data, tensor->length, tensor->argument);
  --fake.live_tensors;
  delete tensor;
}
const char* Version() { return fake.major == 1 ? "1.15.0" : "2.21.0"; }
TF_Status* NewStatus() { return ++fake.live_statuses, new TF_Status; }
void DeleteStatus(TF_Status* status) { --fake.live_statuses, delete status; }
void SetStatus(TF_Status* status, TF_Code code, const char* message) { *status = {code, message}; }
TF_Code GetCode(const TF_Status* status) { return status->code; }
const char* Message(const TF_Status* status) { return status->message.c_str(); }
TF_Tensor* NewTensor(TF_DataType dtype, const int64_t* dims, int rank, void* data, size_t length,
                     Deallocator deallocate, void* argument) {
  // TensorFlow copies on the host here: a crash for device memory.
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u) << "a memcpy from device memory";
  ++fake.live_tensors;
  return new TF_Tensor{dtype, {dims, dims + rank}, data, length, deallocate, argument};
}
void DeleteTensor(TF_Tensor* tensor) { Unref(tensor); }
void* TensorData(const TF_Tensor* tensor) { return tensor->data; }
size_t TensorByteSize(const TF_Tensor* tensor) { return tensor->length; }
TF_OpDefinitionBuilder* NewOp(const char* name) { return new TF_OpDefinitionBuilder{name, "", "", ""}; }
void AddAttr(TF_OpDefinitionBuilder* op, const char* spec) { op->attr += spec; }
void AddInput(TF_OpDefinitionBuilder* op, const char* spec) { op->input += spec; }
void AddOutput(TF_OpDefinitionBuilder* op, const char* spec) { op->output += spec; }
void SetStateful(TF_OpDefinitionBuilder* op, bool stateful) { op->stateful = stateful; }
void SetShapeFunction(TF_OpDefinitionBuilder*, void (*)(TF_ShapeInferenceContext*, TF_Status*)) {}
void RegisterOpDefinition(TF_OpDefinitionBuilder* op, TF_Status*) {
  fake.op = *op;
  delete op;
}
void SetUnknownShape(TF_ShapeInferenceContext*, TF_Status*) {}
TF_KernelBuilder* NewKernelBuilder(const char* op, const char* device, void* (*)(TF_OpKernelConstruction*),
                                   void (*compute)(void*, TF_OpKernelContext*), void (*)(void*)) {
  return new TF_KernelBuilder{op, device, "", compute};
}
void HostMemory(TF_KernelBuilder* kernel, const char* argument) { kernel->host_argument = argument; }
void RegisterKernelBuilder(const char*, TF_KernelBuilder* kernel, TF_Status*) {
  fake.kernels.push_back(*kernel);
  delete kernel;
}
void GetInput(TF_OpKernelContext* context, int, TF_Tensor** out, TF_Status*) {
  ++fake.live_tensors;
  *out = new TF_Tensor{kInt32, {}, &context->token, 4, nullptr, nullptr};
}
void SetOutput(TF_OpKernelContext* context, int, const TF_Tensor* tensor, TF_Status* status) {
  if (context->output_fails) return SetStatus(status, kInternal, "no output");
  EXPECT_EQ(tensor->dtype, context->asked) << "TensorFlow aborts here";
  EXPECT_EQ(context->output, nullptr) << "2.x trips a check when an output is set twice";
  context->output = const_cast<TF_Tensor*>(tensor);
  ++context->output->references;
}
TF_Tensor* AllocateOutput(TF_OpKernelContext* context, int, TF_DataType dtype, const int64_t* dims, int rank,
                          size_t length, TF_Status* status) {
  if (context->allocate_fails) return SetStatus(status, 8, "out of memory"), nullptr;
  ++fake.live_tensors;
  auto free_it = [](void* data, size_t, void*) { free(data); };
  auto* tensor =
      new TF_Tensor{dtype, {dims, dims + rank}, aligned_alloc(64, (length + 63) / 64 * 64), length, free_it, nullptr};
  if (fake.major >= 2) {
    context->output = tensor;
    ++tensor->references;
  }
  return tensor;
}
TF_DataType ExpectedOutputDataType(TF_OpKernelContext* context, int) { return context->asked; }
void Failure(TF_OpKernelContext* context, TF_Status* status) {
  EXPECT_NE(status->code, kOk);
  EXPECT_TRUE(context->failure.empty()) << "failed twice";
  context->failure = status->message;
}

Api FakeApi() {
  Api api;
  api.Version = Version;
  api.NewStatus = NewStatus;
  api.DeleteStatus = DeleteStatus;
  api.SetStatus = SetStatus;
  api.GetCode = GetCode;
  api.Message = Message;
  api.NewTensor = NewTensor;
  api.DeleteTensor = DeleteTensor;
  api.TensorData = TensorData;
  api.TensorByteSize = TensorByteSize;
  api.DataTypeSize = Size;
  api.NewOpDefinitionBuilder = NewOp;
  api.OpDefinitionBuilderAddAttr = AddAttr;
  api.OpDefinitionBuilderAddInput = AddInput;
  api.OpDefinitionBuilderAddOutput = AddOutput;
  api.OpDefinitionBuilderSetIsStateful = SetStateful;
  api.OpDefinitionBuilderSetShapeInferenceFunction = SetShapeFunction;
  api.RegisterOpDefinition = RegisterOpDefinition;
  api.ShapeInferenceContextSetUnknownShape = SetUnknownShape;
  api.NewKernelBuilder = NewKernelBuilder;
  api.KernelBuilder_HostMemory = HostMemory;
  api.RegisterKernelBuilder = RegisterKernelBuilder;
  api.GetInput = GetInput;
  api.SetOutput = SetOutput;
  api.AllocateOutput = AllocateOutput;
  api.ExpectedOutputDataType = ExpectedOutputDataType;
  api.OpKernelContext_Failure = Failure;
  return api;
}

// ---- a GPU: host memory that says it is not ----
class Gpu : public Device {
 public:
  const std::string& name() const override { return name_; }
  bool host_accessible() const override { return false; }
  Status Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) override {
    void* memory;
    FST_RETURN_IF_ERROR(AllocateHost(bytes, &memory));
    *out = MakeBuffer(shared_from_this(), reinterpret_cast<uint64_t>(memory), bytes, &Metrics::Get().device_bytes,
                      [memory, bytes] { FreeHost(memory, bytes); });
    return Status::Ok();
  }
  Status CheckRoom(uint64_t) override { return Status::Ok(); }
  Status AllocateStaging(size_t, std::unique_ptr<StagingMemory>*) override { return Unused(); }
  Status PinHostMemory(void*, size_t) override { return Unused(); }
  Status UnpinHostMemory(void*) override { return Unused(); }
  Status NewStream(std::shared_ptr<CompletionQueue>, std::unique_ptr<CopyStream>*) override { return Unused(); }
  Status Read(const DeviceBuffer&, size_t, size_t, void*) override { return Unused(); }
  Status Write(const DeviceBuffer&, size_t, size_t, const void*) override { return Unused(); }
  Status Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
              size_t count) override {
    EXPECT_GT(synchronized.load(), 0) << "TensorFlow's kernels may still use that memory";
    if (fail_copy) return Status(Code::CUDA_ERROR, "the copy failed");
    ++copies;
    for (size_t i = 0; i < count; ++i) {
      memcpy(reinterpret_cast<char*>(destination.address()) + regions[i].destination_offset,
             reinterpret_cast<const char*>(source.address()) + regions[i].source_offset, regions[i].length);
    }
    return Status::Ok();
  }
  // What is queued on the device ends when the test says so.
  Status Synchronize() override {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return !busy_; });
    synchronized++;
    return Status::Ok();
  }
  void SetBusy(bool busy) {
    std::lock_guard<std::mutex> lock(mutex_);
    busy_ = busy;
    idle_.notify_all();
  }

  std::atomic<int> synchronized{0};
  int copies = 0;
  bool fail_copy = false;

 private:
  static Status Unused() { return Status(Code::CUDA_ERROR, "not used by these tests"); }
  std::string name_ = "cuda:0";
  std::mutex mutex_;
  std::condition_variable idle_;
  bool busy_ = false;
};

class TfAdopt : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Register(FakeApi(), &op_).ok());
    ASSERT_TRUE(OpenDevice("cpu", false, &host_).ok());
    gpu_ = std::make_shared<Gpu>();
    fake.major = 2;
  }
  void TearDown() override {
    EXPECT_EQ(fake.live_tensors, 0);
    EXPECT_EQ(fake.live_statuses, 0);
    EXPECT_EQ(Pending(), 0u);
    EXPECT_EQ(Metrics::Get().host_bytes.load(), 0);
    EXPECT_EQ(Metrics::Get().device_bytes.load(), 0);
  }

  // Floats 1 … count, `skip` bytes into an allocation.
  Adoptable Memory(const std::shared_ptr<Device>& device, int count, size_t skip = 0) {
    std::shared_ptr<DeviceBuffer> memory;
    EXPECT_TRUE(device->Allocate(4 * count + skip, &memory).ok());
    auto* floats = reinterpret_cast<float*>(memory->address() + skip);
    for (int i = 0; i < count; ++i) floats[i] = static_cast<float>(i + 1);
    uint64_t address = memory->address() + skip;
    return {std::move(memory), address, static_cast<size_t>(4 * count), kFloat, {count}};
  }
  int32_t Token(Adoptable adoptable) {
    int32_t token = 0;
    Status status = Offer(std::move(adoptable), &token);
    EXPECT_TRUE(status.ok()) << status.message();
    return token;
  }
  void Run(TF_OpKernelContext* context) {
    for (auto& kernel : fake.kernels) {
      if (kernel.device == (context->gpu ? "GPU" : "CPU")) return kernel.compute(nullptr, context);
    }
    FAIL() << "no kernel";
  }
  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return condition();
  }

  std::string op_;
  std::shared_ptr<Device> host_;
  std::shared_ptr<Gpu> gpu_;
};

TEST_F(TfAdopt, TheOpTakesATokenInHostMemoryOnBothDevices) {
  EXPECT_EQ(fake.op.name, op_);
  EXPECT_EQ(fake.op.input, "token: int32");
  EXPECT_EQ(fake.op.attr, "T: type");
  EXPECT_EQ(fake.op.output, "output: T");
  EXPECT_TRUE(fake.op.stateful);
  ASSERT_EQ(fake.kernels.size(), 2u);
  for (auto& kernel : fake.kernels) EXPECT_EQ(kernel.host_argument, "token");
  std::string again;
  ASSERT_TRUE(Register(FakeApi(), &again).ok());
  EXPECT_EQ(again, op_);
  EXPECT_EQ(fake.kernels.size(), 2u);
}

TEST_F(TfAdopt, HostMemoryIsTheOutputAndIsFreedWithIt) {
  Adoptable adoptable = Memory(host_, 3);
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

TEST_F(TfAdopt, AlignedDeviceMemoryIsTheOutputWithoutACopy) {
  Adoptable adoptable = Memory(gpu_, 3, 256);
  auto* expected = reinterpret_cast<void*>(adoptable.address);
  TF_OpKernelContext context{Token(std::move(adoptable)), kFloat, true};
  Run(&context);
  ASSERT_NE(context.output, nullptr) << context.failure;
  EXPECT_EQ(context.output->data, expected);
  EXPECT_EQ(gpu_->copies, 0);
  Unref(context.output);
  EXPECT_TRUE(Eventually([] { return Metrics::Get().device_bytes.load() == 0; }));
}

TEST_F(TfAdopt, DeviceMemoryIsFreedWhenTheDeviceIsDoneWithItAndNotOnTensorFlowsThread) {
  TF_OpKernelContext context{Token(Memory(gpu_, 3)), kFloat, true};
  Run(&context);
  gpu_->SetBusy(true);
  Unref(context.output);  // returns: another thread waits
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_GT(Metrics::Get().device_bytes.load(), 0) << "freed under running kernels";
  gpu_->SetBusy(false);
  EXPECT_TRUE(Eventually([] { return Metrics::Get().device_bytes.load() == 0; }));
}

TEST_F(TfAdopt, UnalignedDeviceMemoryIsCopiedOnTheDeviceOnce) {
  for (int major : {1, 2}) {
    fake.major = major;
    gpu_ = std::make_shared<Gpu>();
    TF_OpKernelContext context{Token(Memory(gpu_, 5, 4)), kFloat, true};
    Run(&context);
    ASSERT_NE(context.output, nullptr) << context.failure;
    EXPECT_EQ(gpu_->copies, 1);
    EXPECT_EQ(static_cast<float*>(context.output->data)[4], 5.0f);
    EXPECT_EQ(Metrics::Get().device_bytes.load(), 0);
    Unref(context.output);
  }
}

TEST_F(TfAdopt, FailuresOnTheWayAreTensorFlowsErrorsAndLeakNothing) {
  {
    TF_OpKernelContext context{Token(Memory(gpu_, 5, 4)), kFloat, true};
    context.allocate_fails = true;
    Run(&context);
    EXPECT_EQ(context.failure, "out of memory");
  }
  {
    gpu_->fail_copy = true;
    TF_OpKernelContext context{Token(Memory(gpu_, 5, 4)), kFloat, true};
    Run(&context);
    EXPECT_EQ(context.failure, "the copy failed");
    if (context.output != nullptr) Unref(context.output);
  }
  {
    TF_OpKernelContext context{Token(Memory(host_, 5)), kFloat, false};
    context.output_fails = true;
    Run(&context);
    EXPECT_EQ(context.failure, "no output");
  }
}

TEST_F(TfAdopt, WhatWouldAbortTensorFlowIsRefusedBefore) {
  TF_OpKernelContext dtype{Token(Memory(host_, 2)), kInt32, false};
  Run(&dtype);
  EXPECT_NE(dtype.failure.find("TF_DataType 1, but the op was asked for 3"), std::string::npos) << dtype.failure;
  TF_OpKernelContext host_on_gpu{Token(Memory(host_, 2)), kFloat, true};
  Run(&host_on_gpu);
  EXPECT_NE(host_on_gpu.failure.find("is on cpu, but TensorFlow runs the op on a GPU"), std::string::npos);
  TF_OpKernelContext gpu_on_host{Token(Memory(gpu_, 2)), kFloat, false};
  Run(&gpu_on_host);
  EXPECT_NE(gpu_on_host.failure.find("is on cuda:0, but TensorFlow runs the op on the host"), std::string::npos);
}

TEST_F(TfAdopt, ATokenIsTakenOnce) {
  int32_t token = Token(Memory(host_, 2));
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
  int32_t token = Token(Memory(host_, 2));
  EXPECT_EQ(Pending(), 1u);
  Release(token);
  Release(token);
  EXPECT_EQ(Metrics::Get().host_bytes.load(), 0);
}

TEST_F(TfAdopt, OffersThatTensorFlowWouldNotSurviveAreRefused) {
  auto refused = [&](auto change) {
    Adoptable adoptable = Memory(host_, 2);
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
        TF_OpKernelContext context(Token(Memory(host_, 2)), kFloat, false);
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
