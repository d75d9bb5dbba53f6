// The devices of this process by name.
#pragma once
#include "device/device.h"
#include "device/fake_device.h"

namespace fst {

// Any thread but the event loop's: opening a GPU takes time. Each device is opened once a process and kept. `name` is
// "cpu" or "cuda:N"; `unified` asks for a GPU's memory that the host can fill (see cuda_device.h). DEVICE_UNAVAILABLE
// says what was tried.
Status OpenDevice(const std::string& name, bool unified, std::shared_ptr<Device>* out);

// For tests: from now on every "cuda:N" is a FakeDevice with these options; null ends it.
void UseFakeDevices(const FakeDevice::Options* options);

}  // namespace fst
