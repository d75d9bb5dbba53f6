#include "napi/js_values.h"

#include <cstring>
#include <utility>

#include "device/device.h"

namespace fst {

Napi::Object StatusToJs(Napi::Env env, const Status& status) {
  Napi::Object error = Napi::Object::New(env);
  error["code"] = Napi::String::New(env, CodeName(status.code()));
  error["message"] = Napi::String::New(env, status.message());
  if (!status.path().empty()) error["path"] = Napi::String::New(env, status.path());
  if (!status.tensor().empty()) error["tensor"] = Napi::String::New(env, status.tensor());
  const char* name = ErrnoName(status.os_error());
  if (*name != '\0') error["errno"] = Napi::String::New(env, name);
  if (status.offset() >= 0) error["offset"] = Napi::Number::New(env, static_cast<double>(status.offset()));
  return error;
}

Napi::Value TextsToJs(Napi::Env env, std::initializer_list<std::pair<const char*, const std::string&>> texts) {
  Napi::Object object = Napi::Object::New(env);
  for (const auto& [key, text] : texts) object[key] = Napi::String::New(env, text);
  return object;
}

void Throw(Napi::Env env, const Status& status) { throw Napi::Error(env, StatusToJs(env, status)); }

namespace {

// What an ArrayBuffer over foreign memory keeps until it is collected.
struct Underlying {
  std::shared_ptr<void> owner;
  std::shared_ptr<ExternalMemory> memory;
  size_t length;

  static void Release(napi_env, void*, void* hint) {
    std::unique_ptr<Underlying> dead(static_cast<Underlying*>(hint));
    if (dead->memory != nullptr) dead->memory->Uncover(dead->length);
  }
};

}  // namespace

Napi::Value ArrayBufferOver(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner,
                            std::shared_ptr<ExternalMemory> memory) {
  if (memory != nullptr) memory->Cover(length);
  auto* underlying = new Underlying{std::move(owner), std::move(memory), length};
  napi_value result;
  napi_status status = napi_create_external_arraybuffer(env, data, length, Underlying::Release, underlying, &result);
  if (status == napi_ok) return Napi::Value(env, result);
  Underlying::Release(env, data, underlying);
  if (env.IsExceptionPending()) env.GetAndClearPendingException();
  return Napi::Value();
}

Napi::Value ArrayBufferOverOrCopy(Napi::Env env, void* data, size_t length, std::shared_ptr<void> owner) {
  Napi::Value over = ArrayBufferOver(env, data, length, std::move(owner));
  if (!over.IsEmpty()) return over;
  Napi::ArrayBuffer copy = Napi::ArrayBuffer::New(env, length);
  memcpy(copy.Data(), data, length);
  return copy;
}

std::shared_ptr<void> FreedElsewhere(std::shared_ptr<void> owner) {
  void* memory = owner.get();
  return {memory, [owner = std::move(owner)](void*) mutable {
            auto* box = new std::shared_ptr<void>(std::move(owner));  // the thread has the only copy
            AfterFrees([box] { delete box; });
          }};
}

double NumberOr(const Napi::Object& object, const char* name, double otherwise) {
  Napi::Value value = object.Get(name);
  return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : otherwise;
}

Status OutOfMemory() {
  return Status(Code::OUT_OF_HOST_MEMORY, "the process has no memory left for what this call keeps beside the tensors");
}

void* ExternalData(const Napi::Value& value, const napi_type_tag& tag, const char* expected) {
  if (value.IsExternal()) {
    auto external = value.As<Napi::External<void>>();
    if (external.CheckTypeTag(&tag)) return external.Data();
  }
  // In the order of napi_valuetype.
  constexpr const char* kKinds[] = {"undefined", "null",       "a boolean",
                                    "a number",  "a string",   "a symbol",
                                    "an object", "a function", "another native value",
                                    "a bigint"};
  Throw(value.Env(),
        Status(Code::INVALID_ARGUMENT, Format("expected %s of this addon, found %s", expected, kKinds[value.Type()])));
}

}  // namespace fst
