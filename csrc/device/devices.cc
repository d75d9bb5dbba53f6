#include "device/devices.h"

#include <map>
#include <mutex>
#include <optional>

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

Status OpenDevice(const std::string& name, std::shared_ptr<Device>* out) {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  std::shared_ptr<Device>& device = registry.devices[name];
  if (device == nullptr) {
    if (name == "cpu") {
      device = std::make_shared<HostDevice>();
    } else if (registry.fake) {
      device = std::make_shared<FakeDevice>(name, *registry.fake);
    } else {
      return Status(
          Code::DEVICE_UNAVAILABLE,
          Format("device \"%s\" is not there yet: this version loads into host memory only; use device: 'cpu'",
                 name.c_str()));
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
