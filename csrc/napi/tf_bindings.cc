// TensorFlow.js for JavaScript: elements converted to its dtypes, and memory that TensorFlow adopts.
#include "convert/element_convert.h"
#include "device/device.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "tf/adopt.h"

namespace fst {
namespace {

// convertElements(allocation, offset, count, how: {from: index of a dtype, to: 'float32' | 'int32', scale?, min?}):
// Promise<External>, a host allocation of 4 * count bytes. count > 0. UNSUPPORTED_DTYPE, OUT_OF_HOST_MEMORY,
// DEVICE_UNAVAILABLE for memory that the host cannot read.
Napi::Value ConvertElementsJs(const Napi::CallbackInfo& info) {
  auto source = FromExternal<DeviceBuffer>(info[0]);
  const size_t offset = SizeOf(info[1]);
  const size_t count = SizeOf(info[2]);
  auto spec = info[3].As<Napi::Object>();
  ElementConversion conversion;
  conversion.from = static_cast<DType>(spec.Get("from").As<Napi::Number>().Uint32Value());
  conversion.to = spec.Get("to").As<Napi::String>().Utf8Value() == "int32" ? ConvertTo::kInt32 : ConvertTo::kFloat32;
  if (spec.Get("scale").IsNumber()) {
    conversion.quantized = true;
    conversion.scale = spec.Get("scale").As<Napi::Number>().DoubleValue();
    conversion.min = spec.Get("min").As<Napi::Number>().DoubleValue();
  }
  auto result = std::make_shared<std::shared_ptr<DeviceBuffer>>();
  return AsyncWork::Run(
      info.Env(),
      [=]() -> Status {
        if (!source->device().host_accessible()) {
          return Status(Code::DEVICE_UNAVAILABLE, Format("elements are converted in host memory, these are on %s",
                                                         source->device().name().c_str()));
        }
        if (!CanConvertElements(conversion)) {
          return Status(Code::UNSUPPORTED_DTYPE,
                        Format("%s has no conversion to %s", kDTypeNames[static_cast<size_t>(conversion.from)],
                               conversion.to == ConvertTo::kInt32 ? "int32" : "float32"));
        }
        FST_RETURN_IF_ERROR(source->device().CheckAvailable(4 * count));
        FST_RETURN_IF_ERROR(source->device().Allocate(4 * count, result.get()));
        return ConvertElements(conversion, reinterpret_cast<const char*>(source->address()) + offset, count,
                               reinterpret_cast<void*>((*result)->address()));
      },
      [result](Napi::Env env) { return AllocationToJs(env, std::move(*result)); });
}

// tfRegister(): {op, version, library}; throws a status object (DEVICE_UNAVAILABLE).
Napi::Value TfRegister(const Napi::CallbackInfo& info) {
  std::string op, version, library;
  ThrowIfError(info.Env(), tf::RegisterLoaded(&op, &version, &library));
  return TextsToJs(info.Env(), {{"op", op}, {"version", version}, {"library", library}});
}

// tfAdopt(allocation, offset, length, dtype: TF_DataType, shape: Float64Array): token; throws INVALID_ARGUMENT.
Napi::Value TfAdopt(const Napi::CallbackInfo& info) {
  tf::Adoptable adoptable;
  adoptable.allocation = FromExternal<DeviceBuffer>(info[0]);
  adoptable.address = adoptable.allocation->address() + SizeOf(info[1]);
  adoptable.length = SizeOf(info[2]);
  adoptable.dtype = info[3].As<Napi::Number>().Int32Value();
  auto shape = info[4].As<Napi::Float64Array>();
  for (size_t i = 0; i < shape.ElementLength(); ++i) adoptable.shape.push_back(static_cast<int64_t>(shape[i]));
  int32_t token;
  ThrowIfError(info.Env(), tf::Offer(std::move(adoptable), &token));
  return Napi::Number::New(info.Env(), token);
}

// tfRelease(token): releases memory that the op did not take.
void TfRelease(const Napi::CallbackInfo& info) { tf::Release(info[0].As<Napi::Number>().Int32Value()); }

}  // namespace

void ExportTensorFlow(Napi::Env env, Napi::Object exports) {
  Export<ConvertElementsJs>(env, exports, "convertElements");
  Export<TfRegister>(env, exports, "tfRegister");
  Export<TfAdopt>(env, exports, "tfAdopt");
  Export<TfRelease>(env, exports, "tfRelease");
}

}  // namespace fst
