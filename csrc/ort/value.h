// OrtValues over this package's memory, host or CUDA, and those that ONNX Runtime allocates itself.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "ort/library.h"

namespace fst::ort {

// The memory that a value is in: "cpu", or "cuda:N" with ordinal N.
struct Place {
  bool cuda = false;
  int ordinal = 0;
  // Parses a device's name; false, with *out unchanged, for any other.
  static bool Parse(const std::string& name, Place* out);
  std::string ToString() const;
  bool operator==(const Place& other) const { return cuda == other.cuda && (!cuda || ordinal == other.ordinal); }
};

// NVIDIA's PCI vendor id, by which ONNX Runtime tells CUDA memory from other GPUs'.
constexpr uint32_t kNvidia = 0x10DE;

// ONNX Runtime's description of a place's memory. DEVICE_UNAVAILABLE when it describes CUDA memory as not NVIDIA's.
Status MakeMemoryInfo(const Place& place, OwnedMemoryInfo* out);

// A tensor of the caller. Its elements are in one of buffer, data and strings.
struct TensorSource {
  int type = kUndefined;
  std::vector<int64_t> dims;
  std::shared_ptr<DeviceBuffer> buffer;
  uint64_t offset = 0;   // into `buffer`, in bytes
  void* data = nullptr;  // host memory that the caller keeps as long as the value exists
  size_t bytes = 0;      // in `buffer` or `data`
  std::vector<std::string> strings;
};

// An OrtValue, where its elements are, and what owns their memory.
class Value {
 public:
  // Over the source's memory, without a copy; owns a reference to its buffer. INVALID_ARGUMENT when the memory is too
  // small for the shape; DEVICE_UNAVAILABLE for a device that ONNX Runtime cannot address.
  static Status Make(const TensorSource& source, const std::string& name, std::shared_ptr<Value>* out);
  // Owns an output of a run. UNSUPPORTED_DTYPE when it is no tensor.
  static Status Adopt(OwnedValue owned, const Place& place, const std::string& name, std::shared_ptr<Value>* out);

  OrtValue* get() const { return value_.get(); }
  const Place& place() const { return place_; }
  int type() const { return type_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  void* data() const { return data_; }     // null for strings
  size_t bytes() const { return bytes_; }  // 0 for strings
  // Copies the elements into host memory of their own. Blocks; not for strings. The device's errors.
  Status CopyToHost(std::shared_ptr<Value>* out) const;
  // Elements of a string tensor.
  Status Strings(std::vector<std::string>* out) const;
  // Keeps an object alive as long as this value.
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

// Bits of an element; 0 for strings and for types that this package does not know.
int BitsOf(int type);

}  // namespace fst::ort
