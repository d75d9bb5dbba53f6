// Reads on the spot for JavaScript.
#include <utility>
#include <vector>

#include "base/page.h"
#include "device/device.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/external_memory.h"
#include "napi/header_values.h"
#include "reader/mapped_file.h"
#include "reader/spot_file.h"

namespace fst {

template <>
inline constexpr char kExternalName<HeaderFdCache>[] = "a header fd cache";
template <>
inline constexpr char kExternalName<SpotFile>[] = "a spot file";
template <>
inline constexpr char kExternalName<MappedFile>[] = "a mapped file";

namespace {

// openSpotFile(fdCache, path, identity): Promise<External | null>; null where reads of it belong to a reader. See
// SpotFile::Open.
Napi::Value OpenSpotFileJs(const Napi::CallbackInfo& info) {
  auto file = std::make_shared<std::shared_ptr<SpotFile>>();
  auto fds = FromExternal<HeaderFdCache>(info[0]);
  std::string path = info[1].As<Napi::String>();
  FileIdentity expected = IdentityFromJs(info[2].As<Napi::Object>());
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return SpotFile::Open(fds, path, expected, file.get()); },
      [file](Napi::Env env) {
        return *file != nullptr ? ToExternal<SpotFile>(env, std::move(*file)) : Napi::Value(env.Null());
      });
}

// allocateOnSpot(device, bytes): External, an allocation of a few KiB in host memory; throws a status object:
// OUT_OF_HOST_MEMORY, INVALID_ARGUMENT.
Napi::Value AllocateOnSpotJs(const Napi::CallbackInfo& info) {
  auto& device = FromExternal<Device>(info[0]);
  if (!device->host_accessible()) Throw(info.Env(), Status(Code::INVALID_ARGUMENT, "expected a device in host memory"));
  std::shared_ptr<DeviceBuffer> buffer;
  ThrowIfError(info.Env(), device->Allocate(SizeOf(info[1]), &buffer));
  return AllocationToJs(info.Env(), std::move(buffer));
}

// isHeldOnce(allocation): whether nothing but the handle holds it: no typed array, no load, no framework
Napi::Value IsHeldOnceJs(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), FromExternal<DeviceBuffer>(info[0]).use_count() == 1);
}

// readOnSpot(allocation, files: External[], reads: Float64Array, count): whether all of the ranges, the first `count`
// of `reads`, were there at once and were read: of each its file's index, offset, length, and where in the allocation
// it goes, the ranges of a file one after the other. Throws a status object: INVALID_ARGUMENT.
Napi::Value ReadOnSpotJs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const DeviceBuffer& buffer = *FromExternal<DeviceBuffer>(info[0]);
  const size_t bytes = buffer.size();
  auto files = info[1].As<Napi::Array>();
  auto reads = info[2].As<Napi::Float64Array>();
  const size_t count = SizeOf(info[3]);
  auto number = [&](size_t i) { return static_cast<uint64_t>(reads[i]); };
  if (!buffer.device().host_accessible()) Throw(env, Status(Code::INVALID_ARGUMENT, "expected host memory"));
  if (count > reads.ElementLength() / 4)
    Throw(env, Status(Code::INVALID_ARGUMENT, Format("there are no %zu ranges", count)));
  for (size_t i = 0; i < count; ++i) {
    const uint64_t length = number(4 * i + 2), to = number(4 * i + 3);
    if (number(4 * i) >= files.Length() || length == 0 || to > bytes || length > bytes - to)
      Throw(env, Status(Code::INVALID_ARGUMENT, Format("range %zu is in no file, or not in the allocation", i)));
  }
  auto* memory = reinterpret_cast<char*>(buffer.address());  // NOLINT(performance-no-int-to-ptr)
  std::vector<SpotFile::Range> ranges;
  for (size_t i = 0; i < count;) {
    const uint64_t file = number(4 * i);
    for (ranges.clear(); i < count && number(4 * i) == file; ++i)
      ranges.push_back({number(4 * i + 1), number(4 * i + 2), memory + number(4 * i + 3)});
    if (!FromExternal<SpotFile>(files.Get(static_cast<uint32_t>(file)))->Read(ranges.data(), ranges.size()))
      return Napi::Boolean::New(env, false);
  }
  return Napi::Boolean::New(env, true);
}

// mapRegion(device, path, identity, begin, end): Promise<{file, allocation} | null>, bytes of a file that are in
// memory, brought in and mapped as one allocation, which counts for V8 as a mapped one. `begin` is a multiple of 4096.
// Null where they are to be copied, see MappedFile::Open; rejects with what that and Populate
// return.
Napi::Value MapRegionJs(const Napi::CallbackInfo& info) {
  struct Region {
    std::shared_ptr<MappedFile> file;
    std::shared_ptr<DeviceBuffer> buffer;
  };
  auto region = std::make_shared<Region>();
  auto device = FromExternal<Device>(info[0]);
  std::string path = info[1].As<Napi::String>();
  FileIdentity expected = IdentityFromJs(info[2].As<Napi::Object>());
  const uint64_t begin = SizeOf(info[3]), end = SizeOf(info[4]);
  if (begin % kPage != 0 || begin >= end || end > expected.size)
    Throw(info.Env(), Status(Code::INVALID_ARGUMENT, "expected whole pages of the file"));
  return AsyncWork::RunOnFile(
      info.Env(),
      [=]() -> Status {
        std::string why_not;
        MappedFile::Options options;
        options.begin = begin;
        options.end = end;
        options.most = MappedFile::MostToMap();
        options.opens_anew = true;
        std::shared_ptr<MappedFile> file;  // what is not used is unmapped here, not on the environment's thread
        FST_RETURN_IF_ERROR(MappedFile::Open(path, expected, options, &file, &why_not));
        if (file == nullptr) return Status::Ok();
        FST_RETURN_IF_ERROR(file->Populate(begin, end - begin));
        region->buffer = file->BufferOf(device, begin, end - begin);
        if (region->buffer != nullptr) region->file = std::move(file);
        return Status::Ok();
      },
      [=](Napi::Env env) -> Napi::Value {
        if (region->buffer == nullptr) return env.Null();
        Napi::Object mapped = Napi::Object::New(env);
        mapped["file"] = ToExternal<MappedFile>(env, std::move(region->file));
        auto memory = ExternalMemory::Count(env, 0)->Split(end - begin, /*mapped=*/true);
        mapped["allocation"] = ToExternal<DeviceBuffer>(env, std::move(region->buffer), std::move(memory));
        return mapped;
      });
}

// isRegionCurrent(file, looks): see MappedFile::IsCurrent
Napi::Value IsRegionCurrentJs(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), FromExternal<MappedFile>(info[0])->IsCurrent(info[1].ToBoolean()));
}

// isRegionResident(file, begin, end): Promise<boolean>, see MappedFile::IsResident
Napi::Value IsRegionResidentJs(const Napi::CallbackInfo& info) {
  auto file = FromExternal<MappedFile>(info[0]);
  const uint64_t begin = SizeOf(info[1]), end = SizeOf(info[2]);
  if (begin > end || !file->Covers(begin, end - begin))
    Throw(info.Env(), Status(Code::INVALID_ARGUMENT, "these bytes are not mapped"));
  auto resident = std::make_shared<bool>(false);
  return AsyncWork::RunOnFile(
      info.Env(),
      [=] {
        *resident = file->IsResident(begin, end - begin);
        return Status::Ok();
      },
      [resident](Napi::Env env) { return Napi::Boolean::New(env, *resident); });
}

}  // namespace

void ExportSpotReads(Napi::Env env, Napi::Object exports) {
  Export<OpenSpotFileJs>(env, exports, "openSpotFile");
  Export<AllocateOnSpotJs>(env, exports, "allocateOnSpot");
  Export<IsHeldOnceJs>(env, exports, "isHeldOnce");
  Export<ReadOnSpotJs>(env, exports, "readOnSpot");
  Export<MapRegionJs>(env, exports, "mapRegion");
  Export<IsRegionCurrentJs>(env, exports, "isRegionCurrent");
  Export<IsRegionResidentJs>(env, exports, "isRegionResident");
}

}  // namespace fst
