// Between C++ values and JavaScript ones.
#pragma once
#include <napi.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "base/status.h"

namespace fst {

class Device;
class DeviceBuffer;

// {code, message, path?, tensor?, offset?}, a status object: src/native/addon.ts makes a FastSafetensorsError of it.
Napi::Object StatusToJs(Napi::Env env, const Status& status);

// {key: text, …}
Napi::Value TextsToJs(Napi::Env env, std::initializer_list<std::pair<const char*, const std::string&>> texts);

// Unwinds to the exported function's entry; JavaScript catches StatusToJs(status).
[[noreturn]] void Throw(Napi::Env env, const Status& status);
inline void ThrowIfError(Napi::Env env, const Status& status) {
  if (!status.ok()) Throw(env, status);
}

// An ArrayBuffer over memory that `owner` keeps until it is collected; empty where this runtime allows none of that.
Napi::Value ArrayBufferOver(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner);
// The same, or a copy where none is allowed.
Napi::Value ArrayBufferOverOrCopy(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner);

// A size or an offset in bytes; TypeScript has checked that it is one.
inline size_t SizeOf(const Napi::Value& value) { return static_cast<size_t>(value.As<Napi::Number>().Int64Value()); }
double NumberOr(const Napi::Object& object, const char* name, double otherwise);

// The status for std::bad_alloc.
Status OutOfMemory();

// What messages call a type that JavaScript holds by shared pointer; specialised beside the functions that hand it out.
template <class T>
constexpr char kExternalName[] = "";
template <>
inline constexpr char kExternalName<Device>[] = "a device";
template <>
inline constexpr char kExternalName<DeviceBuffer>[] = "an allocation";

// Differs by type, and by copy of this library: two packages of different versions must not take each other's values.
template <class T>
napi_type_tag TypeTagOf() {
  return {0x2f0c6f1d8a5be947, reinterpret_cast<uintptr_t>(kExternalName<T>)};
}

// The data of an external with this tag; throws INVALID_ARGUMENT, naming what was `expected`, for any other value.
void* ExternalData(const Napi::Value& value, const napi_type_tag& tag, const char* expected);

// A shared pointer as a JavaScript value, which owns it until it is collected.
template <class T>
Napi::Value ToExternal(Napi::Env env, std::shared_ptr<T> value) {
  using Held = std::shared_ptr<T>;
  auto owned = std::make_unique<Held>(std::move(value));
  auto external = Napi::External<Held>::New(env, owned.get(), [](Napi::Env, Held* dead) { delete dead; });
  owned.release();  // NOLINT: the finalizer owns it now; before, New may have thrown
  const napi_type_tag tag = TypeTagOf<T>();
  external.TypeTag(&tag);
  return external;
}

// What ToExternal<T> was given, never null. Throws a status object: INVALID_ARGUMENT for any other JavaScript value,
// CLOSED after ReleaseExternal.
template <class T>
std::shared_ptr<T>& FromExternal(const Napi::Value& value) {
  auto& held = *static_cast<std::shared_ptr<T>*>(ExternalData(value, TypeTagOf<T>(), kExternalName<T>));
  if (held == nullptr)
    Throw(value.Env(), Status(Code::CLOSED, std::string(kExternalName<T>) + " was released and is used again"));
  return held;
}

// Null for undefined and null.
template <class T>
std::shared_ptr<T> FromOptionalExternal(const Napi::Value& value) {
  return value.IsUndefined() || value.IsNull() ? nullptr : FromExternal<T>(value);
}

// Drops the reference before the value is collected. May be called again.
template <class T>
void ReleaseExternal(const Napi::Value& value) {
  static_cast<std::shared_ptr<T>*>(ExternalData(value, TypeTagOf<T>(), kExternalName<T>))->reset();
}

}  // namespace fst
