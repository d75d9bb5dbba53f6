// Headers and shard indices for JavaScript: read and checked on a worker, handed over packed.
#include <algorithm>
#include <atomic>
#include <vector>

#include "base/fd_table.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/header_values.h"
#include "safetensors/other_format.h"
#include "safetensors/packed_header.h"
#include "safetensors/shard_index.h"

namespace fst {

template <>
inline constexpr char kExternalName<HeaderFdCache>[] = "a header fd cache";

namespace {

struct Read {
  std::shared_ptr<PackedHeader> header = std::make_shared<PackedHeader>();
  FileIdentity identity;
};

Status ReadAndPack(const std::string& path, const HeaderOptions& options, HeaderFdCache* fd_cache, Read* out) {
  Header header;
  FST_RETURN_IF_ERROR(ReadHeader(path, options, &header, &out->identity, fd_cache));
  return PackHeader(std::move(header), out->header.get()).At(path);
}

// readHeader(path, allowTrailingBytes, fdCache: External | undefined, progress: External | undefined):
// Promise<PackedHeader>
Napi::Value ReadHeaderJs(const Napi::CallbackInfo& info) {
  auto read = std::make_shared<Read>();
  std::string path = info[0].As<Napi::String>();
  HeaderOptions options;
  options.allow_trailing_bytes = info[1].ToBoolean();
  auto fd_cache = FromOptionalExternal<HeaderFdCache>(info[2]);
  auto progress = FromOptionalExternal<std::atomic<uint64_t>>(info[3]);
  options.bytes_read = progress.get();
  return AsyncWork::RunOnFile(
      info.Env(), [=, counted = std::move(progress)] { return ReadAndPack(path, options, fd_cache.get(), read.get()); },
      [read](Napi::Env env) { return HeaderToJs(env, read->header, &read->identity); });
}

// readHeaders(paths: string[], allowTrailingBytes, fdCache: External | undefined, progress: External, files: External,
// descriptors: number): Promise<{headers: PackedHeader[], error: status object | null}>, one after the other up to the
// first that fails. `files` counts those that were read. `descriptors`: so many will be open soon; 0 for few.
Napi::Value ReadHeadersJs(const Napi::CallbackInfo& info) {
  struct Batch {
    std::vector<std::string> paths;
    std::vector<Read> read;
    Status status;
  };
  auto batch = std::make_shared<Batch>();
  auto paths = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < paths.Length(); ++i) {
    Napi::HandleScope scope(info.Env());
    batch->paths.emplace_back(paths.Get(i).As<Napi::String>());
  }
  HeaderOptions options;
  options.allow_trailing_bytes = info[1].ToBoolean();
  auto fd_cache = FromOptionalExternal<HeaderFdCache>(info[2]);
  auto progress = FromExternal<std::atomic<uint64_t>>(info[3]), files = FromExternal<std::atomic<uint64_t>>(info[4]);
  options.bytes_read = progress.get();
  const uint32_t descriptors = info[5].As<Napi::Number>();
  return AsyncWork::RunOnFile(
      info.Env(),
      [=, counted = std::move(progress)] {
        if (descriptors > 0) GrowFdTable(descriptors);
        for (const std::string& path : batch->paths) {
          Read read;
          batch->status = ReadAndPack(path, options, fd_cache.get(), &read);
          if (!batch->status.ok()) break;
          batch->read.push_back(std::move(read));
          files->fetch_add(1);
        }
        return Status::Ok();
      },
      [batch](Napi::Env env) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        Napi::Array headers = Napi::Array::New(env, batch->read.size());
        for (uint32_t i = 0; i < batch->read.size(); ++i) {
          Napi::HandleScope scope(env);
          headers[i] = HeaderToJs(env, batch->read[i].header, &batch->read[i].identity);
        }
        result["headers"] = headers;
        result["error"] = batch->status.ok() ? env.Null() : Napi::Value(StatusToJs(env, batch->status));
        return result;
      });
}

// newProgress(): External, for readHeader to count the bytes in that it has read
Napi::Value NewProgress(const Napi::CallbackInfo& info) {
  return ToExternal(info.Env(), std::make_shared<std::atomic<uint64_t>>(0));
}

// progressOf(progress): bytes
Napi::Value ProgressOf(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(FromExternal<std::atomic<uint64_t>>(info[0])->load()));
}

// newHeaderFdCache(): External, for readHeader to keep files open in until their data is read
Napi::Value NewHeaderFdCache(const Napi::CallbackInfo& info) {
  return ToExternal(info.Env(), std::make_shared<HeaderFdCache>());
}

// closeHeaderFdCache(fdCache): Promise<void>, resolved when what was left in it is closed
Napi::Value CloseHeaderFdCache(const Napi::CallbackInfo& info) {
  return AsyncWork::Close(info.Env(), *FromExternal<HeaderFdCache>(info[0]));
}

// parseHeader(bytes: Uint8Array of a whole file, allowTrailingBytes): Promise<PackedHeader>. The header is copied
// before this returns: its buffer may be detached while the worker reads.
Napi::Value ParseHeaderJs(const Napi::CallbackInfo& info) {
  auto read = std::make_shared<Read>();
  auto bytes = info[0].As<Napi::Uint8Array>();
  const uint8_t* data = bytes.Data();
  const size_t length = bytes.ByteLength();
  uint64_t n = 0;
  // A length that is refused here is refused again by ParseHeader, which looks at the first bytes for the reason.
  const size_t wanted = CheckHeaderLength(data, length, "", &n).ok() && n > 0 ? 8 + n : kFormatBytes;
  size_t copied = std::min<size_t>(length, wanted);
  auto header = std::make_shared<std::vector<uint8_t>>(data, data + copied);
  HeaderOptions options;
  options.allow_trailing_bytes = info[1].ToBoolean();
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        Header parsed;
        FST_RETURN_IF_ERROR(ParseHeader(header->data(), header->size(), length, options, "", &parsed));
        return PackHeader(std::move(parsed), read->header.get());
      },
      [read](Napi::Env env) { return HeaderToJs(env, read->header, nullptr); });
}

// parseShardIndex(bytes: Uint8Array, path): Promise<NativeShardIndex>. The bytes must not change until it settles.
Napi::Value ParseShardIndexJs(const Napi::CallbackInfo& info) {
  auto index = std::make_shared<ShardIndex>();
  auto bytes = info[0].As<Napi::Uint8Array>();
  const uint8_t* data = bytes.Data();
  const size_t length = bytes.ByteLength();
  std::string path = info[1].As<Napi::String>();
  return AsyncWork::Run(
      info.Env(), [=] { return ParseShardIndex(data, length, path, index.get()); },
      [index](Napi::Env env) -> Napi::Value {
        Napi::Object object = Napi::Object::New(env);
        SetTexts(object, "names", "nameEnds", std::move(index->names), index->name_lengths);
        auto shard_of = Napi::Uint32Array::New(env, index->shard_of.size());
        std::copy(index->shard_of.begin(), index->shard_of.end(), shard_of.Data());
        object["shardOf"] = shard_of;
        std::string shards;
        std::vector<uint32_t> lengths;
        for (const std::string& shard : index->shards) {
          shards += shard;
          lengths.push_back(static_cast<uint32_t>(shard.size()));
        }
        SetTexts(object, "shards", "shardEnds", std::move(shards), lengths);
        object["totalSize"] = Napi::Number::New(env, index->total_size);
        return object;
      },
      bytes);
}

// recognizeFormat(bytes: Uint8Array of a file's first bytes, fileSize): { name, description }, both "" for none
Napi::Value RecognizeFormatJs(const Napi::CallbackInfo& info) {
  auto bytes = info[0].As<Napi::Uint8Array>();
  const auto size = static_cast<uint64_t>(info[1].As<Napi::Number>().DoubleValue());
  const OtherFormat format = RecognizeFormat(bytes.Data(), std::min(bytes.ByteLength(), kFormatBytes), size);
  Napi::Object object = Napi::Object::New(info.Env());
  object["name"] = Napi::String::New(info.Env(), format.name);
  object["description"] = Napi::String::New(info.Env(), format.description);
  return object;
}

}  // namespace

void ExportHeaders(Napi::Env env, Napi::Object exports) {
  Export<ReadHeaderJs>(env, exports, "readHeader");
  Export<ReadHeadersJs>(env, exports, "readHeaders");
  Export<NewProgress>(env, exports, "newProgress");
  Export<ProgressOf>(env, exports, "progressOf");
  Export<NewHeaderFdCache>(env, exports, "newHeaderFdCache");
  Export<CloseHeaderFdCache>(env, exports, "closeHeaderFdCache");
  Export<ParseHeaderJs>(env, exports, "parseHeader");
  Export<RecognizeFormatJs>(env, exports, "recognizeFormat");
  Export<ParseShardIndexJs>(env, exports, "parseShardIndex");
}

}  // namespace fst
