// An op that hands our memory to TensorFlow as a tensor. Only tfjs-node itself can add to its table of tensors, but it
// runs any registered op by name: ours takes a token, and its output lies over the memory that the token stands for.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "tf/c_api.h"

namespace fst::tf {

// Memory on its way into TensorFlow, with a reference to its allocation.
struct Adoptable {
  std::shared_ptr<DeviceBuffer> allocation;
  uint64_t address = 0;  // inside `allocation`
  size_t length = 0;     // bytes, > 0
  TF_DataType dtype = 0;
  std::vector<int64_t> shape;  // of `length` bytes
};

// Registers the op and its kernels (CPU and GPU) with one library, once per process; later calls return the same name,
// after a failure they try again. Any thread. `op` is the name for executeOp: input token: int32 in host memory,
// attribute T: type, output: T. DEVICE_UNAVAILABLE.
Status Register(const Api& api, std::string* op);
// The same for the TensorFlow that this process has loaded.
Status RegisterLoaded(std::string* op, std::string* version, std::string* library);

// Makes a token, which the op takes once unless Release gets it first. INVALID_ARGUMENT when shape, dtype and length do
// not agree: TensorFlow would abort the process. Any thread, after Register().
Status Offer(Adoptable adoptable, int32_t* token);
// Releases memory that the op did not take; does nothing for any other token. Any thread.
void Release(int32_t token);
// How many tokens are neither taken nor released. For tests.
size_t Pending();

}  // namespace fst::tf
