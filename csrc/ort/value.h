// OrtValues over memory of this package, host or CUDA, and those that ONNX Runtime makes itself.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "ort/library.h"

namespace fst::ort {

// Where a value's bytes are: "cpu", or "cuda:N" with ordinal N.
struct Place {
  bool cuda = false;
  int ordinal = 0;
  // A device's name; false for what is neither.
  static bool Parse(const std::string& name, Place* out);
  std::string ToString() const;
  bool operator==(const Place& other) const { return cuda == other.cuda && (!cuda || ordinal == other.ordinal); }
};

// NVIDIA's PCI vendor id: what ONNX Runtime tells CUDA memory from other GPUs' by.
constexpr uint32_t kNvidia = 0x10DE;

// The description that ONNX Runtime has of a place's memory. On CUDA its vendor id was checked.
Status MakeMemoryInfo(const Place& place, OwnedMemoryInfo* out);

// A tensor as it comes from outside. One of buffer, data and strings says where its elements are.
struct TensorSource {
  int type = kUndefined;
  std::vector<int64_t> dims;
  std::shared_ptr<DeviceBuffer> buffer;  // with `offset`
  uint64_t offset = 0;
  void* data = nullptr;  // host memory that the caller keeps while the value lives
  size_t bytes = 0;      // of buffer or data
  std::vector<std::string> strings;
};

// An OrtValue, where its elements are, and what they need to stay there.
class Value {
 public:
  // Over the source's memory, which is not touched: address, size and device are those of the source. INVALID_ARGUMENT
  // when it is too small for the shape; DEVICE_UNAVAILABLE for a device that ONNX Runtime cannot name.
  static Status Make(const TensorSource& source, const std::string& name, std::shared_ptr<Value>* out);
  // Takes over what a run gave. UNSUPPORTED_DTYPE when it is no tensor.
  static Status Adopt(OwnedValue value, const Place& place, const std::string& name, std::shared_ptr<Value>* out);

  OrtValue* get() const { return value_.get(); }
  const Place& place() const { return place_; }
  int type() const { return type_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  void* data() const { return data_; }     // null for strings
  size_t bytes() const { return bytes_; }  // 0 for strings
  // A value in host memory with the same elements. Blocking; not for strings. What the device's copy answers.
  Status CopyToHost(std::shared_ptr<Value>* out) const;
  // Elements of a string tensor.
  Status Strings(std::vector<std::string>* out) const;
  // Keeps something alive as long as this value.
  void Keep(std::shared_ptr<void> what) { kept_.push_back(std::move(what)); }

 private:
  Value() = default;
  Status Describe(const std::string& name);

  Place place_;
  int type_ = kUndefined;
  std::vector<int64_t> dims_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::vector<std::shared_ptr<void>> kept_;  // destroyed after value_
  OwnedValue value_;
};

// Bits of an element; 0 for strings and types that this package does not know.
int BitsOf(int type);

}  // namespace fst::ort
