// The slice of ONNX Runtime's C API that the adapter needs, declared by hand and found by index.
//
// It rests on onnxruntime's ABI contract: libonnxruntime exports OrtGetApiBase(); GetApi(v) returns a table of C
// function pointers to which entries are only appended. So an index is valid in every library whose GetApi(v) is not
// null for the version that introduced the entry. Handles are opaque; there is no C++ ABI. The library is never linked
// (its export is versioned) and its C++ header never included (its globals would merge with those of other users of the
// library). test/native/ort_slice_check.cc compares this file with a real header.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fst::ort {

struct Env;
struct OrtStatus;
struct MemoryInfo;
struct OrtSession;
struct OrtValue;
struct RunOptions;
struct SessionOptions;
struct TypeInfo;
struct TensorInfo;
struct Allocator;
struct IoBinding;
struct CudaOptions;
struct Api;  // an array of function pointers

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
using GetApiBase = const ApiBase* (*)();

enum AllocatorType : int { kDeviceAllocator = 0 };
enum MemType : int { kMemDefault = 0 };
enum ErrorCode : int {
  kFail = 1,
  kInvalidArgument = 2,
  kNoSuchFile = 3,
  kInvalidProtobuf = 7,
  kNotImplemented = 9,
  kInvalidGraph = 10
};

// ONNXTensorElementDataType; up to 23 the numbers are those of TensorProto.DataType.
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kString = 8,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
  kUint32 = 12,
  kUint64 = 13,
  kBFloat16 = 16,
  kFloat8E4M3 = 17,
  kFloat8E5M2 = 19,
  kFloat4 = 23
};

// X(name, index, since API version, return type, parameters...)
#define FST_ORT_SLICE(X)                                                                                              \
  X(GetErrorCode, 1, 1, int, const OrtStatus*)                                                                        \
  X(GetErrorMessage, 2, 1, const char*, const OrtStatus*)                                                             \
  X(CreateEnv, 3, 1, OrtStatus*, int, const char*, Env**)                                                             \
  X(CreateSession, 7, 1, OrtStatus*, const Env*, const char*, const SessionOptions*, OrtSession**)                    \
  X(CreateSessionFromArray, 8, 1, OrtStatus*, const Env*, const void*, size_t, const SessionOptions*, OrtSession**)   \
  X(CreateSessionOptions, 10, 1, OrtStatus*, SessionOptions**)                                                        \
  X(SetOptimizedModelFilePath, 11, 1, OrtStatus*, SessionOptions*, const char*)                                       \
  X(SetSessionExecutionMode, 13, 1, OrtStatus*, SessionOptions*, int)                                                 \
  X(EnableProfiling, 14, 1, OrtStatus*, SessionOptions*, const char*)                                                 \
  X(EnableMemPattern, 16, 1, OrtStatus*, SessionOptions*)                                                             \
  X(DisableMemPattern, 17, 1, OrtStatus*, SessionOptions*)                                                            \
  X(EnableCpuMemArena, 18, 1, OrtStatus*, SessionOptions*)                                                            \
  X(DisableCpuMemArena, 19, 1, OrtStatus*, SessionOptions*)                                                           \
  X(SetSessionLogId, 20, 1, OrtStatus*, SessionOptions*, const char*)                                                 \
  X(SetSessionLogVerbosityLevel, 21, 1, OrtStatus*, SessionOptions*, int)                                             \
  X(SetSessionLogSeverityLevel, 22, 1, OrtStatus*, SessionOptions*, int)                                              \
  X(SetSessionGraphOptimizationLevel, 23, 1, OrtStatus*, SessionOptions*, int)                                        \
  X(SetIntraOpNumThreads, 24, 1, OrtStatus*, SessionOptions*, int)                                                    \
  X(SetInterOpNumThreads, 25, 1, OrtStatus*, SessionOptions*, int)                                                    \
  X(SessionGetInputCount, 30, 1, OrtStatus*, const OrtSession*, size_t*)                                              \
  X(SessionGetOutputCount, 31, 1, OrtStatus*, const OrtSession*, size_t*)                                             \
  X(SessionGetOverridableInitializerCount, 32, 1, OrtStatus*, const OrtSession*, size_t*)                             \
  X(SessionGetInputTypeInfo, 33, 1, OrtStatus*, const OrtSession*, size_t, TypeInfo**)                                \
  X(SessionGetOutputTypeInfo, 34, 1, OrtStatus*, const OrtSession*, size_t, TypeInfo**)                               \
  X(SessionGetInputName, 36, 1, OrtStatus*, const OrtSession*, size_t, Allocator*, char**)                            \
  X(SessionGetOutputName, 37, 1, OrtStatus*, const OrtSession*, size_t, Allocator*, char**)                           \
  X(SessionGetOverridableInitializerName, 38, 1, OrtStatus*, const OrtSession*, size_t, Allocator*, char**)           \
  X(CreateRunOptions, 39, 1, OrtStatus*, RunOptions**)                                                                \
  X(RunOptionsSetRunLogVerbosityLevel, 40, 1, OrtStatus*, RunOptions*, int)                                           \
  X(RunOptionsSetRunLogSeverityLevel, 41, 1, OrtStatus*, RunOptions*, int)                                            \
  X(RunOptionsSetRunTag, 42, 1, OrtStatus*, RunOptions*, const char*)                                                 \
  X(RunOptionsSetTerminate, 46, 1, OrtStatus*, RunOptions*)                                                           \
  X(CreateTensorAsOrtValue, 48, 1, OrtStatus*, Allocator*, const int64_t*, size_t, int, OrtValue**)                   \
  X(CreateTensorWithDataAsOrtValue, 49, 1, OrtStatus*, const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, \
    OrtValue**)                                                                                                       \
  X(IsTensor, 50, 1, OrtStatus*, const OrtValue*, int*)                                                               \
  X(GetTensorMutableData, 51, 1, OrtStatus*, OrtValue*, void**)                                                       \
  X(FillStringTensor, 52, 1, OrtStatus*, OrtValue*, const char* const*, size_t)                                       \
  X(GetStringTensorDataLength, 53, 1, OrtStatus*, const OrtValue*, size_t*)                                           \
  X(GetStringTensorContent, 54, 1, OrtStatus*, const OrtValue*, void*, size_t, size_t*, size_t)                       \
  X(CastTypeInfoToTensorInfo, 55, 1, OrtStatus*, const TypeInfo*, const TensorInfo**)                                 \
  X(GetTensorElementType, 60, 1, OrtStatus*, const TensorInfo*, int*)                                                 \
  X(GetDimensionsCount, 61, 1, OrtStatus*, const TensorInfo*, size_t*)                                                \
  X(GetDimensions, 62, 1, OrtStatus*, const TensorInfo*, int64_t*, size_t)                                            \
  X(GetSymbolicDimensions, 63, 1, OrtStatus*, const TensorInfo*, const char**, size_t)                                \
  X(GetTensorTypeAndShape, 65, 1, OrtStatus*, const OrtValue*, TensorInfo**)                                          \
  X(CreateMemoryInfo, 68, 1, OrtStatus*, const char*, int, int, int, MemoryInfo**)                                    \
  X(MemoryInfoGetName, 71, 1, OrtStatus*, const MemoryInfo*, const char**)                                            \
  X(MemoryInfoGetId, 72, 1, OrtStatus*, const MemoryInfo*, int*)                                                      \
  X(AllocatorFree, 76, 1, OrtStatus*, Allocator*, void*)                                                              \
  X(GetAllocatorWithDefaultOptions, 78, 1, OrtStatus*, Allocator**)                                                   \
  X(ReleaseStatus, 93, 1, void, OrtStatus*)                                                                           \
  X(ReleaseMemoryInfo, 94, 1, void, MemoryInfo*)                                                                      \
  X(ReleaseSession, 95, 1, void, OrtSession*)                                                                         \
  X(ReleaseValue, 96, 1, void, OrtValue*)                                                                             \
  X(ReleaseRunOptions, 97, 1, void, RunOptions*)                                                                      \
  X(ReleaseTypeInfo, 98, 1, void, TypeInfo*)                                                                          \
  X(ReleaseTensorTypeAndShapeInfo, 99, 1, void, TensorInfo*)                                                          \
  X(ReleaseSessionOptions, 100, 1, void, SessionOptions*)                                                             \
  X(AddFreeDimensionOverrideByName, 124, 2, OrtStatus*, SessionOptions*, const char*, int64_t)                        \
  X(AddSessionConfigEntry, 130, 4, OrtStatus*, SessionOptions*, const char*, const char*)                             \
  X(RunWithBinding, 133, 5, OrtStatus*, OrtSession*, const RunOptions*, const IoBinding*)                             \
  X(CreateIoBinding, 134, 5, OrtStatus*, OrtSession*, IoBinding**)                                                    \
  X(ReleaseIoBinding, 135, 5, void, IoBinding*)                                                                       \
  X(BindInput, 136, 5, OrtStatus*, IoBinding*, const char*, const OrtValue*)                                          \
  X(BindOutput, 137, 5, OrtStatus*, IoBinding*, const char*, const OrtValue*)                                         \
  X(BindOutputToDevice, 138, 5, OrtStatus*, IoBinding*, const char*, const MemoryInfo*)                               \
  X(GetBoundOutputValues, 140, 5, OrtStatus*, const IoBinding*, Allocator*, OrtValue***, size_t*)                     \
  X(AddInitializer, 150, 6, OrtStatus*, SessionOptions*, const char*, const OrtValue*)                                \
  X(AddRunConfigEntry, 165, 8, OrtStatus*, RunOptions*, const char*, const char*)                                     \
  X(GetTensorMemoryInfo, 194, 11, OrtStatus*, const OrtValue*, const MemoryInfo**)                                    \
  X(SynchronizeBoundInputs, 202, 11, OrtStatus*, IoBinding*)                                                          \
  X(SynchronizeBoundOutputs, 203, 11, OrtStatus*, IoBinding*)                                                         \
  X(SessionOptionsAppendExecutionProvider_CUDA_V2, 204, 11, OrtStatus*, SessionOptions*, const CudaOptions*)          \
  X(CreateCUDAProviderOptions, 205, 11, OrtStatus*, CudaOptions**)                                                    \
  X(UpdateCUDAProviderOptions, 206, 11, OrtStatus*, CudaOptions*, const char* const*, const char* const*, size_t)     \
  X(ReleaseCUDAProviderOptions, 208, 11, void, CudaOptions*)                                                          \
  X(AddExternalInitializersFromFilesInMemory, 279, 18, OrtStatus*, SessionOptions*, const char* const*, char* const*, \
    const size_t*, size_t)                                                                                            \
  X(SessionOptionsSetLoadCancellationFlag, 293, 22, OrtStatus*, SessionOptions*, bool)                                \
  X(GetTensorSizeInBytes, 318, 23, OrtStatus*, const OrtValue*, size_t*)                                              \
  X(MemoryInfoGetVendorId, 322, 23, uint32_t, const MemoryInfo*)

// The lowest and the highest version of the API that are asked for. Entries newer than the lowest may be null.
constexpr uint32_t kLowestApi = 20, kHighestApi = 23;

struct Functions {
#define X(name, index, since, ret, ...) ret (*name)(__VA_ARGS__) = nullptr;
  FST_ORT_SLICE(X)
#undef X
};

// `table` is the result of GetApi(version).
inline Functions Bind(const Api* table, uint32_t version) {
  auto entries = reinterpret_cast<void* const*>(table);
  Functions bound;
#define X(name, index, since, ret, ...) \
  bound.name = version >= (since) ? reinterpret_cast<ret (*)(__VA_ARGS__)>(entries[index]) : nullptr;
  FST_ORT_SLICE(X)
#undef X
  return bound;
}

}  // namespace fst::ort
