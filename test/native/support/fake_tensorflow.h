// A stand-in for the TensorFlow calls that the op's kernels make. It is as strict as TensorFlow is fatal: what would
// abort or crash a process there fails the test here. One a process, as the op is registered once.
#pragma once
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "tf/c_api.h"

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
  std::function<void()> release;
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

// What the stand-in knows, and what tests set.
struct FakeTensorFlow {
  TF_OpDefinitionBuilder op;
  std::vector<TF_KernelBuilder> kernels;
  std::atomic<int> live_tensors{0}, live_statuses{0};
  int major = 2;
  // The memory of outputs that kernels ask for: TensorFlow's own, aligned to 64.
  std::function<void*(size_t)> allocate;
  std::function<void(void*)> free;

  static FakeTensorFlow& Get() {
    static FakeTensorFlow fake;
    return fake;
  }
  // Memory of the host, as on a fresh process.
  void Reset() {
    major = 2;
    allocate = [](size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); };
    free = [](void* memory) { ::free(memory); };
  }
  // As TensorFlow's executor: the kernel of the context's device.
  void Run(TF_OpKernelContext* context) const {
    for (const TF_KernelBuilder& kernel : kernels) {
      if (kernel.device == (context->gpu ? "GPU" : "CPU")) return kernel.compute(nullptr, context);
    }
    FAIL() << "no kernel";
  }
};

namespace fake {

inline FakeTensorFlow& Self() { return FakeTensorFlow::Get(); }

// The last reference frees, on the thread that lets go of it.
inline void Unref(TF_Tensor* tensor) {
  if (--tensor->references > 0) return;
  if (tensor->release != nullptr) tensor->release();
  --Self().live_tensors;
  delete tensor;
}
inline size_t DataTypeSize(TF_DataType type) { return type == kFloat || type == kInt32 ? 4 : type == 2 ? 8 : 0; }
inline const char* Version() { return Self().major == 1 ? "1.15.0" : "2.21.0"; }
inline TF_Status* NewStatus() { return ++Self().live_statuses, new TF_Status; }
inline void DeleteStatus(TF_Status* status) { --Self().live_statuses, delete status; }
inline void SetStatus(TF_Status* status, TF_Code code, const char* message) { *status = {code, message}; }
inline TF_Code GetCode(const TF_Status* status) { return status->code; }
inline const char* Message(const TF_Status* status) { return status->message.c_str(); }
inline TF_Tensor* NewTensor(TF_DataType dtype, const int64_t* dims, int rank, void* data, size_t length,
                            Deallocator deallocate, void* argument) {
  // TensorFlow copies on the host here: a crash for device memory.
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u) << "a memcpy from device memory";
  ++Self().live_tensors;
  return new TF_Tensor{dtype, {dims, dims + rank}, data, length, [=] { deallocate(data, length, argument); }};
}
inline void DeleteTensor(TF_Tensor* tensor) { Unref(tensor); }
inline void* TensorData(const TF_Tensor* tensor) { return tensor->data; }
inline size_t TensorByteSize(const TF_Tensor* tensor) { return tensor->length; }
inline TF_OpDefinitionBuilder* NewOpDefinitionBuilder(const char* name) {
  return new TF_OpDefinitionBuilder{name, "", "", ""};
}
inline void OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder* op, const char* spec) { op->attr += spec; }
inline void OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder* op, const char* spec) { op->input += spec; }
inline void OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder* op, const char* spec) { op->output += spec; }
inline void OpDefinitionBuilderSetIsStateful(TF_OpDefinitionBuilder* op, bool stateful) { op->stateful = stateful; }
inline void OpDefinitionBuilderSetShapeInferenceFunction(TF_OpDefinitionBuilder*,
                                                         void (*)(TF_ShapeInferenceContext*, TF_Status*)) {}
inline void RegisterOpDefinition(TF_OpDefinitionBuilder* op, TF_Status*) {
  Self().op = *op;
  delete op;
}
inline void ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext*, TF_Status*) {}
inline TF_KernelBuilder* NewKernelBuilder(const char* op, const char* device, void* (*)(TF_OpKernelConstruction*),
                                          void (*compute)(void*, TF_OpKernelContext*), void (*)(void*)) {
  return new TF_KernelBuilder{op, device, "", compute};
}
inline void KernelBuilder_HostMemory(TF_KernelBuilder* kernel, const char* name) { kernel->host_argument = name; }
inline void RegisterKernelBuilder(const char*, TF_KernelBuilder* kernel, TF_Status*) {
  Self().kernels.push_back(*kernel);
  delete kernel;
}
inline void GetInput(TF_OpKernelContext* context, int, TF_Tensor** out, TF_Status*) {
  ++Self().live_tensors;
  *out = new TF_Tensor{kInt32, {}, &context->token, 4, nullptr};
}
inline void SetOutput(TF_OpKernelContext* context, int, const TF_Tensor* tensor, TF_Status* status) {
  if (context->output_fails) return SetStatus(status, kInternal, "no output");
  EXPECT_EQ(tensor->dtype, context->asked) << "TensorFlow aborts here";
  EXPECT_EQ(context->output, nullptr) << "2.x trips a check when an output is set twice";
  context->output = const_cast<TF_Tensor*>(tensor);
  ++context->output->references;
}
inline TF_Tensor* AllocateOutput(TF_OpKernelContext* context, int, TF_DataType dtype, const int64_t* dims, int rank,
                                 size_t length, TF_Status* status) {
  if (context->allocate_fails) return SetStatus(status, 8, "out of memory"), nullptr;
  ++Self().live_tensors;
  void* memory = Self().allocate(length);
  auto* tensor = new TF_Tensor{dtype, {dims, dims + rank}, memory, length, [memory] { Self().free(memory); }};
  if (Self().major >= 2) {
    context->output = tensor;
    ++tensor->references;
  }
  return tensor;
}
inline TF_DataType ExpectedOutputDataType(TF_OpKernelContext* context, int) { return context->asked; }
inline void OpKernelContext_Failure(TF_OpKernelContext* context, TF_Status* status) {
  EXPECT_NE(status->code, kOk);
  EXPECT_TRUE(context->failure.empty()) << "failed twice";
  context->failure = status->message;
}

}  // namespace fake

inline Api FakeApi() {
  Api api;
#define X(result, name, parameters) api.name = fake::name;
  FST_TF_API(X)
#undef X
  return api;
}

}  // namespace fst::tf
