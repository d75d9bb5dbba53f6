#include "ort/value.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "device/devices.h"
#include "device/host_memory.h"

namespace fst::ort {

bool Place::Parse(const std::string& name, Place* out) {
  if (name == "cpu") {
    *out = Place();
    return true;
  }
  if (name.rfind("cuda:", 0) != 0 || name.size() < 6) return false;
  char* end = nullptr;
  long ordinal = strtol(name.c_str() + 5, &end, 10);
  if (*end != '\0' || ordinal < 0 || ordinal > 9999) return false;
  out->cuda = true;
  out->ordinal = static_cast<int>(ordinal);
  return true;
}

std::string Place::ToString() const { return cuda ? Format("cuda:%d", ordinal) : "cpu"; }

int BitsOf(int type) {
  // In the order of ElementType, with types that have no name there.
  constexpr uint8_t kBits[] = {
      0,  32, 8, 8, 16, 16,  // none, float, uint8, int8, uint16, int16
      32, 64, 0, 8, 16, 64,  // int32, int64, string, bool, float16, double
      32, 64, 0, 0, 16,      // uint32, uint64, complex64, complex128, bfloat16
      8,  8,  8, 8,          // float8e4m3fn, float8e4m3fnuz, float8e5m2, float8e5m2fnuz
      4,  4,  4,             // uint4, int4, float4: two in a byte
  };
  return type >= 0 && static_cast<size_t>(type) < std::size(kBits) ? kBits[type] : 0;
}

Status MakeMemoryInfo(const Place& place, OwnedMemoryInfo* out) {
  const char* name = place.cuda ? "Cuda" : "Cpu";
  FST_RETURN_IF_ORT_ERROR(
      Ort().CreateMemoryInfo(name, kDeviceAllocator, place.cuda ? place.ordinal : 0, kMemDefault, out->out()),
      "describe the memory of " + place.ToString());
  if (place.cuda && Ort().MemoryInfoGetVendorId != nullptr) {
    uint32_t vendor = Ort().MemoryInfoGetVendorId(out->get());
    if (vendor != kNvidia) {
      return Status(Code::DEVICE_UNAVAILABLE,
                    Format("onnxruntime %s describes CUDA memory with vendor id 0x%X, expected 0x%X: this version of "
                           "it cannot take CUDA tensors",
                           TheLibrary().version.c_str(), vendor, kNvidia));
    }
  }
  return Status::Ok();
}

Status Value::Make(const TensorSource& source, const std::string& name, std::shared_ptr<Value>* out) {
  std::shared_ptr<Value> value(new Value);
  value->type_ = source.type;
  value->dims_ = source.dims;
  if (source.type == kString) {
    Allocator* allocator = nullptr;
    FST_RETURN_IF_ORT_ERROR(Ort().GetAllocatorWithDefaultOptions(&allocator), "get an allocator");
    FST_RETURN_IF_ORT_ERROR(
        Ort().CreateTensorAsOrtValue(allocator, source.dims.data(), source.dims.size(), kString, value->value_.out()),
        "make string tensor \"" + name + "\"");
    std::vector<const char*> texts;
    texts.reserve(source.strings.size());
    for (const std::string& text : source.strings) texts.push_back(text.c_str());
    FST_RETURN_IF_ORT_ERROR(Ort().FillStringTensor(value->get(), texts.data(), texts.size()),
                            "fill string tensor \"" + name + "\"");
    *out = std::move(value);
    return Status::Ok();
  }
  void* data = source.data;
  if (source.buffer != nullptr) {
    if (!Place::Parse(source.buffer->device().name(), &value->place_)) {
      return Status(Code::DEVICE_UNAVAILABLE, Format("tensor \"%s\" is on %s, which ONNX Runtime cannot address",
                                                     name.c_str(), source.buffer->device().name().c_str()));
    }
    if (source.offset > source.buffer->size() || source.bytes > source.buffer->size() - source.offset) {
      return Status(Code::INVALID_ARGUMENT, Format("tensor \"%s\" ends outside its allocation of %zu bytes",
                                                   name.c_str(), source.buffer->size()));
    }
    data = reinterpret_cast<void*>(source.buffer->address() + source.offset);
    value->kept_.push_back(source.buffer);
  }
  OwnedMemoryInfo memory;
  FST_RETURN_IF_ERROR(MakeMemoryInfo(value->place_, &memory));
  static char nothing;  // an empty tensor has no memory, and null is refused
  FST_RETURN_IF_ORT_ERROR(
      Ort().CreateTensorWithDataAsOrtValue(memory.get(), data != nullptr ? data : &nothing, source.bytes,
                                           source.dims.data(), source.dims.size(), source.type, value->value_.out()),
      "make a tensor over the memory of \"" + name + "\"");
  value->data_ = data;
  value->bytes_ = source.bytes;
  *out = std::move(value);
  return Status::Ok();
}

Status Value::Adopt(OwnedValue owned, const Place& place, const std::string& name, std::shared_ptr<Value>* out) {
  std::shared_ptr<Value> value(new Value);
  value->value_ = std::move(owned);
  value->place_ = place;
  FST_RETURN_IF_ERROR(value->Describe(name));
  *out = std::move(value);
  return Status::Ok();
}

Status Value::Describe(const std::string& name) {
  int is_tensor = 0;
  if (get() != nullptr) FST_RETURN_IF_ORT_ERROR(Ort().IsTensor(get(), &is_tensor), "describe output \"" + name + "\"");
  if (!is_tensor) {
    return Status(
        Code::UNSUPPORTED_DTYPE,
        Format("output \"%s\" is a sequence, a map or absent; only tensors can be handed out: fetch the other "
               "outputs by name",
               name.c_str()));
  }
  const std::string doing = "describe output \"" + name + "\"";
  OwnedTensorInfo info;
  FST_RETURN_IF_ORT_ERROR(Ort().GetTensorTypeAndShape(get(), info.out()), doing);
  FST_RETURN_IF_ORT_ERROR(Ort().GetTensorElementType(info.get(), &type_), doing);
  size_t rank = 0;
  FST_RETURN_IF_ORT_ERROR(Ort().GetDimensionsCount(info.get(), &rank), doing);
  dims_.resize(rank);
  FST_RETURN_IF_ORT_ERROR(Ort().GetDimensions(info.get(), dims_.data(), rank), doing);
  if (type_ == kString) return Status::Ok();
  int bits = BitsOf(type_);
  if (bits == 0) {
    return Status(
        Code::UNSUPPORTED_DTYPE,
        Format("output \"%s\" has the element type %d, which JavaScript cannot express", name.c_str(), type_));
  }
  size_t elements = 1;
  for (int64_t dim : dims_) elements *= static_cast<size_t>(dim);
  bytes_ = (elements * static_cast<size_t>(bits) + 7) / 8;
  FST_RETURN_IF_ORT_ERROR(Ort().GetTensorMutableData(get(), &data_), doing);
  return Status::Ok();
}

Status Value::CopyToHost(std::shared_ptr<Value>* out) const {
  TensorSource copy;
  copy.type = type_;
  copy.dims = dims_;
  copy.bytes = bytes_;
  if (place_.cuda && bytes_ > 0) {
    std::shared_ptr<Device> device, cpu;
    FST_RETURN_IF_ERROR(OpenDevice(place_.ToString(), false, &device));
    FST_RETURN_IF_ERROR(OpenDevice("cpu", false, &cpu));
    FST_RETURN_IF_ERROR(cpu->Allocate(bytes_, &copy.buffer));
    DeviceBuffer mine(device, reinterpret_cast<uint64_t>(data_), bytes_);
    FST_RETURN_IF_ERROR(device->Read(mine, 0, bytes_, reinterpret_cast<void*>(copy.buffer->address())));
    return Make(copy, "copy", out);
  }
  const size_t size = std::max<size_t>(bytes_, 1);
  void* memory = nullptr;
  FST_RETURN_IF_ERROR(AllocateHost(size, &memory));
  std::shared_ptr<void> owner(memory, [size](void* dead) { FreeHost(dead, size); });
  if (bytes_ > 0) memcpy(memory, data_, bytes_);
  copy.data = memory;
  FST_RETURN_IF_ERROR(Make(copy, "copy", out));
  (*out)->Keep(std::move(owner));
  return Status::Ok();
}

Status Value::Strings(std::vector<std::string>* out) const {
  size_t count = 1, length = 0;
  for (int64_t dim : dims_) count *= static_cast<size_t>(dim);
  FST_RETURN_IF_ORT_ERROR(Ort().GetStringTensorDataLength(get(), &length), "read strings");
  std::string text(length, '\0');
  std::vector<size_t> offsets(count);
  if (count > 0) {
    FST_RETURN_IF_ORT_ERROR(Ort().GetStringTensorContent(get(), text.data(), length, offsets.data(), count),
                            "read strings");
  }
  out->clear();
  for (size_t i = 0; i < count; ++i) {
    out->push_back(text.substr(offsets[i], (i + 1 < count ? offsets[i + 1] : length) - offsets[i]));
  }
  return Status::Ok();
}

}  // namespace fst::ort
