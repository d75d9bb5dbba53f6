#include "device/devices.h"

#include <cstdio>
#include <map>
#include <mutex>
#include <optional>

#include "device/cuda_device.h"

namespace fst {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Device>> devices;
  std::optional<FakeDevice::Options> fake;
};

Registry& TheRegistry() {
  static Registry* registry = new Registry;
  return *registry;
}

}  // namespace

Status OpenDevice(const std::string& name, bool unified, std::shared_ptr<Device>* out, bool near) {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  std::string key = unified ? name + " unified" : name;
  if (!near && name != "cpu") key += " anywhere";
  std::shared_ptr<Device>& device = registry.devices[key];
  if (device == nullptr) {
    int ordinal = -1;
    if (name == "cpu") {
      device = std::make_shared<HostDevice>();
    } else if (sscanf(name.c_str(), "cuda:%d", &ordinal) != 1) {
      return Status(Code::DEVICE_UNAVAILABLE,
                    Format("there is no device \"%s\", expected \"cpu\" or \"cuda:N\"", name.c_str()));
    } else if (registry.fake) {
      device = std::make_shared<FakeDevice>(name, *registry.fake);
    } else {
      FST_RETURN_IF_ERROR(CudaDevice::Open(ordinal, unified, &device, near));
    }
  }
  *out = device;
  return Status::Ok();
}

void UseFakeDevices(const FakeDevice::Options* options) {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  for (auto entry = registry.devices.begin(); entry != registry.devices.end();) {
    entry = entry->first == "cpu" ? std::next(entry) : registry.devices.erase(entry);
  }
  registry.fake.reset();
  if (options != nullptr) registry.fake = *options;
}

}  // namespace fst
