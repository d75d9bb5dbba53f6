// The devices of this process, by name.
#pragma once
#include "device/device.h"
#include "device/fake_device.h"

namespace fst {

// Any thread but the event loop's: opening a GPU takes long. Each device is opened once and kept until the process
// ends. `name` is "cpu" or "cuda:N"; of a GPU, `unified` asks for memory that the host can fill, and without `near` its
// numa_node() is -1: see CudaDevice::Open. DEVICE_UNAVAILABLE says what was tried.
Status OpenDevice(const std::string& name, bool unified, std::shared_ptr<Device>* out, bool near = true);

// For tests: from now on every "cuda:N" is a FakeDevice with these options; null goes back to real ones.
void UseFakeDevices(const FakeDevice::Options* options);

}  // namespace fst
