// The driver's functions for initialisation, errors, devices and contexts; and modules, which the emulator does not
// have.
#include <cstdio>
#include <cstring>

#include "emulators/cuda/emulator.h"

namespace fst::cuda {

using emu::Call;
using emu::Context;

namespace {

Context* ContextOf(emu::Emulator& emulator, CUdevice device) {
  return device >= 0 && device < emulator.device_count ? &emulator.devices[device].context : nullptr;
}

CUresult NoSuchDevice(Call& call, CUdevice device) {
  return call.Refuse(kInvalidDevice, "device %d of %d", device, call.emulator.device_count);
}

// CUDA_ERROR_..., text; as cuda.h of CUDA 13 names them
struct ErrorText {
  CUresult error;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device is busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "cannot set while device is active in this process"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorText* Find(CUresult error) {
  for (const ErrorText& entry : kErrors) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

}  // namespace

// Names are looked up by code that handles an error, so these two are neither counted nor made to fail.
CUresult cuGetErrorName(CUresult error, const char** text) {
  const ErrorText* entry = Find(error);
  *text = entry ? entry->name : nullptr;
  return entry ? kSuccess : kInvalidValue;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  const ErrorText* entry = Find(error);
  *text = entry ? entry->text : nullptr;
  return entry ? kSuccess : kInvalidValue;
}

CUresult cuInit(unsigned flags) {
  Call call("cuInit", Call::kNothing);
  if (call.error != kSuccess) return call.error;
  if (flags != 0) return call.Refuse(kInvalidValue, "flags must be 0");
  if (call.emulator.device_count == 0) return call.Refuse(kNoDevice, "there are no devices");
  call.emulator.initialised = true;
  call.emulator.DeinitialiseAtExit();
  return kSuccess;
}

CUresult cuDriverGetVersion(int* version) {
  Call call("cuDriverGetVersion", Call::kNothing);
  if (call.error != kSuccess) return call.error;
  *version = 13000;
  return kSuccess;
}

CUresult cuDeviceGetCount(int* count) {
  Call call("cuDeviceGetCount", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  *count = call.emulator.device_count;
  return kSuccess;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  Call call("cuDeviceGet", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (ContextOf(call.emulator, ordinal) == nullptr) return NoSuchDevice(call, ordinal);
  *device = ordinal;
  return kSuccess;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  Call call("cuDeviceGetName", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (ContextOf(call.emulator, device) == nullptr) return NoSuchDevice(call, device);
  if (name == nullptr || length <= 0) return call.Refuse(kInvalidValue, "no room for the name");
  snprintf(name, static_cast<size_t>(length), "Emulated GPU %d", device);
  return kSuccess;
}

CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  Call call("cuDeviceGetAttribute", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (ContextOf(call.emulator, device) == nullptr) return NoSuchDevice(call, device);
  const auto& attributes = call.emulator.devices[device].attributes;
  auto found = attributes.find(attribute);
  if (found == attributes.end()) return call.Refuse(kInvalidValue, "attribute %d is not emulated", attribute);
  *value = found->second;
  return kSuccess;
}

CUresult cuDeviceGetPCIBusId(char* id, int length, CUdevice device) {
  Call call("cuDeviceGetPCIBusId", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (ContextOf(call.emulator, device) == nullptr) return NoSuchDevice(call, device);
  if (id == nullptr || length < 13) return call.Refuse(kInvalidValue, "%d bytes for the id, 13 are needed", length);
  snprintf(id, static_cast<size_t>(length), "0000:%02X:00.0", 0xE1 + device);
  return kSuccess;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  Call call("cuDeviceTotalMem_v2", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (ContextOf(call.emulator, device) == nullptr) return NoSuchDevice(call, device);
  *bytes = call.emulator.devices[device].limit;
  return kSuccess;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  Call call("cuDevicePrimaryCtxRetain", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  Context* own = ContextOf(call.emulator, device);
  if (own == nullptr) return NoSuchDevice(call, device);
  if (own->sticky != kSuccess) return call.Refuse(own->sticky, "the context of device %d is lost", device);
  ++own->retained;
  *context = reinterpret_cast<CUcontext>(own);
  return kSuccess;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Call call("cuDevicePrimaryCtxRelease_v2", Call::kInitialised, Call::kRelease);
  if (call.error != kSuccess) return call.error;
  Context* own = ContextOf(call.emulator, device);
  if (own == nullptr) return NoSuchDevice(call, device);
  if (own->retained == 0) return call.Misuse(kInvalidContext, "of device %d, whose context is not retained", device);
  if (--own->retained > 0) return own->sticky != kSuccess ? own->sticky : call.late;
  std::string living = call.emulator.Living(own);
  if (!living.empty() && own->sticky == kSuccess) {
    CUresult refused =
        call.Misuse(kSuccess, "ends the context of device %d, which still has %s", device, living.c_str());
    if (refused != kSuccess) return refused;
  }
  call.emulator.DropContext(call.lock, own);
  return own->sticky != kSuccess ? own->sticky : call.late;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  Call call("cuCtxSetCurrent", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  if (context == nullptr) {
    emu::SetCurrentContext(nullptr);
    return kSuccess;
  }
  for (emu::Device& device : call.emulator.devices) {
    if (reinterpret_cast<CUcontext>(&device.context) != context) continue;
    if (device.context.retained == 0) return call.Refuse(kInvalidContext, "the context is not retained");
    emu::SetCurrentContext(&device.context);
    if (device.context.sticky == kSuccess) return kSuccess;
    return call.Refuse(device.context.sticky, "the context of device %d is lost", device.context.device);
  }
  return call.Misuse(kInvalidContext, "with %p, which is no context", static_cast<void*>(context));
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  Call call("cuCtxGetCurrent", Call::kInitialised);
  if (call.error != kSuccess) return call.error;
  *context = reinterpret_cast<CUcontext>(emu::CurrentContext());
  return kSuccess;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  Call call("cuCtxGetDevice", Call::kContext);
  if (call.error != kSuccess) return call.error;
  *device = call.context->device;
  return kSuccess;
}

CUresult cuCtxSynchronize() {
  Call call("cuCtxSynchronize", Call::kContext);
  if (call.error != kSuccess) return call.error;
  call.emulator.WaitIdle(call.lock, call.context);
  return call.context->sticky;
}

CUresult cuModuleLoadData(CUmodule*, const void*) {
  Call call("cuModuleLoadData", Call::kContext);
  return call.error != kSuccess ? call.error : call.Refuse(kNotSupported, "the emulator runs no GPU code");
}

CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*) {
  Call call("cuModuleGetFunction", Call::kContext);
  return call.error != kSuccess ? call.error : call.Refuse(kNotSupported, "the emulator runs no GPU code");
}

CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                        void**, void**) {
  Call call("cuLaunchKernel", Call::kContext);
  return call.error != kSuccess ? call.error : call.Refuse(kNotSupported, "the emulator runs no GPU code");
}

}  // namespace fst::cuda
