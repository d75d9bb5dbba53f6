// ONNX Runtime sessions for JavaScript.
#include <mutex>
#include <optional>

#include "base/file_hole.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "ort/session.h"

namespace fst {

template <>
inline constexpr char kExternalName<ort::Session>[] = "a session";
template <>
inline constexpr char kExternalName<ort::Control>[] = "a run's control";
template <>
inline constexpr char kExternalName<ort::Value>[] = "a value of ONNX Runtime";

namespace {

using ort::Session;
using ort::Value;

// The work and the sessions of one JavaScript environment, which must end before it does.
struct OrtState {
  std::shared_ptr<ort::WorkGroup> work = ort::WorkGroup::Make();
  std::vector<std::weak_ptr<Session>> sessions;
  std::mutex mutex;  // guards `sessions`: creations complete on other threads

  void Track(const std::shared_ptr<Session>& session) {
    std::lock_guard<std::mutex> lock(mutex);
    sessions.erase(std::remove_if(sessions.begin(), sessions.end(), [](const auto& weak) { return weak.expired(); }),
                   sessions.end());
    sessions.push_back(session);
  }

  // Waits for running work without a limit: it reads memory that is freed with the environment.
  void End() {
    work->End(std::nullopt);
    for (auto& weak : sessions) {
      if (std::shared_ptr<Session> session = weak.lock()) session->Close(nullptr);
    }
  }
};

OrtState& StateOf(const Napi::CallbackInfo& info) { return *static_cast<OrtState*>(info.Data()); }

// AsyncWork::Run on the sessions' threads. `control` may be null.
Napi::Value RunOnSessionThread(const Napi::CallbackInfo& info, std::shared_ptr<ort::Control> control,
                               AsyncWork::Work work, AsyncWork::Done done, napi_value keep = nullptr) {
  std::function<void(Status)> finish;
  Napi::Value promise = AsyncWork::Pending(info.Env(), &finish, std::move(done), keep);
  Status posted = StateOf(info).work->Post(std::move(control), [work = std::move(work), finish] { finish(work()); });
  if (!posted.ok()) finish(posted);
  return promise;
}

bool Given(const Napi::Value& value) { return !value.IsUndefined() && !value.IsNull(); }
std::string Text(const Napi::Value& value) { return value.IsString() ? value.As<Napi::String>() : std::string(); }
int Integer(const Napi::Value& value, int otherwise = -1) {
  if (value.IsBoolean()) return value.As<Napi::Boolean>().Value() ? 1 : 0;
  return value.IsNumber() ? value.As<Napi::Number>().Int32Value() : otherwise;
}

template <class Visit>
void ForEach(const Napi::Value& list, Visit visit) {
  if (!list.IsArray()) return;
  auto array = list.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) {
    Napi::HandleScope scope(list.Env());
    visit(array.Get(i).As<Napi::Object>());
  }
}

// [[key, value], …]
std::vector<std::pair<std::string, std::string>> Pairs(const Napi::Value& list) {
  std::vector<std::pair<std::string, std::string>> pairs;
  ForEach(list, [&](Napi::Object pair) { pairs.emplace_back(Text(pair.Get(0u)), Text(pair.Get(1u))); });
  return pairs;
}

// {type, dims, and memory with offset and byteLength, or data, or strings}
ort::TensorSource SourceOf(const Napi::Object& object) {
  ort::TensorSource source;
  source.type = Integer(object.Get("type"), ort::kUndefined);
  ForEach(object.Get("dims"),
          [&](const Napi::Value& dim) { source.dims.push_back(dim.As<Napi::Number>().Int64Value()); });
  Napi::Value memory = object.Get("memory"), data = object.Get("data");
  if (Given(memory)) {
    source.buffer = FromExternal<DeviceBuffer>(memory);
    source.offset = SizeOf(object.Get("offset"));
    source.bytes = SizeOf(object.Get("byteLength"));
  } else if (Given(data)) {
    auto bytes = data.As<Napi::Uint8Array>();
    source.data = bytes.Data();
    source.bytes = bytes.ByteLength();
  }
  ForEach(object.Get("strings"), [&](const Napi::Value& text) { source.strings.push_back(Text(text)); });
  return source;
}

std::shared_ptr<Value> ValueOf(const Napi::Object& object) { return FromOptionalExternal<Value>(object.Get("value")); }

// ortLibrary(logSeverity, device): {path, version} of the loaded library. Throws a status object when there is none, or
// when it cannot run on `device` (undefined: not checked).
Napi::Value OrtLibrary(const Napi::CallbackInfo& info) {
  const ort::Library* library = nullptr;
  ThrowIfError(info.Env(), ort::OpenLibrary(Integer(info[0], 2), &library));
  ort::Place place;
  ort::Place::Parse(Text(info[1]), &place);
  ThrowIfError(info.Env(), ort::CheckProvider(place));
  return TextsToJs(info.Env(), {{"path", library->path}, {"version", library->version}});
}

ort::SessionConfig ConfigOf(const Napi::Object& object) {
  ort::SessionConfig config;
  ort::Place::Parse(Text(object.Get("device")), &config.place);
  config.model_name = Text(object.Get("modelName"));
  Napi::Value model = object.Get("model");
  if (model.IsString()) {
    config.model_path = Text(model);
  } else {
    auto bytes = model.As<Napi::Uint8Array>();
    config.model = bytes.Data();
    config.model_bytes = bytes.ByteLength();
  }
  ForEach(object.Get("weights"), [&](const Napi::Object& weight) {
    config.weights.push_back({Text(weight.Get("name")), SourceOf(weight), weight.Get("isInput").ToBoolean().Value()});
  });
  ForEach(object.Get("externalFiles"), [&](const Napi::Object& file) {
    auto bytes = file.Get("data").As<Napi::Uint8Array>();
    config.external_files.push_back({Text(file.Get("path")), bytes.Data(), bytes.ByteLength()});
  });
  config.intra_threads = Integer(object.Get("intraOpNumThreads"));
  config.inter_threads = Integer(object.Get("interOpNumThreads"));
  config.optimization = Integer(object.Get("optimization"));
  config.parallel = Integer(object.Get("parallel"));
  config.cpu_arena = Integer(object.Get("enableCpuMemArena"));
  config.memory_pattern = Integer(object.Get("enableMemPattern"));
  config.log_severity = Integer(object.Get("logSeverityLevel"));
  config.log_verbosity = Integer(object.Get("logVerbosityLevel"));
  config.log_id = Text(object.Get("logId"));
  config.optimized_path = Text(object.Get("optimizedModelFilePath"));
  config.profile_prefix = Text(object.Get("profileFilePrefix"));
  ForEach(object.Get("freeDimensions"), [&](Napi::Object pair) {
    config.free_dimensions.emplace_back(Text(pair.Get(0u)), pair.Get(1u).As<Napi::Number>().Int64Value());
  });
  config.entries = Pairs(object.Get("entries"));
  config.provider_options = Pairs(object.Get("providerOptions"));
  return config;
}

// ortCreateSession(config, control): Promise<External>. Arrays in `config` must not change until the promise settles.
Napi::Value OrtCreateSession(const Napi::CallbackInfo& info) {
  auto config = std::make_shared<ort::SessionConfig>(ConfigOf(info[0].As<Napi::Object>()));
  auto control = FromExternal<ort::Control>(info[1]);
  auto session = std::make_shared<std::shared_ptr<Session>>();
  OrtState* state = &StateOf(info);  // outlives the work: End() waits for it
  return RunOnSessionThread(
      info, control,
      [config, control, session, state] {
        FST_RETURN_IF_ERROR(Session::Create(*config, control.get(), session.get()));
        state->Track(*session);
        config->weights.clear();
        return Status::Ok();
      },
      [session](Napi::Env env) { return ToExternal<Session>(env, std::move(*session)); }, info[0]);
}

// isHole(path): Promise<boolean>
Napi::Value IsHoleJs(const Napi::CallbackInfo& info) {
  auto is_hole = std::make_shared<bool>(false);
  std::string path = info[0].As<Napi::String>();
  return AsyncWork::RunOnFile(
      info.Env(), [=] { return IsHole(path, is_hole.get()); },
      [is_hole](Napi::Env env) -> Napi::Value { return Napi::Boolean::New(env, *is_hole); });
}

Napi::Array PortsToJs(Napi::Env env, const std::vector<ort::Port>& ports) {
  Napi::Array list = Napi::Array::New(env, ports.size());
  for (uint32_t i = 0; i < ports.size(); ++i) {
    Napi::Object port = Napi::Object::New(env);
    port["name"] = Napi::String::New(env, ports[i].name);
    port["isTensor"] = Napi::Boolean::New(env, ports[i].tensor);
    port["type"] = Napi::Number::New(env, ports[i].type);
    Napi::Array shape = Napi::Array::New(env, ports[i].shape.size());
    for (uint32_t k = 0; k < ports[i].shape.size(); ++k) {
      const ort::Dimension& dim = ports[i].shape[k];
      if (dim.size >= 0)
        shape[k] = Napi::Number::New(env, static_cast<double>(dim.size));
      else
        shape[k] = Napi::String::New(env, dim.name);
    }
    port["shape"] = shape;
    list[i] = port;
  }
  return list;
}

// ortPorts(session): {inputs, outputs}
Napi::Value OrtPorts(const Napi::CallbackInfo& info) {
  auto& session = FromExternal<Session>(info[0]);
  Napi::Object result = Napi::Object::New(info.Env());
  result["inputs"] = PortsToJs(info.Env(), session->inputs());
  result["outputs"] = PortsToJs(info.Env(), session->outputs());
  return result;
}

// An ArrayBuffer over a host value's memory; it owns a reference.
Napi::Value BytesOf(Napi::Env env, const std::shared_ptr<Value>& value) {
  if (value->bytes() == 0) return Napi::ArrayBuffer::New(env, 0);
  return ArrayBufferOverOrCopy(env, value->data(), value->bytes(), value);
}

// {type, dims, and data: ArrayBuffer, or strings, or value with byteLength}
Napi::Value ResultToJs(Napi::Env env, const std::shared_ptr<Value>& value, bool on_device) {
  Napi::Object result = Napi::Object::New(env);
  result["type"] = Napi::Number::New(env, value->type());
  Napi::Array dims = Napi::Array::New(env, value->dims().size());
  for (uint32_t i = 0; i < value->dims().size(); ++i) {
    dims[i] = Napi::Number::New(env, static_cast<double>(value->dims()[i]));
  }
  result["dims"] = dims;
  if (value->type() == ort::kString) {
    std::vector<std::string> strings;
    ThrowIfError(env, value->Strings(&strings));
    Napi::Array list = Napi::Array::New(env, strings.size());
    for (uint32_t i = 0; i < strings.size(); ++i) list[i] = Napi::String::New(env, strings[i]);
    result["strings"] = list;
  } else if (on_device) {
    result["value"] = ToExternal<Value>(env, value, ExternalMemory::Count(env, value->bytes()));
    result["byteLength"] = Napi::Number::New(env, static_cast<double>(value->bytes()));
    result["device"] = Napi::String::New(env, value->place().ToString());
    result["pointer"] = Napi::BigInt::New(env, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(value->data())));
  } else {
    result["data"] = BytesOf(env, value);
  }
  return result;
}

// ortNewControl(): External, to stop one run or the creation of one session with
Napi::Value OrtNewControl(const Napi::CallbackInfo& info) {
  return ToExternal<ort::Control>(info.Env(), std::make_shared<ort::Control>());
}

// ortStop(control): ends what it controls as soon as ONNX Runtime checks its flag.
void OrtStop(const Napi::CallbackInfo& info) { FromExternal<ort::Control>(info[0])->Stop(); }

// ortRun(session, control, feeds, fetches, config): Promise<(result | null)[]>, null for fetches with memory of their
// own. Memory of feeds and fetches must not change until the promise settles.
Napi::Value OrtRun(const Napi::CallbackInfo& info) {
  auto session = FromExternal<Session>(info[0]);
  auto control = FromExternal<ort::Control>(info[1]);
  auto feeds = std::make_shared<std::vector<ort::Feed>>();
  ForEach(info[2], [&](const Napi::Object& feed) {
    feeds->push_back({Text(feed.Get("name")), ValueOf(feed), SourceOf(feed)});
  });
  auto fetches = std::make_shared<std::vector<ort::Fetch>>();
  ForEach(info[3], [&](const Napi::Object& fetch) {
    fetches->push_back({Text(fetch.Get("name")), Integer(fetch.Get("onDevice")) == 1, Integer(fetch.Get("given")) == 1,
                        ValueOf(fetch), SourceOf(fetch)});
  });
  auto object = info[4].As<Napi::Object>();
  ort::RunConfig config;
  config.log_severity = Integer(object.Get("logSeverityLevel"));
  config.log_verbosity = Integer(object.Get("logVerbosityLevel"));
  config.tag = Text(object.Get("tag"));
  config.entries = Pairs(object.Get("entries"));
  auto results = std::make_shared<std::vector<std::shared_ptr<Value>>>();
  Napi::Array keep = Napi::Array::New(info.Env());
  keep[0u] = info[2];
  keep[1u] = info[3];
  return RunOnSessionThread(
      info, control,
      [=] {
        Status status = session->Run(*feeds, *fetches, config, control.get(), results.get());
        feeds->clear();
        return status;
      },
      [results, fetches](Napi::Env env) -> Napi::Value {
        Napi::Array list = Napi::Array::New(env, results->size());
        for (uint32_t i = 0; i < results->size(); ++i) {
          const ort::Fetch& fetch = (*fetches)[i];
          list[i] = fetch.given ? env.Null() : ResultToJs(env, (*results)[i], fetch.on_device);
        }
        return list;
      },
      keep);
}

// ortCloseSession(session): Promise<void>, resolved when the session's memory is free.
Napi::Value OrtCloseSession(const Napi::CallbackInfo& info) {
  auto session = FromExternal<Session>(info[0]);
  std::function<void(Status)> finish;
  Napi::Value promise = AsyncWork::Pending(info.Env(), &finish, nullptr);
  Status posted =
      StateOf(info).work->Post(nullptr, [session, finish] { session->Close([finish] { finish(Status::Ok()); }); });
  if (!posted.ok()) finish(posted);
  return promise;
}

// ortReadValue(value): Promise<ArrayBuffer>, over the value itself in host memory, else over a copy.
Napi::Value OrtReadValue(const Napi::CallbackInfo& info) {
  auto value = FromExternal<Value>(info[0]);
  if (!value->place().cuda || value->bytes() == 0) {
    auto promise = Napi::Promise::Deferred::New(info.Env());
    promise.Resolve(BytesOf(info.Env(), value));
    return promise.Promise();
  }
  auto copy = std::make_shared<std::shared_ptr<Value>>();
  return RunOnSessionThread(
      info, nullptr, [value, copy] { return value->CopyToHost(copy.get()); },
      [copy](Napi::Env env) { return BytesOf(env, *copy); });
}

// ortReleaseValue(value): drops the handle's reference; may be called again.
void OrtReleaseValue(const Napi::CallbackInfo& info) { ReleaseExternal<Value>(info[0]); }

// ortDescribe(source: {type, dims, memory, offset, byteLength}): {pointer, device, name, id, vendorId, byteLength} as
// ONNX Runtime itself sees a value over this memory. Throws a status.
Napi::Value OrtDescribe(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::shared_ptr<Value> value;
  ThrowIfError(env, Value::Make(SourceOf(info[0].As<Napi::Object>()), "described", &value));
  const ort::Functions& api = ort::Ort();
  auto check = [env](ort::OrtStatus* status) { ThrowIfError(env, ort::FromOrt(status, "describe a value")); };
  const ort::MemoryInfo* memory = nullptr;
  const char* name = "";
  int id = -1;
  void* data = nullptr;
  size_t bytes = 0;
  check(api.GetTensorMemoryInfo(value->get(), &memory));
  check(api.MemoryInfoGetName(memory, &name));
  check(api.MemoryInfoGetId(memory, &id));
  check(api.GetTensorMutableData(value->get(), &data));
  if (api.GetTensorSizeInBytes != nullptr) check(api.GetTensorSizeInBytes(value->get(), &bytes));
  Napi::Object result = Napi::Object::New(env);
  result["pointer"] = Napi::BigInt::New(env, static_cast<uint64_t>(reinterpret_cast<uintptr_t>(data)));
  result["device"] = Napi::String::New(env, value->place().ToString());
  result["name"] = Napi::String::New(env, name);
  result["id"] = Napi::Number::New(env, id);
  result["vendorId"] = Napi::Number::New(env, api.MemoryInfoGetVendorId ? api.MemoryInfoGetVendorId(memory) : 0);
  result["byteLength"] = Napi::Number::New(env, static_cast<double>(bytes));
  return result;
}

// ortEndProcess(): to be called at the process's 'exit' event; see ort::EndProcess.
void OrtEndProcess(const Napi::CallbackInfo&) { ort::EndProcess(); }

}  // namespace

void ExportOrt(Napi::Env env, Napi::Object exports) {
  // Freed by the environment's cleanup hook, the last that uses it.
  auto* state = new OrtState;
  env.AddCleanupHook([state] {
    state->End();
    delete state;
  });
  Export<OrtCreateSession>(env, exports, "ortCreateSession", state);
  Export<OrtRun>(env, exports, "ortRun", state);
  Export<OrtCloseSession>(env, exports, "ortCloseSession", state);
  Export<OrtReadValue>(env, exports, "ortReadValue", state);
  Export<OrtEndProcess>(env, exports, "ortEndProcess");
  Export<OrtLibrary>(env, exports, "ortLibrary");
  Export<IsHoleJs>(env, exports, "isHole");
  Export<OrtPorts>(env, exports, "ortPorts");
  Export<OrtNewControl>(env, exports, "ortNewControl");
  Export<OrtStop>(env, exports, "ortStop");
  Export<OrtReleaseValue>(env, exports, "ortReleaseValue");
  Export<OrtDescribe>(env, exports, "ortDescribe");
}

}  // namespace fst
