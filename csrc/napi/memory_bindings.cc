// Devices and allocations for JavaScript.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

#include "base/fd.h"
#include "base/io_error.h"
#include "convert/float_convert.h"
#include "device/devices.h"
#include "device/host_memory.h"
#include "device/save_bytes.h"
#include "device/strided_copy.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "reader/gds/cufile_api.h"
#include "transfer/memory_budget.h"

namespace fst {
namespace {

// openDevice(name, unified, near): Promise<External>. See OpenDevice.
Napi::Value OpenDeviceJs(const Napi::CallbackInfo& info) {
  auto device = std::make_shared<std::shared_ptr<Device>>();
  std::string name = info[0].As<Napi::String>();
  bool unified = info[1].ToBoolean(), near = info[2].ToBoolean();
  return AsyncWork::Run(
      info.Env(), [=] { return OpenDevice(name, unified, device.get(), near); },
      [device](Napi::Env env) { return ToExternal<Device>(env, *device); });
}

// allocate(device, bytes): Promise<External>
Napi::Value AllocateJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  size_t bytes = SizeOf(info[1]);
  auto buffer = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      info.Env(),
      [=] {
        FST_RETURN_IF_ERROR(device->CheckAvailable(bytes));
        return device->Allocate(bytes, buffer.get());
      },
      [buffer](Napi::Env env) { return AllocationToJs(env, std::move(*buffer)); });
}

// allocateWithin(device, bytes, budget): Promise<External | null>; null where the budget has no room for it now
Napi::Value AllocateWithin(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  size_t bytes = SizeOf(info[1]);
  auto budget = FromExternal<MemoryBudget>(info[2]);
  auto buffer = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      info.Env(),
      [=] {
        auto grant = budget->TryTake(bytes, nullptr);
        if (grant == nullptr) return Status::Ok();
        FST_RETURN_IF_ERROR(device->CheckAvailable(bytes));
        FST_RETURN_IF_ERROR(device->Allocate(bytes, buffer.get()));
        *buffer = MemoryBudget::Hold(std::move(*buffer), std::move(grant));
        return Status::Ok();
      },
      [buffer](Napi::Env env) -> Napi::Value {
        if (*buffer == nullptr) return env.Null();
        return AllocationToJs(env, std::move(*buffer));
      });
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

// checkAvailable(device, bytes): Promise<void>, rejects early if the allocation cannot succeed
Napi::Value CheckAvailableJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  auto bytes = static_cast<uint64_t>(info[1].As<Napi::Number>().DoubleValue());
  return AsyncWork::Run(
      info.Env(), [=] { return device->CheckAvailable(bytes); }, nullptr);
}

// totalMemory(device): Promise<number>, see Device::TotalMemory
Napi::Value TotalMemoryJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  auto bytes = std::make_shared<uint64_t>(0);
  return AsyncWork::Run(
      info.Env(), [=] { return device->TotalMemory(bytes.get()); },
      [bytes](Napi::Env env) { return Napi::Number::New(env, static_cast<double>(*bytes)); });
}

// pointerOf(allocation): bigint
Napi::Value PointerOf(const Napi::CallbackInfo& info) {
  return Napi::BigInt::New(info.Env(), FromExternal<DeviceBuffer>(info[0])->address());
}

// release(allocation): drops the handle's reference; may be called again.
void ReleaseJs(const Napi::CallbackInfo& info) { ReleaseExternal<DeviceBuffer>(info[0]); }

// arrayBufferOf(allocation, offset, length): an ArrayBuffer over host memory, with its own reference.
Napi::Value ArrayBufferOf(const Napi::CallbackInfo& info) {
  const auto& [buffer, memory] = HeldBy<DeviceBuffer>(info[0]);
  const size_t offset = SizeOf(info[1]), length = SizeOf(info[2]);
  ThrowIfError(info.Env(), CheckRange(*buffer, offset, length));
  char* data = reinterpret_cast<char*>(buffer->address()) + offset;
  Napi::Value over = ArrayBufferOver(info.Env(), data, length, buffer, memory);
  if (!over.IsEmpty()) return over;
  throw Napi::Error::New(info.Env(), "this runtime allows no ArrayBuffer over foreign memory: use toHost()");
}

// readAllocation(allocation, offset, length): Promise<ArrayBuffer>, a copy.
Napi::Value ReadAllocation(const Napi::CallbackInfo& info) {
  auto buffer = FromExternal<DeviceBuffer>(info[0]);
  size_t offset = SizeOf(info[1]), length = SizeOf(info[2]);
  auto copy = std::make_shared<std::shared_ptr<void>>();
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        FST_RETURN_IF_ERROR(CheckRange(*buffer, offset, length));
        const size_t size = length > 0 ? length : 1;
        void* memory = nullptr;
        FST_RETURN_IF_ERROR(AllocateHost(size, &memory));
        copy->reset(memory, [size](void* dead) { FreeHost(dead, size); });
        return length > 0 ? buffer->device().Read(*buffer, offset, length, memory) : Status::Ok();
      },
      [copy, length](Napi::Env env) { return ArrayBufferOverOrCopy(env, copy->get(), length, FreedElsewhere(*copy)); });
}

// saveAllocation(allocation, offset, length, fd, position, path, writeBack): Promise<void>, writes bytes of an
// allocation at `position` of an open file, whose path is for messages. By a descriptor of its own: where the
// environment ends meanwhile, the caller's is closed, and its number may soon be another file's. IO_ERROR, and as
// Device::Read.
Napi::Value SaveAllocation(const Napi::CallbackInfo& info) {
  auto buffer = FromExternal<DeviceBuffer>(info[0]);
  const size_t offset = SizeOf(info[1]), length = SizeOf(info[2]);
  const int fd = info[3].As<Napi::Number>().Int32Value();
  const auto position = static_cast<off_t>(info[4].As<Napi::Number>().Int64Value());
  std::string path = info[5].As<Napi::String>();
  const bool write_back = info[6].ToBoolean();
  auto file = std::make_shared<UniqueFd>(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!file->valid()) Throw(info.Env(), IoError(path, "cannot write " + path, errno));
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        FST_RETURN_IF_ERROR(CheckRange(*buffer, offset, length));
        return SaveBytes(*buffer, offset, length, {file->get(), position, path, write_back});
      },
      nullptr);
}

// writeAllocation(allocation, offset, bytes: Uint8Array): Promise<void>. The bytes are copied before this returns: a
// promise cannot keep JavaScript from resizing or transferring their buffer. For pieces, see src/device/allocation.ts.
Napi::Value WriteAllocation(const Napi::CallbackInfo& info) {
  auto buffer = FromExternal<DeviceBuffer>(info[0]);
  size_t offset = SizeOf(info[1]);
  auto bytes = info[2].As<Napi::Uint8Array>();
  size_t length = bytes.ByteLength();
  std::shared_ptr<char[]> copy(new (std::nothrow) char[length]);
  if (copy != nullptr && length > 0) memcpy(copy.get(), bytes.Data(), length);
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        if (copy == nullptr)
          return Status(Code::OUT_OF_HOST_MEMORY, Format("cannot allocate %zu bytes to write", length));
        FST_RETURN_IF_ERROR(CheckRange(*buffer, offset, length));
        return buffer->device().Write(*buffer, offset, length, copy.get());
      },
      nullptr);
}

// copyAllocation(source, destination, runs: Float64Array): Promise<void>. `runs`, in bytes: [run, sourceOffset,
// destinationOffset, then for each dimension, outermost first, count, sourceStride, destinationStride].
Napi::Value CopyAllocation(const Napi::CallbackInfo& info) {
  auto source = FromExternal<DeviceBuffer>(info[0]), destination = FromExternal<DeviceBuffer>(info[1]);
  auto runs = info[2].As<Napi::Float64Array>();
  StridedCopy copy;
  copy.run = static_cast<uint64_t>(runs[0]);
  copy.source_offset = static_cast<uint64_t>(runs[1]);
  copy.destination_offset = static_cast<uint64_t>(runs[2]);
  for (size_t i = 3; i + 2 < runs.ElementLength(); i += 3) {
    copy.dims.push_back(
        {static_cast<uint64_t>(runs[i]), static_cast<int64_t>(runs[i + 1]), static_cast<int64_t>(runs[i + 2])});
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
      [found](Napi::Env env) {
        return TextsToJs(env, {{"library", found->library}, {"version", found->version}});
      });
}

// convertFloats(allocation, offset, count, from, to: indices of dtypes): Promise<External>. UNSUPPORTED_DTYPE, and as
// ConvertOnHost.
Napi::Value ConvertFloatsJs(const Napi::CallbackInfo& info) {
  auto source = FromExternal<DeviceBuffer>(info[0]);
  const size_t from_index = SizeOf(info[3]), to_index = SizeOf(info[4]);
  const bool known = from_index < kDTypeCount && to_index < kDTypeCount;
  const DType from = static_cast<DType>(known ? from_index : 0), to = static_cast<DType>(known ? to_index : 0);
  const size_t count = SizeOf(info[2]);
  return ConvertOnHost(
      info.Env(), {std::move(source), SizeOf(info[1]), count, BytesOf(from), BytesOf(to)},
      CanConvertFloats(from, to) ? Status::Ok() : Status(Code::UNSUPPORTED_DTYPE, "these dtypes have no conversion"),
      [=](const void* elements, void* destination) {
        ConvertFloats(from, to, elements, destination, count);
        return Status::Ok();
      });
}

// externalMemory(): bytes outside of its heap that V8 knows of in this environment, typed arrays included; for tests
Napi::Value ExternalMemoryJs(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(ExternalBytes(info.Env())));
}

// setFakeDevices(options: {copyDelayUs, failCopy, memoryLimit} | null), for tests
void SetFakeDevices(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) return UseFakeDevices(nullptr);
  auto object = info[0].As<Napi::Object>();
  FakeDevice::Options options;
  options.copy_delay_us = static_cast<int>(NumberOr(object, "copyDelayUs", options.copy_delay_us));
  options.fail_copy = static_cast<int>(NumberOr(object, "failCopy", 0));
  options.memory_limit = static_cast<uint64_t>(NumberOr(object, "memoryLimit", 0));
  UseFakeDevices(&options);
}

}  // namespace

Status CheckRange(const DeviceBuffer& buffer, size_t offset, size_t length) {
  if (offset <= buffer.size() && length <= buffer.size() - offset) return Status::Ok();
  return Status(Code::INVALID_ARGUMENT,
                Format("%zu bytes at %zu are not in an allocation of %zu bytes", length, offset, buffer.size()));
}

Napi::Value AllocationToJs(Napi::Env env, std::shared_ptr<DeviceBuffer> buffer) {
  auto memory = ExternalMemory::Count(env, buffer->size());
  return ToExternal<DeviceBuffer>(env, std::move(buffer), std::move(memory));
}

Napi::Value ConvertOnHost(Napi::Env env, const HostConversion& conversion, const Status& allowed,
                          const std::function<Status(const void* source, void* destination)>& convert) {
  auto result = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      env,
      [=]() -> Status {
        const auto& [source, offset, count, bytes_from, bytes_to] = conversion;
        FST_RETURN_IF_ERROR(allowed);
        Device& device = source->device();
        if (!device.host_accessible()) {
          return Status(Code::DEVICE_UNAVAILABLE,
                        Format("elements are converted in host memory, these are on %s", device.name().c_str()));
        }
        // Counts and not bytes are compared: a product could overflow.
        if (count > source->size()) return Status(Code::INVALID_ARGUMENT, "more elements than the allocation has");
        FST_RETURN_IF_ERROR(CheckRange(*source, offset, count * bytes_from));
        FST_RETURN_IF_ERROR(device.CheckAvailable(count * bytes_to));
        FST_RETURN_IF_ERROR(device.Allocate(count * bytes_to, result.get()));
        return convert(reinterpret_cast<const char*>(source->address()) + offset,
                       reinterpret_cast<void*>((*result)->address()));
      },
      [result](Napi::Env env) { return AllocationToJs(env, std::move(*result)); });
}

void ExportMemory(Napi::Env env, Napi::Object exports) {
  Export<OpenDeviceJs>(env, exports, "openDevice");
  Export<DeviceInfoJs>(env, exports, "deviceInfo");
  Export<AllocateJs>(env, exports, "allocate");
  Export<AllocateWithin>(env, exports, "allocateWithin");
  Export<CheckAvailableJs>(env, exports, "checkAvailable");
  Export<TotalMemoryJs>(env, exports, "totalMemory");
  Export<PointerOf>(env, exports, "pointerOf");
  Export<ReleaseJs>(env, exports, "release");
  Export<ArrayBufferOf>(env, exports, "arrayBufferOf");
  Export<ReadAllocation>(env, exports, "readAllocation");
  Export<SaveAllocation>(env, exports, "saveAllocation");
  Export<WriteAllocation>(env, exports, "writeAllocation");
  Export<CopyAllocation>(env, exports, "copyAllocation");
  Export<ConvertFloatsJs>(env, exports, "convertFloats");
  Export<ProbeCufile>(env, exports, "probeCufile");
  Export<ExternalMemoryJs>(env, exports, "externalMemory");
  Export<SetFakeDevices>(env, exports, "setFakeDevices");
}

}  // namespace fst
