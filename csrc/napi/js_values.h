// Between C++ values and JavaScript ones.
#pragma once
#include <napi.h>

#include <atomic>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "base/status.h"
#include "napi/external_memory.h"

namespace fst {

class Device;
class DeviceBuffer;
class MemoryBudget;

// {code, message, path?, tensor?, offset?, errno?: its name}, a status object: src/native/addon.ts makes a
// FastSafetensorsError of it.
Napi::Object StatusToJs(Napi::Env env, const Status& status);

// {key: text, …}
Napi::Value TextsToJs(Napi::Env env, std::initializer_list<std::pair<const char*, const std::string&>> texts);

// Unwinds to the exported function's entry; JavaScript catches StatusToJs(status).
[[noreturn]] void Throw(Napi::Env env, const Status& status);
inline void ThrowIfError(Napi::Env env, const Status& status) {
  if (!status.ok()) Throw(env, status);
}

// An ArrayBuffer over memory that `owner` keeps until it is collected; empty where this runtime allows none of that.
// `memory`: where the bytes count already.
Napi::Value ArrayBufferOver(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner,
                            std::shared_ptr<ExternalMemory> memory = nullptr);
// The same, or a copy where none is allowed.
Napi::Value ArrayBufferOverOrCopy(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner);

// The same owner for an ArrayBuffer over much memory that free(3) would take: it is freed on the thread that frees
// tensors, not by the garbage collector on the event loop's thread, where to unmap tens of MB takes milliseconds.
std::shared_ptr<void> FreedElsewhere(std::shared_ptr<void> owner);

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
template <>
inline constexpr char kExternalName<MemoryBudget>[] = "a memory budget";
template <>
inline constexpr char kExternalName<ExternalMemory>[] = "a count of memory";
template <>
inline constexpr char kExternalName<std::atomic<uint64_t>>[] = "a progress";

// Differs by type, and by copy of this library: two packages of different versions must not take each other's values.
template <class T>
napi_type_tag TypeTagOf() {
  return {0x2f0c6f1d8a5be947, reinterpret_cast<uintptr_t>(kExternalName<T>)};
}

// The data of an external with this tag; throws INVALID_ARGUMENT, naming what was `expected`, for any other value.
void* ExternalData(const Napi::Value& value, const napi_type_tag& tag, const char* expected);

// What a JavaScript value made by ToExternal owns.
template <class T>
struct Held {
  std::shared_ptr<T> value;
  std::shared_ptr<ExternalMemory> memory;  // null for what keeps little
};

// A shared pointer as a JavaScript value, which owns it until it is collected. `memory`: what that keeps.
template <class T>
Napi::Value ToExternal(Napi::Env env, std::shared_ptr<T> value, std::shared_ptr<ExternalMemory> memory = nullptr) {
  auto owned = std::make_unique<Held<T>>(Held<T>{std::move(value), std::move(memory)});
  auto external = Napi::External<Held<T>>::New(env, owned.get(), [](Napi::Env, Held<T>* dead) { delete dead; });
  owned.release();  // NOLINT: the finalizer owns it now; before, New may have thrown
  const napi_type_tag tag = TypeTagOf<T>();
  external.TypeTag(&tag);
  return external;
}

// What ToExternal<T> was given; `value` is never null. Throws a status object: INVALID_ARGUMENT for any other
// JavaScript value, CLOSED after ReleaseExternal.
template <class T>
Held<T>& HeldBy(const Napi::Value& value) {
  auto& held = *static_cast<Held<T>*>(ExternalData(value, TypeTagOf<T>(), kExternalName<T>));
  if (held.value == nullptr)
    Throw(value.Env(), Status(Code::CLOSED, std::string(kExternalName<T>) + " was released and is used again"));
  return held;
}

template <class T>
std::shared_ptr<T>& FromExternal(const Napi::Value& value) {
  return HeldBy<T>(value).value;
}

// Null for undefined and null.
template <class T>
std::shared_ptr<T> FromOptionalExternal(const Napi::Value& value) {
  return value.IsUndefined() || value.IsNull() ? nullptr : FromExternal<T>(value);
}

// Drops the reference before the value is collected. May be called again.
template <class T>
void ReleaseExternal(const Napi::Value& value) {
  *static_cast<Held<T>*>(ExternalData(value, TypeTagOf<T>(), kExternalName<T>)) = {};
}

}  // namespace fst
