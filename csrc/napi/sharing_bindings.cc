// Memory that other threads of JavaScript get, or other processes.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/fd_socket.h"
#include "base/random.h"
#include "device/cuda_sharing.h"
#include "device/devices.h"
#include "device/shared_buffers.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/header_values.h"
#include "safetensors/header.h"
#include "safetensors/packed_header.h"

namespace fst {

template <>
inline constexpr char kExternalName<ExportedMemory>[] = "an export of memory";
template <>
inline constexpr char kExternalName<FdServer>[] = "a server of a descriptor";

namespace {

// shareAllocation(allocation, offset, length): string, a token for takeShared. See ShareBuffer.
Napi::Value ShareAllocationJs(const Napi::CallbackInfo& info) {
  const std::shared_ptr<DeviceBuffer>& buffer = FromExternal<DeviceBuffer>(info[0]);
  const size_t offset = SizeOf(info[1]), length = SizeOf(info[2]);
  ThrowIfError(info.Env(), CheckRange(*buffer, offset, length));
  return Napi::String::New(info.Env(), ShareBuffer({buffer, offset, length}));
}

// takeShared(tokens: string[], lengths: Float64Array): {allocations: External[], devices: string[], sizes: number[],
// parts: Float64Array}, all or none. `parts`, by token: the index of its allocation, and where it begins in that.
Napi::Value TakeSharedJs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto list = info[0].As<Napi::Array>();
  auto sizes_said = info[1].As<Napi::Float64Array>();
  std::vector<std::string> tokens;
  std::vector<size_t> lengths;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    Napi::HandleScope scope(env);
    tokens.emplace_back(list.Get(i).As<Napi::String>());
    lengths.push_back(static_cast<size_t>(sizes_said[i]));
  }
  std::vector<SharedPart> taken;
  ThrowIfError(env, TakeShared(tokens, lengths, &taken));
  // One handle for each buffer: that keeps no more alive than what lies in it.
  std::map<DeviceBuffer*, uint32_t> indices;
  std::vector<std::shared_ptr<DeviceBuffer>> buffers;
  std::vector<size_t> used;  // bytes of what lies in it: other messages may bring the rest
  auto parts = Napi::Float64Array::New(env, 2 * taken.size());
  for (size_t i = 0; i < taken.size(); ++i) {
    auto [at, is_new] = indices.emplace(taken[i].buffer.get(), static_cast<uint32_t>(buffers.size()));
    if (is_new) {
      buffers.push_back(taken[i].buffer);
      used.push_back(0);
    }
    used[at->second] += taken[i].length;
    parts[2 * i] = at->second;
    parts[2 * i + 1] = static_cast<double>(taken[i].offset);
  }
  taken.clear();
  Napi::Array allocations = Napi::Array::New(env), devices = Napi::Array::New(env), sizes = Napi::Array::New(env);
  for (uint32_t i = 0; i < buffers.size(); ++i) {
    devices[i] = Napi::String::New(env, buffers[i]->device().name());
    sizes[i] = Napi::Number::New(env, static_cast<double>(buffers[i]->size()));
    auto memory = ExternalMemory::Count(env, std::min(used[i], buffers[i]->size()));
    allocations[i] = ToExternal<DeviceBuffer>(env, std::move(buffers[i]), std::move(memory));
  }
  Napi::Object result = Napi::Object::New(env);
  result["allocations"] = allocations;
  result["devices"] = devices;
  result["sizes"] = sizes;
  result["parts"] = parts;
  return result;
}

// revokeShared(token). See RevokeShared.
void RevokeSharedJs(const Napi::CallbackInfo& info) { RevokeShared(info[0].As<Napi::String>()); }

// Tells which description belongs to which memory.
std::string NewSeal() {
  auto digits = [] { return static_cast<unsigned long long>(RandomSecret()); };
  return Format("%016llx%016llx", digits(), digits());
}

// exportMemory(allocations: External[], parts: Float64Array, size): Promise<{exported: External, fd, seal, busId}>.
// `parts`, by allocation: offset in it, length, and where that goes. All are on one device; without any it is the host.
// See Device::ExportMemory.
Napi::Value ExportMemoryJs(const Napi::CallbackInfo& info) {
  struct Export {
    std::vector<ExportPart> parts;
    std::string seal = NewSeal(), bus_id;
    std::shared_ptr<ExportedMemory> memory;
  };
  Napi::Env env = info.Env();
  auto made = std::make_shared<Export>();
  auto list = info[0].As<Napi::Array>();
  auto numbers = info[1].As<Napi::Float64Array>();
  const size_t size = SizeOf(info[2]);
  for (uint32_t i = 0; i < list.Length(); ++i) {
    Napi::HandleScope scope(env);
    auto number = [&](size_t which) { return static_cast<size_t>(numbers[3 * i + which]); };
    ExportPart part = {FromExternal<DeviceBuffer>(list.Get(i)), number(0), number(1), number(2)};
    ThrowIfError(env, CheckRange(*part.buffer, part.offset, part.length));
    if (part.at > size || part.length > size - part.at)
      Throw(env, Status(Code::INVALID_ARGUMENT, "a part of what is exported does not fit into it"));
    made->parts.push_back(std::move(part));
  }
  return AsyncWork::Run(
      env,
      [made, size]() -> Status {
        std::shared_ptr<Device> device;
        if (made->parts.empty()) {
          FST_RETURN_IF_ERROR(OpenDevice("cpu", /*unified=*/false, &device));
        } else {
          device = made->parts[0].buffer->shared_device();
        }
        made->bus_id = device->info().bus_id;
        return device->ExportMemory(made->parts, size, made->seal, &made->memory);
      },
      [made](Napi::Env env) {
        Napi::Object result = Napi::Object::New(env);
        result["fd"] = Napi::Number::New(env, made->memory->fd());
        result["seal"] = Napi::String::New(env, made->seal);
        result["busId"] = Napi::String::New(env, made->bus_id);
        result["exported"] = ToExternal<ExportedMemory>(env, std::move(made->memory));
        return result;
      });
}

// closeExported(exported): closes its descriptor, off the event loop where that frees memory; may be called again.
void CloseExportedJs(const Napi::CallbackInfo& info) {
  const napi_type_tag tag = TypeTagOf<ExportedMemory>();
  auto& held = *static_cast<Held<ExportedMemory>*>(ExternalData(info[0], tag, kExternalName<ExportedMemory>));
  if (auto memory = std::exchange(held.value, nullptr)) AfterFrees([memory = std::move(memory)] {});
}

// A descriptor of our own for a file: the caller may close theirs meanwhile. Throws INVALID_ARGUMENT.
std::shared_ptr<UniqueFd> Duplicate(Napi::Env env, int fd) {
  auto own = std::make_shared<UniqueFd>(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (own->valid()) return own;
  Throw(env, Status(Code::INVALID_ARGUMENT,
                    Format("fd: expected an open descriptor, found %d: %s", fd, ErrnoText(errno).c_str())));
}

// importMemory(device, fd, size, seal): Promise<External>, an allocation. See Device::ImportMemory.
Napi::Value ImportMemoryJs(const Napi::CallbackInfo& info) {
  auto device = FromExternal<Device>(info[0]);
  const int fd = info[1].As<Napi::Number>().Int32Value();
  const size_t size = SizeOf(info[2]);
  std::string seal = info[3].As<Napi::String>();
  auto own = Duplicate(info.Env(), fd);
  auto buffer = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      info.Env(), [=] { return device->ImportMemory(own->get(), size, seal, buffer.get()); },
      [buffer](Napi::Env env) { return AllocationToJs(env, std::move(*buffer)); });
}

// findGpu(busId, likely): Promise<number>. See FindCudaDevice.
Napi::Value FindGpuJs(const Napi::CallbackInfo& info) {
  std::string bus_id = info[0].As<Napi::String>();
  const int likely = info[1].As<Napi::Number>().Int32Value();
  auto found = std::make_shared<int>(-1);
  return AsyncWork::Run(
      info.Env(), [=] { return FindCudaDevice(bus_id, likely, found.get()); },
      [found](Napi::Env env) { return Napi::Number::New(env, *found); });
}

// serveFd(path, fd, text): Promise<External>. See FdServer::Listen.
Napi::Value ServeFdJs(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>(), text = info[2].As<Napi::String>();
  auto own = Duplicate(info.Env(), info[1].As<Napi::Number>().Int32Value());
  auto server = std::make_shared<std::unique_ptr<FdServer>>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return FdServer::Listen(path, std::move(*own), text, server.get()); },
      [server](Napi::Env env) { return ToExternal<FdServer>(env, std::move(*server)); });
}

// closeServer(server): nobody can connect any more; may be called again.
void CloseServerJs(const Napi::CallbackInfo& info) { ReleaseExternal<FdServer>(info[0]); }

// receiveFd(path): Promise<{exported: External, fd, text}>. See ReceiveFd.
Napi::Value ReceiveFdJs(const Napi::CallbackInfo& info) {
  struct Received {
    UniqueFd fd;
    std::string text;
  };
  std::string path = info[0].As<Napi::String>();
  auto received = std::make_shared<Received>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return ReceiveFd(path, kMaxHeaderLength, &received->fd, &received->text); },
      [received](Napi::Env env) {
        // Its memory is the exporter's: it counts there.
        auto memory = std::make_shared<ExportedMemory>(std::move(received->fd), 0, &Metrics::Get().host_bytes);
        Napi::Object result = Napi::Object::New(env);
        result["fd"] = Napi::Number::New(env, memory->fd());
        result["text"] = Napi::String::New(env, received->text);
        result["exported"] = ToExternal<ExportedMemory>(env, std::move(memory));
        return result;
      });
}

// parseDescription(text): Promise<PackedHeader>, that of a text which has a header's form. See ParseHeader.
Napi::Value ParseDescriptionJs(const Napi::CallbackInfo& info) {
  std::string text = info[0].As<Napi::String>();
  auto header = std::make_shared<PackedHeader>();
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        std::vector<uint8_t> bytes(sizeof(uint64_t) + text.size());
        for (size_t i = 0; i < sizeof(uint64_t); ++i) bytes[i] = static_cast<uint8_t>(text.size() >> (8 * i));
        std::copy(text.begin(), text.end(), bytes.begin() + sizeof(uint64_t));
        HeaderOptions options;
        options.allow_trailing_bytes = true;  // what it says of the size is compared with the memory
        Header parsed;
        FST_RETURN_IF_ERROR(ParseHeader(bytes.data(), bytes.size(), kMaxSafeInteger, options, "", &parsed));
        return PackHeader(std::move(parsed), header.get());
      },
      [header](Napi::Env env) { return HeaderToJs(env, header, nullptr); });
}

}  // namespace

void ExportSharing(Napi::Env env, Napi::Object exports) {
  Export<ShareAllocationJs>(env, exports, "shareAllocation");
  Export<TakeSharedJs>(env, exports, "takeShared");
  Export<RevokeSharedJs>(env, exports, "revokeShared");
  Export<ExportMemoryJs>(env, exports, "exportMemory");
  Export<CloseExportedJs>(env, exports, "closeExported");
  Export<ImportMemoryJs>(env, exports, "importMemory");
  Export<FindGpuJs>(env, exports, "findGpu");
  Export<ServeFdJs>(env, exports, "serveFd");
  Export<CloseServerJs>(env, exports, "closeServer");
  Export<ReceiveFdJs>(env, exports, "receiveFd");
  Export<ParseDescriptionJs>(env, exports, "parseDescription");
}

}  // namespace fst
