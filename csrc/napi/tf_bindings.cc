// TensorFlow.js for JavaScript: elements converted to its dtypes, and memory that TensorFlow adopts.
#include "convert/element_convert.h"
#include "convert/float_convert.h"
#include "device/device.h"
#include "napi/async_work.h"
#include "napi/bindings.h"
#include "tf/adopt.h"

namespace fst {
namespace {

// convertElements(allocation, offset, count, how: {from: index of a dtype, to: 'float32' | 'int32', scale?, min?}):
// Promise<External>, of elements of 4 bytes. UNSUPPORTED_DTYPE, and as ConvertOnHost.
Napi::Value ConvertElementsJs(const Napi::CallbackInfo& info) {
  auto source = FromExternal<DeviceBuffer>(info[0]);
  const size_t count = SizeOf(info[2]);
  auto spec = info[3].As<Napi::Object>();
  const size_t from_index = spec.Get("from").As<Napi::Number>().Uint32Value();
  ElementConversion conversion;
  conversion.from = static_cast<DType>(from_index < kDTypeCount ? from_index : 0);
  conversion.to = spec.Get("to").As<Napi::String>().Utf8Value() == "int32" ? ConvertTo::kInt32 : ConvertTo::kFloat32;
  if (spec.Get("scale").IsNumber()) {
    conversion.quantized = true;
    conversion.scale = spec.Get("scale").As<Napi::Number>().DoubleValue();
    conversion.min = spec.Get("min").As<Napi::Number>().DoubleValue();
  }
  Status allowed = Status::Ok();
  if (from_index >= kDTypeCount || !CanConvertElements(conversion)) {
    allowed = Status(Code::UNSUPPORTED_DTYPE,
                     Format("%s has no conversion to %s", kDTypeNames[static_cast<size_t>(conversion.from)],
                            conversion.to == ConvertTo::kInt32 ? "int32" : "float32"));
  }
  return ConvertOnHost(
      info.Env(), {std::move(source), SizeOf(info[1]), count, BytesOf(conversion.from), sizeof(int32_t)}, allowed,
      [=](const void* elements, void* out) { return ConvertElements(conversion, elements, count, out); });
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
