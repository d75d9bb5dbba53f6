#include "napi/header_values.h"

#include <cstring>
#include <memory>
#include <utility>

#include "napi/js_values.h"
#include "safetensors/text_table.h"

namespace fst {

namespace {

// From so many bytes on an ArrayBuffer over memory is cheaper than a copy.
constexpr size_t kTakenOver = 64 << 10;

Napi::Value TextToJs(Napi::Env env, const std::string& text) {
  napi_value string;
  auto create = IsAscii(text) ? napi_create_string_latin1 : napi_create_string_utf8;  // the former is much faster
  if (create(env, text.data(), text.size(), &string) != napi_ok) throw Napi::Error::New(env);
  return Napi::Value(env, string);
}

Napi::Value IdentityToJs(Napi::Env env, const FileIdentity* identity) {
  if (identity == nullptr) return env.Null();
  Napi::Object value = Napi::Object::New(env);
  value["dev"] = Napi::BigInt::New(env, identity->dev);
  value["ino"] = Napi::BigInt::New(env, identity->ino);
  value["size"] = Napi::BigInt::New(env, identity->size);
  value["mtimeNs"] = Napi::BigInt::New(env, identity->mtime_ns);
  return value;
}

}  // namespace

void SetTexts(Napi::Object object, const char* key, const char* ends_key, std::string texts,
              const std::vector<uint32_t>& lengths) {
  Napi::Env env = object.Env();
  const bool is_long = texts.size() > kLongTexts;
  Napi::Uint32Array ends = Napi::Uint32Array::New(env, lengths.size());
  if (is_long) {
    uint32_t end = 0;
    for (size_t i = 0; i < lengths.size(); ++i) ends[i] = end += lengths[i];
    auto owner = std::make_shared<std::string>(std::move(texts));
    Napi::Value over = ArrayBufferOverOrCopy(env, owner->data(), owner->size(), FreedElsewhere(owner));
    object.Set(key, Napi::Uint8Array::New(env, owner->size(), over.As<Napi::ArrayBuffer>(), 0));
  } else {
    TextEnds(texts, lengths.data(), lengths.size(), ends.Data());
    object.Set(key, TextToJs(env, texts));
  }
  object.Set(ends_key, ends);
}

FileIdentity IdentityFromJs(const Napi::Object& object) {
  auto number = [&object](const char* key) {
    bool lossless;
    return object.Get(key).As<Napi::BigInt>().Uint64Value(&lossless);
  };
  FileIdentity identity;
  identity.dev = number("dev");
  identity.ino = number("ino");
  identity.size = number("size");
  identity.mtime_ns = static_cast<int64_t>(number("mtimeNs"));
  return identity;
}

Napi::Value HeaderToJs(Napi::Env env, const std::shared_ptr<PackedHeader>& header, const FileIdentity* identity) {
  Napi::EscapableHandleScope scope(env);
  Napi::Object object = Napi::Object::New(env);
  auto number = [&](const char* key, uint64_t value) { object.Set(key, static_cast<double>(value)); };
  number("headerLength", header->header_length);
  number("sizeBytes", header->size_bytes);
  number("dataStart", header->data_start);
  number("tensorCount", header->count);
  number("trailingBytes", header->trailing_bytes);
  if (header->has_sums) object.Set("hasSums", true);
  object.Set("identity", IdentityToJs(env, identity));
  Napi::ArrayBuffer buffer;
  if (header->size >= kTakenOver) {
    buffer =
        ArrayBufferOverOrCopy(env, header->block.get(), header->size, FreedElsewhere(header)).As<Napi::ArrayBuffer>();
  } else {
    buffer = Napi::ArrayBuffer::New(env, header->size);
    if (header->size > 0) memcpy(buffer.Data(), header->block.get(), header->size);
  }
  auto doubles = [&](const char* key, const PackedHeader::Array& array) {
    object.Set(key, Napi::Float64Array::New(env, array.length, buffer, array.offset));
  };
  auto numbers = [&](const char* key, const PackedHeader::Array& array) {
    object.Set(key, Napi::Uint32Array::New(env, array.length, buffer, array.offset));
  };
  auto bytes = [&](const char* key, const PackedHeader::Array& array) {
    object.Set(key, Napi::Uint8Array::New(env, array.length, buffer, array.offset));
  };
  auto texts = [&](const char* key, const PackedHeader::Array& array, const std::string& text) {
    if (array.length > 0) return bytes(key, array);
    object.Set(key, TextToJs(env, text));
  };
  doubles("begins", header->begins);
  doubles("ends", header->ends);
  doubles("dims", header->dims);
  numbers("rankEnds", header->rank_ends);
  numbers("nameEnds", header->name_ends);
  numbers("metadataEnds", header->metadata_ends);
  bytes("dtypes", header->dtypes);
  texts("names", header->names, header->short_names);
  texts("metadataTexts", header->metadata, header->short_metadata);
  if (header->name_slots.length > 0) numbers("nameSlots", header->name_slots);
  if (header->metadata_slots.length > 0) numbers("metadataSlots", header->metadata_slots);
  number("textSeed", TextSeed());
  return scope.Escape(object);
}

}  // namespace fst
