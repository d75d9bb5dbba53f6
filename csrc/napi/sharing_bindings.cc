// Memory that other threads of JavaScript get.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "device/shared_buffers.h"
#include "napi/bindings.h"

namespace fst {
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

}  // namespace

void ExportSharing(Napi::Env env, Napi::Object exports) {
  Export<ShareAllocationJs>(env, exports, "shareAllocation");
  Export<TakeSharedJs>(env, exports, "takeShared");
  Export<RevokeSharedJs>(env, exports, "revokeShared");
}

}  // namespace fst
