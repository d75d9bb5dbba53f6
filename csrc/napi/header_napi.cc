#include "napi/header_napi.h"

namespace fst {

namespace {

// An array of `length` elements set by fill(data); false with a pending exception when memory runs out.
template <typename Array, typename Fill>
bool SetArray(Napi::Object object, const char* key, size_t length, Fill fill) {
  Array array = Array::New(object.Env(), length);
  if (array.IsEmpty()) return false;
  fill(array.Data());
  return object.Set(key, array);
}

bool IsAscii(const std::string& text) {
  unsigned char all = 0;
  for (char c : text) all |= static_cast<unsigned char>(c);  // vectorised: no branch
  return all < 0x80;
}

// Sets `names` and `nameEnds`. The JavaScript string counts UTF-16 units, the arena bytes: the same for ASCII.
bool SetNames(Napi::Object object, const Header& header) {
  Napi::Env env = object.Env();
  const bool ascii = IsAscii(header.names);
  bool made = SetArray<Napi::Uint32Array>(object, "nameEnds", header.entries.size(), [&](uint32_t* ends) {
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
  if (!made) return false;
  napi_value names;
  auto create = ascii ? napi_create_string_latin1 : napi_create_string_utf8;  // the former is much faster
  if (create(env, header.names.data(), header.names.size(), &names) != napi_ok) {
    if (!env.IsExceptionPending())
      Napi::Error::New(env, "no memory for the names of a header").ThrowAsJavaScriptException();
    return false;
  }
  return object.Set("names", names);
}

bool SetMetadata(Napi::Object object, const Header& header) {
  Napi::Array flat = Napi::Array::New(object.Env(), header.metadata.size() * 2);
  uint32_t at = 0;
  for (const auto& [key, value] : header.metadata) {
    Napi::HandleScope scope(object.Env());
    Napi::String text = Napi::String::New(object.Env(), key);
    if (text.IsEmpty() || !flat.Set(at++, text)) return false;
    text = Napi::String::New(object.Env(), value);
    if (text.IsEmpty() || !flat.Set(at++, text)) return false;
  }
  return object.Set("metadata", flat);
}

bool SetIdentity(Napi::Object object, const FileIdentity* identity) {
  Napi::Env env = object.Env();
  if (identity == nullptr) return object.Set("identity", env.Null());
  Napi::Object value = Napi::Object::New(env);
  return value.Set("dev", Napi::BigInt::New(env, identity->dev)) &&
         value.Set("ino", Napi::BigInt::New(env, identity->ino)) &&
         value.Set("size", Napi::BigInt::New(env, identity->size)) &&
         value.Set("mtimeNs", Napi::BigInt::New(env, identity->mtime_ns)) && object.Set("identity", value);
}

bool SetNumber(Napi::Object object, const char* key, uint64_t value) {
  return object.Set(key, static_cast<double>(value));
}

}  // namespace

Napi::Value HeaderToJs(Napi::Env env, const Header& header, const FileIdentity* identity) {
  Napi::EscapableHandleScope scope(env);
  Napi::Object object = Napi::Object::New(env);
  const size_t count = header.entries.size();
  // For each tensor in turn: *to++ = get(entry).
  auto each = [&](auto get) {
    return [&header, get](auto* to) mutable {
      for (const Header::Entry& entry : header.entries) *to++ = get(entry);
    };
  };
  uint32_t dims = 0;
  bool made =
      SetNumber(object, "headerLength", header.header_length) && SetNumber(object, "sizeBytes", header.size_bytes) &&
      SetNumber(object, "dataStart", header.data_start) && SetNumber(object, "tensorCount", count) &&
      SetNumber(object, "trailingBytes", header.trailing_bytes) && SetIdentity(object, identity) &&
      SetNames(object, header) &&
      SetArray<Napi::Uint8Array>(object, "dtypes", count,
                                 each([](auto& e) { return static_cast<uint8_t>(e.dtype); })) &&
      SetArray<Napi::Float64Array>(object, "begins", count,
                                   each([](auto& e) { return static_cast<double>(e.begin); })) &&
      SetArray<Napi::Float64Array>(object, "ends", count, each([](auto& e) { return static_cast<double>(e.end); })) &&
      SetArray<Napi::Uint32Array>(object, "rankEnds", count,
                                  each([dims](auto& e) mutable { return dims += e.rank; })) &&
      SetArray<Napi::Float64Array>(object, "dims", header.dims.size(),
                                   [&](double* to) {
                                     for (uint64_t dim : header.dims) *to++ = static_cast<double>(dim);
                                   }) &&
      SetMetadata(object, header);
  return made ? scope.Escape(object) : Napi::Value();
}

}  // namespace fst
