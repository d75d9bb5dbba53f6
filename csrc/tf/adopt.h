// An op that hands our memory to TensorFlow as a tensor. Nothing outside tfjs-node can put a tensor into its table, but
// it runs any registered op by name: ours takes a token, and its output lies over the memory that the token stands for.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device.h"
#include "tf/c_api.h"

namespace fst::tf {

// Memory on its way into TensorFlow. Holds a reference on its allocation.
struct Adoptable {
  std::shared_ptr<DeviceBuffer> memory;
  uint64_t address = 0;  // inside `memory`
  size_t length = 0;     // bytes, > 0
  TF_DataType dtype = 0;
  std::vector<int64_t> shape;  // of `length` bytes
};

// Registers the op and its kernels (CPU and GPU) with one library. Process-wide, once; later calls give the same answer
// and a failure is tried again. Any thread. `op` is the name for executeOp: input token: int32 in host memory,
// attribute T: type, output: T. DEVICE_UNAVAILABLE.
Status Register(const Api& api, std::string* op);
// The same for the TensorFlow that this process has loaded.
Status RegisterLoaded(std::string* op, std::string* version, std::string* library);

// A token, which the op takes once, or Release gives back. INVALID_ARGUMENT where shape, dtype and length do not agree:
// TensorFlow would abort the process. Any thread, after Register().
Status Offer(Adoptable adoptable, int32_t* token);
// Lets go of what the op did not take. A token that is not there is fine. Any thread.
void Release(int32_t token);
// Tokens that are neither taken nor released.
size_t Pending();

}  // namespace fst::tf
