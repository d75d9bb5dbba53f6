#include "napi/header_napi.h"

namespace fst {

namespace {

// Sets an array of `length` elements that fill(data) has filled.
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

// Sets `names` and `nameEnds`. The JavaScript string counts UTF-16 units, the arena bytes: the same for ASCII.
void SetNames(Napi::Object object, const Header& header) {
  Napi::Env env = object.Env();
  const bool ascii = IsAscii(header.names);
  SetArray<Napi::Uint32Array>(object, "nameEnds", header.entries.size(), [&](uint32_t* ends) {
    uint32_t units = 0;
    for (const Header::Entry& entry : header.entries) {
      if (ascii) {
        units += entry.name_length;
      } else {
        for (char c : header.NameOf(entry)) {
          unsigned char byte = static_cast<unsigned char>(c);
          units += (byte & 0xC0) != 0x80;  // one unit a code point
          units += byte >= 0xF0;           // two past U+FFFF
        }
      }
      *ends++ = units;
    }
  });
  napi_value names;
  auto create = ascii ? napi_create_string_latin1 : napi_create_string_utf8;  // the former is much faster
  if (create(env, header.names.data(), header.names.size(), &names) != napi_ok) throw Napi::Error::New(env);
  object.Set("names", names);
}

void SetMetadata(Napi::Object object, const Header& header) {
  Napi::Env env = object.Env();
  Napi::Array flat = Napi::Array::New(env, header.metadata.size() * 2);
  uint32_t at = 0;
  for (const auto& [key, value] : header.metadata) {
    Napi::HandleScope scope(env);
    flat.Set(at++, Napi::String::New(env, key));
    flat.Set(at++, Napi::String::New(env, value));
  }
  object.Set("metadata", flat);
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
  SetNames(object, header);
  // For each tensor in turn: *to++ = get(entry).
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
