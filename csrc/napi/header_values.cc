#include "napi/header_values.h"

namespace fst {

namespace {

// Sets a typed array of `length` elements that fill(data) fills.
template <typename Array, typename Fill>
void SetArray(Napi::Object object, const char* key, size_t length, Fill fill) {
  Array array = Array::New(object.Env(), length);
  fill(array.Data());
  object.Set(key, array);
}

bool IsAscii(const std::string& text) {
  unsigned char all = 0;
  for (char c : text) all |= static_cast<unsigned char>(c);  // vectorised: no branch
  return all < 0x80;
}

std::vector<uint32_t> NameLengths(const Header& header) {
  std::vector<uint32_t> lengths;
  lengths.reserve(header.entries.size());
  for (const Header::Entry& entry : header.entries) lengths.push_back(entry.name_length);
  return lengths;
}

void SetMetadata(Napi::Object object, const Header& header) {
  std::string texts;
  std::vector<uint32_t> lengths;
  lengths.reserve(header.metadata.size() * 2);
  for (const auto& [key, value] : header.metadata) {
    for (const std::string* text : {&key, &value}) {
      texts += *text;
      lengths.push_back(static_cast<uint32_t>(text->size()));
    }
  }
  SetTexts(object, "metadataTexts", "metadataEnds", texts, lengths);
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

void SetTexts(Napi::Object object, const char* key, const char* ends_key, const std::string& texts,
              const std::vector<uint32_t>& lengths) {
  Napi::Env env = object.Env();
  const bool ascii = IsAscii(texts);
  SetArray<Napi::Uint32Array>(object, ends_key, lengths.size(), [&](uint32_t* ends) {
    uint32_t units = 0;
    const char* at = texts.data();
    for (uint32_t length : lengths) {
      if (ascii) {
        units += length;
      } else {
        for (const char* end = at + length; at < end; ++at) {
          unsigned char byte = static_cast<unsigned char>(*at);
          units += (byte & 0xC0) != 0x80;  // one unit a code point
          units += byte >= 0xF0;           // two past U+FFFF
        }
      }
      *ends++ = units;
    }
  });
  napi_value string;
  auto create = ascii ? napi_create_string_latin1 : napi_create_string_utf8;  // the former is much faster
  if (create(env, texts.data(), texts.size(), &string) != napi_ok) throw Napi::Error::New(env);
  object.Set(key, string);
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

Napi::Value HeaderToJs(Napi::Env env, const Header& header, const FileIdentity* identity) {
  Napi::EscapableHandleScope scope(env);
  Napi::Object object = Napi::Object::New(env);
  const size_t count = header.entries.size();
  auto number = [&](const char* key, uint64_t value) { object.Set(key, static_cast<double>(value)); };
  number("headerLength", header.header_length);
  number("sizeBytes", header.size_bytes);
  number("dataStart", header.data_start);
  number("tensorCount", count);
  number("trailingBytes", header.trailing_bytes);
  object.Set("identity", IdentityToJs(env, identity));
  SetTexts(object, "names", "nameEnds", header.names, NameLengths(header));
  // Fills an array with get(entry) of each tensor.
  auto each = [&](auto get) {
    return [&header, get](auto* to) mutable {
      for (const Header::Entry& entry : header.entries) *to++ = get(entry);
    };
  };
  uint32_t dims = 0;
  SetArray<Napi::Uint8Array>(object, "dtypes", count, each([](auto& e) { return static_cast<uint8_t>(e.dtype); }));
  SetArray<Napi::Float64Array>(object, "begins", count, each([](auto& e) { return static_cast<double>(e.begin); }));
  SetArray<Napi::Float64Array>(object, "ends", count, each([](auto& e) { return static_cast<double>(e.end); }));
  SetArray<Napi::Uint32Array>(object, "rankEnds", count, each([dims](auto& e) mutable { return dims += e.rank; }));
  SetArray<Napi::Float64Array>(object, "dims", header.dims.size(), [&](double* to) {
    for (uint64_t dim : header.dims) *to++ = static_cast<double>(dim);
  });
  SetMetadata(object, header);
  return scope.Escape(object);
}

}  // namespace fst
