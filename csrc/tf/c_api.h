// The slice of TensorFlow's C API that the core needs, declared by hand and found in the library that the process has
// loaded (tfjs-node brings it), so that neither building nor linking needs TensorFlow. The declarations agree with
// tensorflow/c/{c_api,tf_status,tf_tensor,ops,kernels}.h of 1.15 to 2.21.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"

namespace fst::tf {

struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_ShapeInferenceContext;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
using TF_DataType = int;
using TF_Code = int;
using Deallocator = void (*)(void* data, size_t length, void* argument);

// TF_Code and TF_DataType
constexpr TF_Code kOk = 0, kInvalidArgument = 3, kInternal = 13;
constexpr TF_DataType kFloat = 1, kInt32 = 3;

// X(result, name without TF_, parameters)
#define FST_TF_API(X)                                                                                        \
  X(const char*, Version, ())                                                                                \
  X(TF_Status*, NewStatus, ())                                                                               \
  X(void, DeleteStatus, (TF_Status*))                                                                        \
  X(void, SetStatus, (TF_Status*, TF_Code, const char* message))                                             \
  X(TF_Code, GetCode, (const TF_Status*))                                                                    \
  X(const char*, Message, (const TF_Status*))                                                                \
  X(TF_Tensor*, NewTensor,                                                                                   \
    (TF_DataType, const int64_t* dims, int rank, void* data, size_t length, Deallocator, void* argument))    \
  X(void, DeleteTensor, (TF_Tensor*))                                                                        \
  X(void*, TensorData, (const TF_Tensor*))                                                                   \
  X(size_t, TensorByteSize, (const TF_Tensor*))                                                              \
  X(size_t, DataTypeSize, (TF_DataType))                                                                     \
  X(TF_OpDefinitionBuilder*, NewOpDefinitionBuilder, (const char* name))                                     \
  X(void, OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char* spec))                           \
  X(void, OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char* spec))                          \
  X(void, OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char* spec))                         \
  X(void, OpDefinitionBuilderSetIsStateful, (TF_OpDefinitionBuilder*, bool))                                 \
  X(void, OpDefinitionBuilderSetShapeInferenceFunction,                                                      \
    (TF_OpDefinitionBuilder*, void (*)(TF_ShapeInferenceContext*, TF_Status*)))                              \
  X(void, RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                       \
  X(void, ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*))                     \
  X(TF_KernelBuilder*, NewKernelBuilder,                                                                     \
    (const char* op, const char* device, void* (*create)(TF_OpKernelConstruction*),                          \
     void (*compute)(void*, TF_OpKernelContext*), void (*destroy)(void*)))                                   \
  X(void, KernelBuilder_HostMemory, (TF_KernelBuilder*, const char* argument))                               \
  X(void, RegisterKernelBuilder, (const char* name, TF_KernelBuilder*, TF_Status*))                          \
  X(void, GetInput, (TF_OpKernelContext*, int index, TF_Tensor**, TF_Status*))                               \
  X(void, SetOutput, (TF_OpKernelContext*, int index, const TF_Tensor*, TF_Status*))                         \
  X(TF_Tensor*, AllocateOutput,                                                                              \
    (TF_OpKernelContext*, int index, TF_DataType, const int64_t* dims, int rank, size_t length, TF_Status*)) \
  X(TF_DataType, ExpectedOutputDataType, (TF_OpKernelContext*, int index))                                   \
  X(void, OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))

// The functions of one loaded library; valid until the process ends. Any thread.
struct Api {
#define X(result, name, parameters) result(*name) parameters = nullptr;
  FST_TF_API(X)
#undef X
  std::string library;  // its path
};

// Finds the TensorFlow that this process has loaded, and keeps it loaded. DEVICE_UNAVAILABLE when there is none, or
// when it lacks a function.
Status FindTensorFlow(Api* out);

}  // namespace fst::tf
