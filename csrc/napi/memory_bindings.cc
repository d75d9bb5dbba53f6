// Devices and tensor memory for JavaScript.
#include <cstring>
#include <memory>
#include <new>

#include "device/devices.h"
#include "device/host_memory.h"
#include "device/strided_copy.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "reader/gds/cufile_api.h"

namespace fst {
namespace {

size_t SizeArgument(const Napi::Value& value) { return static_cast<size_t>(value.As<Napi::Number>().Int64Value()); }

// [offset, offset + length) lies in the allocation. TypeScript has checked: this keeps objects that were tampered with
// from reaching memory.
Status CheckRange(const DeviceBuffer& buffer, size_t offset, size_t length) {
  if (offset <= buffer.size() && length <= buffer.size() - offset) return Status::Ok();
  return Status(Code::INVALID_ARGUMENT,
                Format("%zu bytes at %zu are not in an allocation of %zu bytes", length, offset, buffer.size()));
}

// openDevice(name, unified): Promise<External>
Napi::Value OpenDeviceJs(const Napi::CallbackInfo& info) {
  auto device = std::make_shared<std::shared_ptr<Device>>();
  std::string name = info[0].As<Napi::String>();
  bool unified = info[1].ToBoolean();
  return AsyncWork::Run(
      info.Env(), [=] { return OpenDevice(name, unified, device.get()); },
      [device](Napi::Env env) { return ToExternal<Device>(env, *device); });
}

// allocate(device, bytes): Promise<External>
Napi::Value AllocateJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  size_t bytes = SizeArgument(info[1]);
  auto buffer = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      info.Env(),
      [=] {
        FST_RETURN_IF_ERROR(device->CheckAvailable(bytes));
        return device->Allocate(bytes, buffer.get());
      },
      [buffer](Napi::Env env) { return ToExternal<DeviceBuffer>(env, std::move(*buffer)); });
}

// deviceInfo(device): {model, busId, library, computeCapability, driverVersion, integrated, numaNode}
Napi::Value DeviceInfoJs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Device& device = *FromExternal<Device>(info[0]);
  DeviceInfo found = device.info();
  Napi::Object result = Napi::Object::New(env);
  result["model"] = Napi::String::New(env, found.model);
  result["busId"] = Napi::String::New(env, found.bus_id);
  result["library"] = Napi::String::New(env, found.library);
  result["computeCapability"] = Napi::String::New(env, Format("%d.%d", found.compute_major, found.compute_minor));
  result["driverVersion"] = Napi::Number::New(env, found.driver_version);
  result["integrated"] = Napi::Boolean::New(env, found.integrated);
  result["numaNode"] = Napi::Number::New(env, device.numa_node());
  return result;
}

// checkAvailable(device, bytes): Promise<void>, rejects where so much can surely not be had
Napi::Value CheckRoomJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  auto bytes = static_cast<uint64_t>(info[1].As<Napi::Number>().DoubleValue());
  return AsyncWork::Run(
      info.Env(), [=] { return device->CheckAvailable(bytes); }, nullptr);
}

// pointerOf(allocation): bigint
Napi::Value PointerOf(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), FromExternal<DeviceBuffer>(info[0])->address());
}

// release(allocation): the handle holds nothing from here on.
Napi::Value ReleaseJs(const Napi::CallbackInfo& info) {
  ReleaseExternal<DeviceBuffer>(info[0]);
  return info.Env().Undefined();
}

// arrayBufferOf(allocation, offset, length): an ArrayBuffer over host memory that holds a reference of its own.
Napi::Value ArrayBufferOf(const Napi::CallbackInfo& info) {
  const auto& buffer = FromExternal<DeviceBuffer>(info[0]);
  const size_t offset = SizeArgument(info[1]), length = SizeArgument(info[2]);
  Status inside = CheckRange(*buffer, offset, length);
  ThrowIfError(info.Env(), inside);
  auto* reference = new std::shared_ptr<DeviceBuffer>(buffer);
  auto* address = reinterpret_cast<char*>(buffer->address()) + offset;
  napi_value result;
  napi_status status = napi_create_external_arraybuffer(
      info.Env(), address, length,
      [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<DeviceBuffer>*>(hint); }, reference,
      &result);
  if (status != napi_ok) {
    delete reference;
    throw Napi::Error::New(info.Env(), "this runtime allows no ArrayBuffer over foreign memory: use toHost()");
  }
  return Napi::Value(info.Env(), result);
}

// readAllocation(allocation, offset, length): Promise<ArrayBuffer>, a copy.
Napi::Value ReadAllocation(const Napi::CallbackInfo& info) {
  auto buffer = FromExternal<DeviceBuffer>(info[0]);
  size_t offset = SizeArgument(info[1]), length = SizeArgument(info[2]);
  Status inside = CheckRange(*buffer, offset, length);
  if (!inside.ok()) return Rejected(info.Env(), inside);
  struct Copy {
    void* memory = nullptr;
    size_t length = 0;
    ~Copy() {
      if (memory != nullptr) FreeHost(memory, length);
    }
  };
  auto copy = std::make_shared<Copy>();
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        copy->length = length > 0 ? length : 1;
        FST_RETURN_IF_ERROR(AllocateHost(copy->length, &copy->memory));
        return length > 0 ? buffer->device().Read(*buffer, offset, length, copy->memory) : Status::Ok();
      },
      [copy, length](Napi::Env env) -> Napi::Value {
        auto* owner = new std::shared_ptr<Copy>(copy);
        napi_value result;
        napi_status status = napi_create_external_arraybuffer(
            env, copy->memory, length,
            [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<Copy>*>(hint); }, owner, &result);
        if (status == napi_ok) return Napi::Value(env, result);
        delete owner;
        if (env.IsExceptionPending()) env.GetAndClearPendingException();
        void* data = nullptr;
        if (napi_create_arraybuffer(env, length, &data, &result) != napi_ok) throw Napi::Error::New(env);
        memcpy(data, copy->memory, length);
        return Napi::Value(env, result);
      });
}

// writeAllocation(allocation, offset, bytes: Uint8Array): Promise<void>. The bytes are copied before this returns: a
// promise cannot keep JavaScript from resizing or transferring their buffer. For pieces, see src/device/memory.ts.
Napi::Value WriteAllocation(const Napi::CallbackInfo& info) {
  auto buffer = FromExternal<DeviceBuffer>(info[0]);
  size_t offset = SizeArgument(info[1]);
  auto bytes = info[2].As<Napi::Uint8Array>();
  size_t length = bytes.ByteLength();
  Status inside = CheckRange(*buffer, offset, length);
  if (!inside.ok()) return Rejected(info.Env(), inside);
  std::shared_ptr<char> copy(new (std::nothrow) char[length], std::default_delete<char[]>());
  if (copy == nullptr)
    return Rejected(info.Env(), Status(Code::OUT_OF_HOST_MEMORY, Format("cannot allocate %zu bytes to write", length)));
  if (length > 0) memcpy(copy.get(), bytes.Data(), length);
  return AsyncWork::Run(
      info.Env(), [=] { return buffer->device().Write(*buffer, offset, length, copy.get()); }, nullptr);
}

// copyAllocation(source, destination, numbers: Float64Array): Promise<void>. `numbers`: [run, sourceOffset,
// destinationOffset, then for each dimension, outermost first, count, sourceStride, destinationStride], in bytes.
Napi::Value CopyAllocation(const Napi::CallbackInfo& info) {
  auto source = FromExternal<DeviceBuffer>(info[0]), destination = FromExternal<DeviceBuffer>(info[1]);
  auto numbers = info[2].As<Napi::Float64Array>();
  StridedCopy copy;
  copy.run = static_cast<uint64_t>(numbers[0]);
  copy.source_offset = static_cast<uint64_t>(numbers[1]);
  copy.destination_offset = static_cast<uint64_t>(numbers[2]);
  for (size_t i = 3; i + 2 < numbers.ElementLength(); i += 3) {
    copy.dims.push_back({static_cast<uint64_t>(numbers[i]), static_cast<int64_t>(numbers[i + 1]),
                         static_cast<int64_t>(numbers[i + 2])});
  }
  return AsyncWork::Run(
      info.Env(), [=] { return CopyStrided(copy, *source, *destination); }, nullptr);
}

// probeCufile(): Promise<{library, version}>, rejected with COPIER_UNAVAILABLE. Opens no driver.
Napi::Value ProbeCufile(const Napi::CallbackInfo& info) {
  struct Found {
    std::string library, version;
  };
  auto found = std::make_shared<Found>();
  return AsyncWork::Run(
      info.Env(),
      [found]() -> Status {
        const cufile::CufileApi* api = nullptr;
        FST_RETURN_IF_ERROR(cufile::LoadCufile(&api));
        *found = {api->library, api->Version()};
        return Status::Ok();
      },
      [found](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result["library"] = Napi::String::New(env, found->library);
        result["version"] = Napi::String::New(env, found->version);
        return result;
      });
}

// setFakeDevices({copyDelayUs, failCopy, memoryLimit} | null)
Napi::Value SetFakeDevices(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) {
    UseFakeDevices(nullptr);
    return info.Env().Undefined();
  }
  auto object = info[0].As<Napi::Object>();
  FakeDevice::Options options;
  auto number = [&](const char* name, double otherwise) {
    Napi::Value value = object.Get(name);
    return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : otherwise;
  };
  options.copy_delay_us = static_cast<int>(number("copyDelayUs", options.copy_delay_us));
  options.fail_copy = static_cast<int>(number("failCopy", 0));
  options.memory_limit = static_cast<uint64_t>(number("memoryLimit", 0));
  UseFakeDevices(&options);
  return info.Env().Undefined();
}

}  // namespace

void ExportMemory(Napi::Env env, Napi::Object exports) {
  Export<OpenDeviceJs>(env, exports, "openDevice");
  Export<DeviceInfoJs>(env, exports, "deviceInfo");
  Export<AllocateJs>(env, exports, "allocate");
  Export<CheckRoomJs>(env, exports, "checkAvailable");
  Export<PointerOf>(env, exports, "pointerOf");
  Export<ReleaseJs>(env, exports, "release");
  Export<ArrayBufferOf>(env, exports, "arrayBufferOf");
  Export<ReadAllocation>(env, exports, "readAllocation");
  Export<WriteAllocation>(env, exports, "writeAllocation");
  Export<CopyAllocation>(env, exports, "copyAllocation");
  Export<ProbeCufile>(env, exports, "probeCufile");
  Export<SetFakeDevices>(env, exports, "setFakeDevices");
}

}  // namespace fst
