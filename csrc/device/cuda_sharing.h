// GPU memory for other processes: of cuMemCreate, which a descriptor stands for. The driver frees it when the last
// mapping, handle and descriptor is gone, whichever process that belongs to; memory of cuMemAlloc, of which
// cuIpcGetMemHandle gives handles, goes with the process that allocated it, under those who use it. Hence tensors are
// copied into memory of their own. Source: CUDA Driver API reference, "Virtual Memory Management" (cuMemRelease) and
// cuIpcOpenMemHandle. Not measured on a real GPU.
#pragma once
#include <string>

#include "base/status.h"

namespace fst {

// The number of the GPU on a PCI bus, `likely` where several have that (parts of a GPU); -1 where this process sees
// none. DEVICE_UNAVAILABLE, CUDA_ERROR. Any thread but the event loop's.
Status FindCudaDevice(const std::string& bus_id, int likely, int* out);

}  // namespace fst
