#include "tf/adopt.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "base/task_pool.h"

namespace fst::tf {
namespace {

// The least alignment at which TF_NewTensor aliases memory (EIGEN_MAX_ALIGN_BYTES). Below it copies, on the host.
constexpr uint64_t kTensorFlowAlignment = 64;

struct State {
  std::mutex mutex;
  // Set once, before the op can run.
  Api api;
  std::string op;
  // Guarded by `mutex`.
  bool registered = false;
  int registrations = 0;
  int32_t last_token = 0;
  std::map<int32_t, Adoptable> pending;
};

// Never destroyed: TensorFlow's threads may still run at exit.
State& Global() {
  static auto* state = new State;
  return *state;
}

// TensorFlow's reference to an allocation.
using Held = std::shared_ptr<DeviceBuffer>;

// GPU memory that TensorFlow has released. TensorFlow frees in the order in which work is queued, not when it is done:
// kernels that read the memory may still be running. So the device is synchronized before the memory is reused, on
// another thread than TensorFlow's, and once for all that was released meanwhile, such as the weights of a model.
class DeviceReleases {
 public:
  void Add(Held held) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(std::move(held));
      if (waiting_.size() > 1) return;  // a Drain was posted for the first one
    }
    if (!thread_.Post([this] { Drain(); }).ok()) Drain();
  }

 private:
  void Drain() {
    std::vector<Held> released;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      released.swap(waiting_);
    }
    std::set<Device*> waited;
    for (const Held& held : released) {
      Device& device = held->device();
      // After two failures the device is lost and runs nothing any more. Freeing synchronizes anyway.
      if (waited.insert(&device).second && !device.Synchronize().ok()) (void)device.Synchronize();
    }
  }

  std::mutex mutex_;
  std::vector<Held> waiting_;
  TaskPool thread_{"fst-tf-free", 1};
};

DeviceReleases& Releases() {
  static auto* releases = new DeviceReleases;
  return *releases;
}

// Any thread. Nothing uses host memory any more when TensorFlow releases it.
void ReleaseHost(void*, size_t, void* held) { delete static_cast<Held*>(held); }

void ReleaseDevice(void*, size_t, void* argument) {
  auto* held = static_cast<Held*>(argument);
  Releases().Add(std::move(*held));
  delete held;
}

void Fail(const Api& api, TF_OpKernelContext* context, TF_Status* status, TF_Code code, const std::string& message) {
  api.SetStatus(status, code, message.c_str());
  api.OpKernelContext_Failure(context, status);
}

void SetOutput(const Api& api, TF_OpKernelContext* context, TF_Tensor* tensor, TF_Status* status) {
  api.SetOutput(context, 0, tensor, status);
  if (api.GetCode(status) != kOk) api.OpKernelContext_Failure(context, status);
}

// The output over the memory itself.
void Alias(const Api& api, TF_OpKernelContext* context, Adoptable adoptable, bool on_host, TF_Status* status) {
  auto* held = new Held(std::move(adoptable.allocation));
  TF_Tensor* tensor = api.NewTensor(adoptable.dtype, adoptable.shape.data(), static_cast<int>(adoptable.shape.size()),
                                    reinterpret_cast<void*>(adoptable.address), adoptable.length,
                                    on_host ? ReleaseHost : ReleaseDevice, held);
  // Documented for a shape and a length that disagree, which Offer() has refused. `held` is still ours.
  if (tensor == nullptr) {
    delete held;
    return Fail(api, context, status, kInternal, "TF_NewTensor made no tensor");
  }
  SetOutput(api, context, tensor, status);
  api.DeleteTensor(tensor);  // the output has its own reference
}

// The output in TensorFlow's memory, with one copy on the device.
void Copy(const Api& api, TF_OpKernelContext* context, const Adoptable& adoptable, TF_Status* status) {
  TF_Tensor* tensor = api.AllocateOutput(context, 0, adoptable.dtype, adoptable.shape.data(),
                                         static_cast<int>(adoptable.shape.size()), adoptable.length, status);
  if (api.GetCode(status) != kOk || tensor == nullptr) {
    if (api.GetCode(status) == kOk) api.SetStatus(status, kInternal, "TF_AllocateOutput made no tensor");
    return api.OpKernelContext_Failure(context, status);
  }
  Device& device = adoptable.allocation->device();
  // A view of TensorFlow's memory, which this DeviceBuffer does not own.
  DeviceBuffer output(adoptable.allocation->shared_device(), reinterpret_cast<uint64_t>(api.TensorData(tensor)),
                      adoptable.length);
  // Kernels that were queued before TensorFlow allocated this memory may still use it.
  Status copied = device.Synchronize();
  if (copied.ok()) {
    const CopyRegion region{adoptable.address - adoptable.allocation->address(), 0, adoptable.length};
    copied = device.Copy(*adoptable.allocation, output, &region, 1);
  }
  if (!copied.ok()) {
    Fail(api, context, status, kInternal, copied.message());
  } else if (atoi(api.Version()) < 2) {
    // 1.x allocates an output without setting it; 2.x fails on a second SetOutput.
    SetOutput(api, context, tensor, status);
  }
  api.DeleteTensor(tensor);
}

void Compute(TF_OpKernelContext* context, bool on_host) {
  const Api& api = Global().api;
  // The functions were found before the kernel was registered. NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage)
  TF_Status* status = api.NewStatus();
  TF_Tensor* input = nullptr;
  api.GetInput(context, 0, &input, status);
  if (api.GetCode(status) != kOk) {
    api.OpKernelContext_Failure(context, status);
    return api.DeleteStatus(status);
  }
  int32_t token =
      api.TensorByteSize(input) == sizeof(int32_t) ? *static_cast<const int32_t*>(api.TensorData(input)) : 0;
  api.DeleteTensor(input);

  Adoptable adoptable;
  bool found = false;
  {
    State& state = Global();
    std::lock_guard<std::mutex> lock(state.mutex);
    auto at = state.pending.find(token);
    if ((found = at != state.pending.end())) {
      adoptable = std::move(at->second);
      state.pending.erase(at);
    }
  }
  // A wrong dtype, or host memory in a GPU kernel, would abort the process later.
  TF_DataType expected = api.ExpectedOutputDataType(context, 0);
  if (!found) {
    Fail(api, context, status, kInvalidArgument, Format("token %d stands for no memory: each is taken once", token));
  } else if (expected != adoptable.dtype) {
    Fail(api, context, status, kInvalidArgument,
         Format("the memory holds TF_DataType %d, but the op was asked for %d", adoptable.dtype, expected));
  } else if (on_host ? !adoptable.allocation->device().host_accessible()
                     : adoptable.allocation->device().name() == "cpu") {
    Fail(api, context, status, kInvalidArgument,
         Format("the memory is on %s, but TensorFlow runs the op on %s", adoptable.allocation->device().name().c_str(),
                on_host ? "the host" : "a GPU"));
  } else if (on_host || adoptable.address % kTensorFlowAlignment == 0) {
    Alias(api, context, std::move(adoptable), on_host, status);
  } else {
    Copy(api, context, adoptable, status);
  }
  api.DeleteStatus(status);
}

void ComputeOnHost(void*, TF_OpKernelContext* context) { Compute(context, true); }
void ComputeOnGpu(void*, TF_OpKernelContext* context) { Compute(context, false); }

void UnknownShape(TF_ShapeInferenceContext* context, TF_Status* status) {
  // NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): as in Compute
  Global().api.ShapeInferenceContextSetUnknownShape(context, status);
}

// DEVICE_UNAVAILABLE when a registration fails; `what` names it.
template <class Register>
Status Registered(const Api& api, const std::string& what, Register call) {
  TF_Status* status = api.NewStatus();
  call(status);
  Status result;
  if (api.GetCode(status) != kOk)
    result = Status(Code::DEVICE_UNAVAILABLE, "TensorFlow refused " + what + ": " + api.Message(status));
  api.DeleteStatus(status);
  return result;
}

Status RegisterKernel(const Api& api, const std::string& op, const char* device,
                      void (*compute)(void*, TF_OpKernelContext*)) {
  // The kernel has no state.
  TF_KernelBuilder* builder = api.NewKernelBuilder(op.c_str(), device, nullptr, compute, nullptr);
  api.KernelBuilder_HostMemory(builder, "token");
  return Registered(api, std::string("the kernel for ") + device,
                    [&](TF_Status* status) { api.RegisterKernelBuilder((op + device).c_str(), builder, status); });
}

Status RegisterOp(const Api& api, const std::string& op) {
  TF_OpDefinitionBuilder* builder = api.NewOpDefinitionBuilder(op.c_str());
  api.OpDefinitionBuilderAddAttr(builder, "T: type");
  api.OpDefinitionBuilderAddInput(builder, "token: int32");
  api.OpDefinitionBuilderAddOutput(builder, "output: T");
  api.OpDefinitionBuilderSetIsStateful(builder, true);  // never folded or shared: each token is taken once
  api.OpDefinitionBuilderSetShapeInferenceFunction(builder, UnknownShape);
  FST_RETURN_IF_ERROR(Registered(api, "the op", [&](TF_Status* status) { api.RegisterOpDefinition(builder, status); }));
  FST_RETURN_IF_ERROR(RegisterKernel(api, op, "CPU", ComputeOnHost));
  return RegisterKernel(api, op, "GPU", ComputeOnGpu);
}

}  // namespace

Status Register(const Api& api, std::string* op) {
  State& state = Global();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.registered) {
    // Unique among copies of this library in the process (by address) and among tries (by count).
    std::string name =
        Format("FastsafetensorsAdopt%llx%d", static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(&state)),
               ++state.registrations);
    state.api = api;
    FST_RETURN_IF_ERROR(RegisterOp(state.api, name));
    state.op = std::move(name);
    state.registered = true;
  }
  *op = state.op;
  return Status::Ok();
}

Status RegisterLoaded(std::string* op, std::string* version, std::string* library) {
  Api api;
  FST_RETURN_IF_ERROR(FindTensorFlow(&api));
  FST_RETURN_IF_ERROR(Register(api, op));
  *version = Global().api.Version();
  *library = Global().api.library;
  return Status::Ok();
}

Status Offer(Adoptable adoptable, int32_t* token) {
  State& state = Global();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.registered) return Status(Code::INVALID_ARGUMENT, "the op is not registered yet");
  size_t element = state.api.DataTypeSize(adoptable.dtype);
  unsigned __int128 bytes = element;
  for (int64_t size : adoptable.shape) {
    if (size < 0) return Status(Code::INVALID_ARGUMENT, "a shape has a negative size");
    bytes *= static_cast<uint64_t>(size);
    if (bytes > UINT64_MAX) break;
  }
  const DeviceBuffer& allocation = *adoptable.allocation;
  if (element == 0 || adoptable.length == 0 || bytes != adoptable.length) {
    return Status(
        Code::INVALID_ARGUMENT,
        Format("%zu bytes are no tensor of the given shape with elements of %zu bytes", adoptable.length, element));
  }
  if (adoptable.address < allocation.address() || adoptable.length > allocation.size() ||
      adoptable.address - allocation.address() > allocation.size() - adoptable.length) {
    return Status(Code::INVALID_ARGUMENT, "the tensor reaches outside its memory");
  }
  do {  // 0 is never a token
    state.last_token = state.last_token == INT32_MAX ? 1 : state.last_token + 1;
  } while (state.pending.count(state.last_token) > 0);
  *token = state.last_token;
  state.pending.emplace(*token, std::move(adoptable));
  return Status::Ok();
}

void Release(int32_t token) {
  Adoptable released;  // freed outside the lock
  State& state = Global();
  std::lock_guard<std::mutex> lock(state.mutex);
  auto at = state.pending.find(token);
  if (at == state.pending.end()) return;
  released = std::move(at->second);
  state.pending.erase(at);
}

size_t Pending() {
  State& state = Global();
  std::lock_guard<std::mutex> lock(state.mutex);
  return state.pending.size();
}

}  // namespace fst::tf
