// As much of ONNX Runtime 1.23 as csrc/ort/slice.h uses. Every model is y = x + w over 512 floats, where w is an
// initializer that was added; what a GPU's provider would do with memory is done through the emulated driver.
//
// It is stricter than the real one, and ends the process where that would compute something else: initializers and
// inputs must be where the session runs, the memory of initializers must live until the session's end, bound inputs and
// outputs must be synchronized around a run, every handle must be released, and nothing may call once exit() destroys
// its static objects. In the environment:
//   FST_EMU_ORT_LEAKS=1     what was not released at exit ends the process; 0: it may end in the middle
//   FST_EMU_ORT_US=0        how long each run and each creation of a session takes; both can be told to end
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <type_traits>

#include "emulators/onnxruntime/device_memory.h"
#include "emulators/onnxruntime/handles.h"
#include "ort/slice.h"

namespace fst::emulated_ort {
namespace {

using namespace fst::ort;

constexpr size_t kElements = 512, kBytes = kElements * sizeof(float);

Handles handles;

OrtStatus* Fail(int code, const std::string& message) { return handles.Made("status", new OrtStatus{code, message}); }

void ReadValue(const OrtValue& value, void* to) {
  if (value.bytes != kBytes) Abort("a tensor of %zu bytes", value.bytes);
  if (value.memory.Device() < 0) {
    memcpy(to, value.data, kBytes);
  } else {
    Read(value.memory.Device(), reinterpret_cast<uint64_t>(value.data), to, kBytes);
  }
}

void WriteValue(const OrtValue& value, const void* from) {
  if (value.memory.Device() < 0) {
    memcpy(value.data, from, kBytes);
  } else {
    Write(value.memory.Device(), reinterpret_cast<uint64_t>(value.data), from, kBytes);
  }
}

// Works for as long as the environment says. False when it was told to end meanwhile.
bool Work(const std::atomic<bool>& ended) {
  static const int length_us = Setting("FST_EMU_ORT_US", 0);
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(length_us);
  while (!ended && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::microseconds(50));
  return !ended;
}

char* Copied(const char* text) { return strdup(text); }

// ---- the functions of the slice
// ---------------------------------------------------------------------------------------

struct Emulated {
  static int GetErrorCode(const OrtStatus* status) { return status->code; }
  static const char* GetErrorMessage(const OrtStatus* status) { return status->message.c_str(); }
  static void ReleaseStatus(OrtStatus* status) { handles.Release("status", status); }
  static OrtStatus* CreateEnv(int, const char*, Env** out) {
    static Env env;
    *out = &env;
    return nullptr;
  }
  static OrtStatus* GetAllocatorWithDefaultOptions(Allocator** out) {
    static Allocator allocator;
    *out = &allocator;
    return nullptr;
  }
  static OrtStatus* AllocatorFree(Allocator*, void* memory) {
    free(memory);
    return nullptr;
  }

  static OrtStatus* CreateMemoryInfo(const char* name, int, int id, int, MemoryInfo** out) {
    *out = handles.Made("memory info", new MemoryInfo{name, id});
    return nullptr;
  }
  static OrtStatus* MemoryInfoGetName(const MemoryInfo* info, const char** out) {
    *out = info->name.c_str();
    return nullptr;
  }
  static OrtStatus* MemoryInfoGetId(const MemoryInfo* info, int* out) {
    *out = info->id;
    return nullptr;
  }
  static uint32_t MemoryInfoGetVendorId(const MemoryInfo* info) { return info->name == "Cuda" ? 0x10DE : 0; }
  static void ReleaseMemoryInfo(MemoryInfo* info) { handles.Release("memory info", info); }

  static OrtStatus* CreateTensorWithDataAsOrtValue(const MemoryInfo* memory, void* data, size_t bytes,
                                                   const int64_t* dims, size_t rank, int type, OrtValue** out) {
    *out = handles.Made("value", new OrtValue{*memory, {type, {dims, dims + rank}}, data, bytes, false});
    return nullptr;
  }
  static OrtStatus* IsTensor(const OrtValue*, int* out) {
    *out = 1;
    return nullptr;
  }
  static OrtStatus* GetTensorMutableData(OrtValue* value, void** out) {
    *out = value->data;
    return nullptr;
  }
  static OrtStatus* GetTensorTypeAndShape(const OrtValue* value, TensorInfo** out) {
    *out = handles.Made("tensor info", new TensorInfo(value->info));
    return nullptr;
  }
  static OrtStatus* GetTensorMemoryInfo(const OrtValue* value, const MemoryInfo** out) {
    *out = &value->memory;
    return nullptr;
  }
  static OrtStatus* GetTensorSizeInBytes(const OrtValue* value, size_t* out) {
    *out = value->bytes;
    return nullptr;
  }
  static void ReleaseValue(OrtValue* value) {
    if (value->owned && value->memory.Device() < 0) free(value->data);
    if (value->owned && value->memory.Device() >= 0) {
      Free(value->memory.Device(), reinterpret_cast<uint64_t>(value->data));
    }
    handles.Release("value", value);
  }

  static OrtStatus* CastTypeInfoToTensorInfo(const TypeInfo* type, const TensorInfo** out) {
    *out = &type->tensor;
    return nullptr;
  }
  static OrtStatus* GetTensorElementType(const TensorInfo* info, int* out) {
    *out = info->type;
    return nullptr;
  }
  static OrtStatus* GetDimensionsCount(const TensorInfo* info, size_t* out) {
    *out = info->dims.size();
    return nullptr;
  }
  static OrtStatus* GetDimensions(const TensorInfo* info, int64_t* out, size_t rank) {
    std::copy_n(info->dims.begin(), rank, out);
    return nullptr;
  }
  static OrtStatus* GetSymbolicDimensions(const TensorInfo*, const char** out, size_t rank) {
    std::fill_n(out, rank, "");
    return nullptr;
  }
  static void ReleaseTypeInfo(TypeInfo* type) { handles.Release("type info", type); }
  static void ReleaseTensorTypeAndShapeInfo(TensorInfo* info) { handles.Release("tensor info", info); }

  static OrtStatus* CreateSessionOptions(SessionOptions** out) {
    *out = handles.Made("session options", new SessionOptions);
    return nullptr;
  }
  static OrtStatus* AddSessionConfigEntry(SessionOptions*, const char*, const char*) { return nullptr; }
  static OrtStatus* SetSessionLogSeverityLevel(SessionOptions*, int) { return nullptr; }
  static OrtStatus* SessionOptionsSetLoadCancellationFlag(SessionOptions* options, bool ended) {
    handles.Expect("session options", options);
    options->ended = ended;
    return nullptr;
  }
  static OrtStatus* AddInitializer(SessionOptions* options, const char* name, const OrtValue* value) {
    options->initializers[name] = value;
    return nullptr;
  }
  static void ReleaseSessionOptions(SessionOptions* options) { handles.Release("session options", options); }
  static OrtStatus* CreateCUDAProviderOptions(CudaOptions** out) {
    *out = handles.Made("CUDA options", new CudaOptions);
    return nullptr;
  }
  static OrtStatus* UpdateCUDAProviderOptions(CudaOptions* options, const char* const* keys, const char* const* values,
                                              size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (strcmp(keys[i], "device_id") == 0) {
        options->device = atoi(values[i]);
      } else if (strcmp(keys[i], "arena_extend_strategy") != 0) {
        return Fail(kFail, std::string("unknown provider option ") + keys[i]);
      }
    }
    return nullptr;
  }
  static OrtStatus* SessionOptionsAppendExecutionProvider_CUDA_V2(SessionOptions* options, const CudaOptions* cuda) {
    options->device = cuda->device;
    return nullptr;
  }
  static void ReleaseCUDAProviderOptions(CudaOptions* options) { handles.Release("CUDA options", options); }

  static OrtStatus* CreateSession(const Env*, const char*, const SessionOptions* options, OrtSession** out) {
    auto weight = options->initializers.find("w");
    if (weight == options->initializers.end()) return Fail(kInvalidGraph, "the emulated models need a weight w");
    for (const auto& [name, value] : options->initializers) {
      handles.Expect("value", value);
      if (value->memory.Device() != options->device) {
        Abort("weight %s is on %d, the session runs on %d", name.c_str(), value->memory.Device(), options->device);
      }
    }
    if (!Work(options->ended)) return Fail(kFail, "told to end");
    *out = handles.Made("session", new OrtSession{options->device, weight->second});
    return nullptr;
  }
  static OrtStatus* CreateSessionFromArray(const Env* env, const void*, size_t, const SessionOptions* options,
                                           OrtSession** out) {
    return CreateSession(env, "", options, out);
  }
  static void ReleaseSession(OrtSession* session) {
    float weight[kElements];
    handles.Expect("value", session->weight);
    ReadValue(*session->weight, weight);  // its memory must be there to the last
    handles.Release("session", session);
  }
  static OrtStatus* SessionGetInputCount(const OrtSession*, size_t* out) {
    *out = 1;
    return nullptr;
  }
  static OrtStatus* SessionGetOutputCount(const OrtSession*, size_t* out) {
    *out = 1;
    return nullptr;
  }
  static OrtStatus* SessionGetOverridableInitializerCount(const OrtSession*, size_t* out) {
    *out = 0;
    return nullptr;
  }
  static OrtStatus* SessionGetInputTypeInfo(const OrtSession*, size_t, TypeInfo** out) {
    *out = handles.Made("type info", new TypeInfo{{kFloat, {kElements}}});
    return nullptr;
  }
  static OrtStatus* SessionGetOutputTypeInfo(const OrtSession* session, size_t index, TypeInfo** out) {
    return SessionGetInputTypeInfo(session, index, out);
  }
  static OrtStatus* SessionGetInputName(const OrtSession*, size_t, Allocator*, char** out) {
    *out = Copied("x");
    return nullptr;
  }
  static OrtStatus* SessionGetOutputName(const OrtSession*, size_t, Allocator*, char** out) {
    *out = Copied("y");
    return nullptr;
  }

  static OrtStatus* CreateRunOptions(RunOptions** out) {
    *out = handles.Made("run options", new RunOptions);
    return nullptr;
  }
  static OrtStatus* RunOptionsSetTerminate(RunOptions* options) {
    handles.Expect("run options", options);
    options->ended = true;
    return nullptr;
  }
  static void ReleaseRunOptions(RunOptions* options) { handles.Release("run options", options); }

  static OrtStatus* CreateIoBinding(OrtSession* session, IoBinding** out) {
    handles.Expect("session", session);
    *out = handles.Made("binding", new IoBinding{session, nullptr, nullptr, {}, false, nullptr});
    return nullptr;
  }
  static OrtStatus* BindInput(IoBinding* binding, const char*, const OrtValue* value) {
    if (value->memory.Device() >= 0 && value->memory.Device() != binding->session->device) {
      Abort("an input is on %d, the session runs on %d", value->memory.Device(), binding->session->device);
    }
    binding->input = value;
    return nullptr;
  }
  static OrtStatus* BindOutput(IoBinding* binding, const char*, const OrtValue* value) {
    if (value->memory.Device() >= 0 && value->memory.Device() != binding->session->device) {
      Abort("an output is on %d, the session runs on %d", value->memory.Device(), binding->session->device);
    }
    binding->output = value;
    return nullptr;
  }
  static OrtStatus* BindOutputToDevice(IoBinding* binding, const char*, const MemoryInfo* place) {
    binding->place = *place;
    return nullptr;
  }
  static OrtStatus* SynchronizeBoundInputs(IoBinding* binding) {
    binding->synchronized = true;
    return nullptr;
  }
  static OrtStatus* SynchronizeBoundOutputs(IoBinding* binding) {
    binding->synchronized = true;
    return nullptr;
  }
  static OrtStatus* RunWithBinding(OrtSession* session, const RunOptions* options, const IoBinding* bound) {
    auto* binding = const_cast<IoBinding*>(bound);
    handles.Expect("session", session);
    if (session->device >= 0 && !binding->synchronized) Abort("inputs were not synchronized");
    if (binding->input == nullptr) return Fail(kInvalidArgument, "Missing Input: x");
    float x[kElements], w[kElements];
    ReadValue(*binding->input, x);
    ReadValue(*session->weight, w);
    for (size_t i = 0; i < kElements; ++i) x[i] += w[i];
    if (!Work(options->ended)) return Fail(kFail, "told to end");
    binding->synchronized = false;  // the outputs are not there yet
    const MemoryInfo place = binding->output != nullptr ? binding->output->memory : binding->place;
    auto* result = new OrtValue{place, {kFloat, {kElements}}, nullptr, kBytes, binding->output == nullptr};
    if (binding->output != nullptr) {
      result->data = binding->output->data;
    } else if (place.Device() < 0) {
      result->data = malloc(kBytes);
    } else {
      result->data = reinterpret_cast<void*>(Allocate(place.Device(), kBytes));
    }
    binding->result = handles.Made("value", result);
    WriteValue(*result, x);
    return nullptr;
  }
  static OrtStatus* GetBoundOutputValues(const IoBinding* binding, Allocator*, OrtValue*** out, size_t* count) {
    if (binding->session->device >= 0 && !binding->synchronized) Abort("outputs were not synchronized");
    *out = static_cast<OrtValue**>(malloc(sizeof(OrtValue*)));
    **out = binding->result;
    *count = 1;
    return nullptr;
  }
  static void ReleaseIoBinding(IoBinding* binding) { handles.Release("binding", binding); }
};

// ---- the table
// --------------------------------------------------------------------------------------------------------

[[noreturn]] void Missing() { Abort("a function is called that is not emulated"); }

template <auto function>
struct Counted;
template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Counted<function> {
  static Result Call(Arguments... arguments) {
    Handles::Call call(&handles);
    return function(arguments...);
  }
};

// The address of a function that is emulated, and Missing for one that is not.
#define X(name, index, since, ret, ...)                                                   \
  template <class E, class = void>                                                        \
  struct Find_##name {                                                                    \
    static void* Address() { return reinterpret_cast<void*>(&Missing); }                  \
  };                                                                                      \
  template <class E>                                                                      \
  struct Find_##name<E, std::void_t<decltype(&E::name)>> {                                \
    static constexpr ret (*kFunction)(__VA_ARGS__) = &E::name;                            \
    static void* Address() { return reinterpret_cast<void*>(&Counted<kFunction>::Call); } \
  };
FST_ORT_SLICE(X)
#undef X

const Api* GetApi(uint32_t version) {
  static void* table[512];
  static const bool filled = [] {
    for (void*& entry : table) entry = reinterpret_cast<void*>(&Missing);
#define X(name, index, since, ret, ...) table[index] = Find_##name<Emulated>::Address();
    FST_ORT_SLICE(X)
#undef X
    return true;
  }();
  return filled && version <= 23 ? reinterpret_cast<const Api*>(table) : nullptr;
}

}  // namespace
}  // namespace fst::emulated_ort

extern "C" __attribute__((visibility("default"))) const fst::ort::ApiBase* OrtGetApiBase() {
  static const fst::ort::ApiBase base{fst::emulated_ort::GetApi, [] { return "1.23.0"; }};
  return &base;
}

// Node's way to load a library: as an addon without exports.
extern "C" __attribute__((visibility("default"))) void* napi_register_module_v1(void*, void* exports) {
  return exports;
}
