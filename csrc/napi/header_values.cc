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

FileIdentity IdentityFrom(const uint64_t* numbers) {
  FileIdentity identity;
  identity.dev = numbers[0];
  identity.ino = numbers[1];
  identity.size = numbers[2];
  identity.mtime_ns = static_cast<int64_t>(numbers[3]);
  return identity;
}

Napi::Value HeaderToJs(Napi::Env env, const std::shared_ptr<PackedHeader>& header, const FileIdentity* identity) {
  Napi::EscapableHandleScope scope(env);
  if (identity != nullptr) {
    const double yes = 1;
    const auto time = static_cast<uint64_t>(identity->mtime_ns);
    const uint64_t numbers[] = {identity->dev, identity->ino, identity->size, time};
    memcpy(header->block.get() + PackedHeader::kHasIdentity * sizeof yes, &yes, sizeof yes);
    memcpy(header->block.get() + PackedHeader::kIdentity * sizeof yes, numbers, sizeof numbers);
  }
  Napi::Array packed = Napi::Array::New(env, 3);
  if (header->size >= kTakenOver) {
    packed[0U] = ArrayBufferOverOrCopy(env, header->block.get(), header->size, FreedElsewhere(header));
  } else {
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, header->size);
    memcpy(buffer.Data(), header->block.get(), header->size);
    packed[0U] = buffer;
  }
  packed[1U] = header->names.length > 0 ? env.Null() : TextToJs(env, header->short_names);
  packed[2U] = header->metadata.length > 0 ? env.Null() : TextToJs(env, header->short_metadata);
  return scope.Escape(packed);
}

}  // namespace fst
