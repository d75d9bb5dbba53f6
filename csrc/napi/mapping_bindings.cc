// Mapped files for JavaScript.
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "napi/header_values.h"
#include "reader/mapped_file.h"
#include "transfer/engine.h"

namespace fst {

template <>
inline constexpr char kExternalName<Engine>[] = "an engine";
template <>
inline constexpr char kExternalName<MappedFile>[] = "a mapped file";

namespace {

// What mapFiles was asked for and found. Made on the environment's thread.
struct Mapping {
  struct File {
    std::string path;
    FileIdentity expected;
    MappedFile::Options options;
    std::shared_ptr<MappedFile> mapped;
    std::string why_not;
  };
  std::vector<File> files;

  Mapping(const Napi::Array& paths, const Napi::BigUint64Array& identities, const Napi::Float64Array& ranges,
          bool insist) {
    auto closer = std::make_shared<TaskPool>("fst-unmap", 1);
    for (uint32_t i = 0; i < paths.Length(); ++i) {
      Napi::HandleScope scope(paths.Env());
      File file;
      file.path = paths.Get(i).As<Napi::String>();
      file.expected = IdentityFrom(identities.Data() + 4 * i);
      file.options = {insist, static_cast<uint64_t>(ranges[2 * i]), static_cast<uint64_t>(ranges[2 * i + 1]),
                      UINT64_MAX, closer};
      files.push_back(std::move(file));
    }
  }

  Status Open() {
    const uint64_t most = MappedFile::MostToMap();
    for (File& file : files) {
      file.options.most = most;
      FST_RETURN_IF_ERROR(
          MappedFile::Open(file.path, file.expected, file.options, &file.mapped, &file.why_not).At(file.path));
    }
    return Status::Ok();
  }
};

const char* NameOf(MappedFile::Protection protection) {
  if (protection == MappedFile::Protection::kLease) return "lease";
  return protection == MappedFile::Protection::kImmutable ? "immutable" : "nothing";
}

// mapsFiles(engine): whether its loads may have mapped files
Napi::Value MapsFilesJs(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), FromExternal<Engine>(info[0])->maps_files());
}

// mapFiles(paths: string[], identities: BigUint64Array, ranges: Float64Array, insist: boolean): Promise<{files:
// (External | null)[], texts: string[]}>. `ranges`: begin and end of the bytes that are wanted, by file. A text is the
// protection of a mapped file, else why it is to be copied. See MappedFile::Open.
Napi::Value MapFilesJs(const Napi::CallbackInfo& info) {
  auto mapping = std::make_shared<Mapping>(info[0].As<Napi::Array>(), info[1].As<Napi::BigUint64Array>(),
                                           info[2].As<Napi::Float64Array>(), info[3].ToBoolean());
  return AsyncWork::RunOnFile(
      info.Env(), [mapping] { return mapping->Open(); },
      [mapping](Napi::Env env) {
        Napi::Array files = Napi::Array::New(env), texts = Napi::Array::New(env);
        for (uint32_t i = 0; i < mapping->files.size(); ++i) {
          auto& [path, expected, options, mapped, why_not] = mapping->files[i];
          texts[i] = Napi::String::New(env, mapped != nullptr ? NameOf(mapped->protection()) : why_not);
          files[i] = mapped != nullptr ? ToExternal<MappedFile>(env, std::move(mapped)) : env.Null();
        }
        Napi::Object result = Napi::Object::New(env);
        result["files"] = files;
        result["texts"] = texts;
        return result;
      });
}

// releaseMapping(mapped): drops the handle's reference, its loads and allocations keep theirs; may be called again.
void ReleaseMappingJs(const Napi::CallbackInfo& info) { ReleaseExternal<MappedFile>(info[0]); }

}  // namespace

void ExportMapping(Napi::Env env, Napi::Object exports) {
  Export<MapsFilesJs>(env, exports, "mapsFiles");
  Export<MapFilesJs>(env, exports, "mapFiles");
  Export<ReleaseMappingJs>(env, exports, "releaseMapping");
}

}  // namespace fst
