#include "ort/session.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <atomic>
#include <utility>

namespace fst::ort {
namespace {

Status ReadPort(const OrtSession* session, bool input, size_t index, Port* port) {
  const Functions& ort = Ort();
  const std::string doing = "read the session's inputs and outputs";
  Allocator* allocator = nullptr;
  FST_RETURN_IF_ORT_ERROR(ort.GetAllocatorWithDefaultOptions(&allocator), doing);
  char* name = nullptr;
  FST_RETURN_IF_ORT_ERROR(
      (input ? ort.SessionGetInputName : ort.SessionGetOutputName)(session, index, allocator, &name), doing);
  port->name = name;
  FST_RETURN_IF_ORT_ERROR(ort.AllocatorFree(allocator, name), doing);
  OwnedTypeInfo type;
  FST_RETURN_IF_ORT_ERROR(
      (input ? ort.SessionGetInputTypeInfo : ort.SessionGetOutputTypeInfo)(session, index, type.out()), doing);
  const TensorInfo* info = nullptr;  // owned by `type`
  FST_RETURN_IF_ORT_ERROR(ort.CastTypeInfoToTensorInfo(type.get(), &info), doing);
  port->tensor = info != nullptr;
  if (info == nullptr) return Status::Ok();
  FST_RETURN_IF_ORT_ERROR(ort.GetTensorElementType(info, &port->type), doing);
  size_t rank = 0;
  FST_RETURN_IF_ORT_ERROR(ort.GetDimensionsCount(info, &rank), doing);
  std::vector<int64_t> sizes(rank);
  std::vector<const char*> names(rank);
  FST_RETURN_IF_ORT_ERROR(ort.GetDimensions(info, sizes.data(), rank), doing);
  FST_RETURN_IF_ORT_ERROR(ort.GetSymbolicDimensions(info, names.data(), rank), doing);
  for (size_t i = 0; i < rank; ++i) port->shape.push_back({sizes[i], names[i] ? names[i] : ""});
  return Status::Ok();
}

std::string NamesOf(const std::vector<Port>& ports) {
  std::string names;
  for (const Port& port : ports) names += (names.empty() ? "\"" : ", \"") + port.name + "\"";
  return names;
}

bool Has(const std::vector<Port>& ports, const std::string& name) {
  return std::any_of(ports.begin(), ports.end(), [&](const Port& port) { return port.name == name; });
}

// An output keeps the arena that its session allocates from, whole, and JavaScript's collector knows only of the
// output. So it is copied out of there, up to this size: a copy costs little beside what computed it, and of larger
// ones few are left before the collector runs.
constexpr size_t kMaxCopied = size_t{16} << 20;

// Sessions that have memory of ONNX Runtime.
std::atomic<size_t> open_sessions{0};

// glibc keeps what is freed between blocks that stay: some 25 MiB after a session of 17 MiB of packed weights. It holds
// up other threads' allocations meanwhile (by the number of free blocks, mostly below a millisecond), so this is for
// when no session is left to use that memory.
void GiveFreeMemoryBack() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

bool Inside(const Value& inner, const Value& outer) {
  auto begin = static_cast<const char*>(outer.data());
  auto at = static_cast<const char*>(inner.data());
  return inner.bytes() > 0 && inner.place() == outer.place() && at >= begin && at < begin + outer.bytes();
}

}  // namespace

Status Session::Create(const SessionConfig& config, Control* control, std::shared_ptr<Session>* out) {
  // The last reference may be dropped on the event loop's thread, which must not wait until the session is freed. Of
  // one that was closed nothing is left to free.
  std::shared_ptr<Session> session(new Session, [](Session* dead) {
    if (dead->freed_ || !Background().Post(nullptr, [dead] { delete dead; }).ok()) delete dead;
  });
  session->place_ = config.place;
  OwnedSessionOptions options;
  FST_RETURN_IF_ERROR(MakeSessionOptions(config, &options, &session->weights_));
  const std::string doing = "create a session of " + config.model_name;
  const Env* env = TheLibrary().env;
  Status made;
  {
    Control::Attached attached(control, nullptr, options.get());
    if (control == nullptr || !control->stopped()) {
      made = FromOrt(config.model_path.empty()
                         ? Ort().CreateSessionFromArray(env, config.model, config.model_bytes, options.get(),
                                                        session->session_.out())
                         : Ort().CreateSession(env, config.model_path.c_str(), options.get(), session->session_.out()),
                     doing);
    }
  }
  if (session->session_.get() != nullptr) ++open_sessions;
  if (control != nullptr && control->stopped()) return Status(Code::CLOSED, "the creation of the session was ended");
  FST_RETURN_IF_ERROR(made);
  FST_RETURN_IF_ERROR(session->ReadPorts());
  session->FeedAlways(config.weights);
  *out = std::move(session);
  return Status::Ok();
}

Session::~Session() { Free(); }

Status Session::ReadPorts() {
  size_t inputs = 0, outputs = 0;
  FST_RETURN_IF_ORT_ERROR(Ort().SessionGetInputCount(session_.get(), &inputs), "count inputs");
  FST_RETURN_IF_ORT_ERROR(Ort().SessionGetOutputCount(session_.get(), &outputs), "count outputs");
  inputs_.resize(inputs);
  outputs_.resize(outputs);
  for (size_t i = 0; i < inputs; ++i) FST_RETURN_IF_ERROR(ReadPort(session_.get(), true, i, &inputs_[i]));
  for (const Port& port : inputs_) input_names_.insert(port.name);
  size_t overridable = 0;
  const std::string doing = "read the initializers that may be overridden";
  FST_RETURN_IF_ORT_ERROR(Ort().SessionGetOverridableInitializerCount(session_.get(), &overridable), doing);
  Allocator* allocator = nullptr;
  FST_RETURN_IF_ORT_ERROR(Ort().GetAllocatorWithDefaultOptions(&allocator), doing);
  for (size_t i = 0; i < overridable; ++i) {
    char* name = nullptr;
    FST_RETURN_IF_ORT_ERROR(Ort().SessionGetOverridableInitializerName(session_.get(), i, allocator, &name), doing);
    input_names_.insert(name);
    FST_RETURN_IF_ORT_ERROR(Ort().AllocatorFree(allocator, name), doing);
  }
  for (size_t i = 0; i < outputs; ++i) FST_RETURN_IF_ERROR(ReadPort(session_.get(), false, i, &outputs_[i]));
  return Status::Ok();
}

void Session::FeedAlways(const std::vector<Weight>& weights) {
  std::set<std::string> names;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!weights[i].is_input) continue;
    always_fed_.push_back({weights[i].name, weights_[i], {}});
    names.insert(weights[i].name);
  }
  auto is_fed = [&](const Port& port) { return names.count(port.name) > 0; };
  inputs_.erase(std::remove_if(inputs_.begin(), inputs_.end(), is_fed), inputs_.end());
}

Status Session::CheckPlace(const char* what, const std::string& name, const Value& value) const {
  if (!value.place().cuda || value.place() == place_) return Status::Ok();
  return Status(Code::INVALID_ARGUMENT,
                Format("%s \"%s\" is on %s, but the session runs on %s: expected a tensor there, or in host memory "
                       "(await tensor.toHost())",
                       what, name.c_str(), value.place().ToString().c_str(), place_.ToString().c_str()))
      .At({}, name);
}

Status Session::Run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, const RunConfig& config,
                    Control* control, std::vector<std::shared_ptr<Value>>* results) {
  OwnedRunOptions options;
  FST_RETURN_IF_ORT_ERROR(Ort().CreateRunOptions(options.out()), "make run options");
  Status status;
  auto set = [&](const char* name, OrtStatus* result) {
    Status done = FromOrt(result, std::string("set the run option ") + name);
    if (status.ok()) status = std::move(done);
  };
  if (config.log_severity >= 0) {
    set("logSeverityLevel", Ort().RunOptionsSetRunLogSeverityLevel(options.get(), config.log_severity));
  }
  if (config.log_verbosity >= 0) {
    set("logVerbosityLevel", Ort().RunOptionsSetRunLogVerbosityLevel(options.get(), config.log_verbosity));
  }
  if (!config.tag.empty()) set("tag", Ort().RunOptionsSetRunTag(options.get(), config.tag.c_str()));
  for (const auto& [key, value] : config.entries) {
    set(key.c_str(), Ort().AddRunConfigEntry(options.get(), key.c_str(), value.c_str()));
  }
  FST_RETURN_IF_ERROR(status);

  Status closed(Code::CLOSED, "the session was released");
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return closed;
    running_.insert(control);
  }
  {
    Control::Attached attached(control, options.get(), nullptr);
    status = control->stopped() ? Status(Code::CLOSED, "the run was ended before it began")
                                : RunBound(feeds, fetches, options.get(), results);
  }
  bool last;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    running_.erase(running_.find(control));
    last = closed_ && running_.empty();
    if (closed_ && !status.ok()) status = std::move(closed);
  }
  if (last) Free();
  return status;
}

Status Session::RunBound(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches, RunOptions* options,
                         std::vector<std::shared_ptr<Value>>* results) {
  OwnedBinding binding;
  FST_RETURN_IF_ORT_ERROR(Ort().CreateIoBinding(session_.get(), binding.out()), "bind inputs");
  // What a caller feeds takes the place of what was bound under its name before.
  for (const Feed& feed : always_fed_) {
    FST_RETURN_IF_ORT_ERROR(Ort().BindInput(binding.get(), feed.name.c_str(), feed.value->get()),
                            "bind weight \"" + feed.name + "\"");
  }
  std::vector<std::shared_ptr<Value>> held;  // every value that the run reads or writes, but weights
  for (const Feed& feed : feeds) {
    if (input_names_.count(feed.name) == 0) {
      return Status(Code::INVALID_ARGUMENT, Format("the model has no input \"%s\"; its inputs are %s",
                                                   feed.name.c_str(), NamesOf(inputs_).c_str()));
    }
    std::shared_ptr<Value> value = feed.value;
    if (value == nullptr) FST_RETURN_IF_ERROR(Value::Make(feed.source, feed.name, &value));
    FST_RETURN_IF_ERROR(CheckPlace("input", feed.name, *value));
    FST_RETURN_IF_ORT_ERROR(Ort().BindInput(binding.get(), feed.name.c_str(), value->get()),
                            "bind input \"" + feed.name + "\"");
    held.push_back(std::move(value));
  }
  OwnedMemoryInfo host, device;
  FST_RETURN_IF_ERROR(MakeMemoryInfo(Place(), &host));
  FST_RETURN_IF_ERROR(MakeMemoryInfo(place_, &device));
  for (const Fetch& fetch : fetches) {
    if (!Has(outputs_, fetch.name)) {
      return Status(Code::INVALID_ARGUMENT, Format("the model has no output \"%s\"; its outputs are %s",
                                                   fetch.name.c_str(), NamesOf(outputs_).c_str()));
    }
    std::shared_ptr<Value> value = fetch.value;
    if (fetch.given) {
      if (value == nullptr) FST_RETURN_IF_ERROR(Value::Make(fetch.source, fetch.name, &value));
      FST_RETURN_IF_ERROR(CheckPlace("output", fetch.name, *value));
      FST_RETURN_IF_ORT_ERROR(Ort().BindOutput(binding.get(), fetch.name.c_str(), value->get()),
                              "bind output \"" + fetch.name + "\"");
      held.push_back(std::move(value));
    } else {
      FST_RETURN_IF_ORT_ERROR(
          Ort().BindOutputToDevice(binding.get(), fetch.name.c_str(), fetch.on_device ? device.get() : host.get()),
          "bind output \"" + fetch.name + "\"");
    }
  }
  if (place_.cuda) FST_RETURN_IF_ORT_ERROR(Ort().SynchronizeBoundInputs(binding.get()), "copy inputs to the device");
  FST_RETURN_IF_ORT_ERROR(Ort().RunWithBinding(session_.get(), options, binding.get()), "run the model");
  if (place_.cuda) FST_RETURN_IF_ORT_ERROR(Ort().SynchronizeBoundOutputs(binding.get()), "wait for the outputs");
  return TakeResults(binding.get(), fetches, held, results);
}

Status Session::TakeResults(IoBinding* binding, const std::vector<Fetch>& fetches,
                            const std::vector<std::shared_ptr<Value>>& held,
                            std::vector<std::shared_ptr<Value>>* results) {
  Allocator* allocator = nullptr;
  FST_RETURN_IF_ORT_ERROR(Ort().GetAllocatorWithDefaultOptions(&allocator), "take outputs");
  OrtValue** values = nullptr;
  size_t count = 0;
  FST_RETURN_IF_ORT_ERROR(Ort().GetBoundOutputValues(binding, allocator, &values, &count), "take outputs");
  std::vector<OwnedValue> owned;
  owned.reserve(count);
  for (size_t i = 0; i < count; ++i) owned.emplace_back(values[i]);
  if (values != nullptr) FST_RETURN_IF_ORT_ERROR(Ort().AllocatorFree(allocator, values), "take outputs");
  if (count != fetches.size()) {
    return Status(Code::ORT_ERROR, Format("expected %zu outputs, ONNX Runtime gave %zu", fetches.size(), count));
  }
  for (size_t i = 0; i < count; ++i) {
    const Place place = fetches[i].on_device ? place_ : Place();
    std::shared_ptr<Value> value;
    FST_RETURN_IF_ERROR(Value::Adopt(std::move(owned[i]), place, fetches[i].name, &value));
    if (!fetches[i].given) FST_RETURN_IF_ERROR(Detach(fetches[i].on_device, held, &value));
    results->push_back(std::move(value));
  }
  return Status::Ok();
}

Status Session::Detach(bool on_device, const std::vector<std::shared_ptr<Value>>& held,
                       std::shared_ptr<Value>* value) const {
  std::shared_ptr<Value> original;
  for (const auto* values : {&weights_, &held}) {
    for (const auto& one : *values) {
      if (original == nullptr && Inside(**value, *one)) original = one;
    }
  }
  if ((*value)->place().cuda) {
    if (original != nullptr) (*value)->Keep(original);
    return Status::Ok();
  }
  const bool small = !on_device && (*value)->bytes() <= kMaxCopied && (*value)->type() != kString;
  if (original == nullptr && !small) return Status::Ok();
  std::shared_ptr<Value> copy;
  FST_RETURN_IF_ERROR((*value)->CopyToHost(&copy));
  *value = std::move(copy);
  return Status::Ok();
}

void Session::Close(std::function<void()> done) {
  bool idle;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    if (!freed_ && done) closing_.push_back(std::exchange(done, nullptr));
    idle = running_.empty();
    for (Control* control : running_) control->Stop();
  }
  if (done) return done();
  if (idle) Free();
}

void Session::Free() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (freeing_ || !running_.empty()) return;
    freeing_ = true;
  }
  const bool was_open = session_.get() != nullptr;
  session_.Reset(nullptr);
  always_fed_.clear();
  weights_.clear();
  if (was_open && --open_sessions == 0) GiveFreeMemoryBack();
  std::vector<std::function<void()>> done;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    freed_ = true;
    done.swap(closing_);
  }
  for (auto& callback : done) callback();
}

}  // namespace fst::ort
