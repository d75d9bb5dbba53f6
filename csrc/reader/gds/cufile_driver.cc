#include "reader/gds/cufile_driver.h"

#include <map>
#include <mutex>

namespace fst::cufile {
namespace {

struct Driver {
  std::mutex mutex;
  const CufileApi* open = nullptr;
  bool ours = false;  // not opened by another library of the process
};

Driver& TheDriver() {
  static auto* driver = new Driver;
  return *driver;
}

struct Registration {
  int users = 0;
  bool registered = false;
};

struct Buffers {
  std::mutex mutex;  // held during calls of cuFile: a range must not be registered while it is being deregistered
  std::map<uint64_t, Registration> by_base;
};

Buffers& TheBuffers() {
  static auto* buffers = new Buffers;
  return *buffers;
}

}  // namespace

Status OpenDriver(const CufileApi& api, Mode* mode) {
  Driver& driver = TheDriver();
  std::lock_guard<std::mutex> lock(driver.mutex);
  if (driver.open != &api) {
    CUfileError opened = api.DriverOpen();
    if (opened.err != kSuccess && opened.err != kDriverAlreadyOpen) {
      Status failed = CufileApi::Check(opened, "cuFileDriverOpen");
      if (!IsRefusal(opened.err)) return failed;
      return Status(Code::COPIER_UNAVAILABLE, failed.message() +
                                                  "; is the nvidia-fs kernel module loaded (gdscheck -p tells)? "
                                                  "copier: 'nogds' reads without it");
    }
    FST_RETURN_IF_ERROR(ExitGate::CloseBeforeDestructors());
    driver.open = &api;
    driver.ours = opened.err == kSuccess;
  }
  CUfileDrvProps properties = {};
  FST_RETURN_IF_ERROR(CufileApi::Check(api.DriverGetProperties(&properties), "cuFileDriverGetProperties"));
  *mode = ModeOf(properties);
  return Status::Ok();
}

void CloseDriver() {
  Driver& driver = TheDriver();
  std::lock_guard<std::mutex> lock(driver.mutex);
  if (driver.open != nullptr && driver.ours) driver.open->DriverClose();
  driver.open = nullptr;
}

Status RegisterBuffer(const CufileApi& api, uint64_t base, size_t bytes) {
  Buffers& buffers = TheBuffers();
  std::lock_guard<std::mutex> lock(buffers.mutex);
  Registration& buffer = buffers.by_base[base];
  if (buffer.users == 0 && !buffer.registered) {
    CUfileError result = api.BufRegister(Pointer(base), bytes, 0);
    bool refused = IsRefusal(result.err) || result.err == kMemoryAlreadyRegistered;
    if (result.err != kSuccess && !refused) {
      buffers.by_base.erase(base);
      return CufileApi::Check(result, "cuFileBufRegister");
    }
    buffer.registered = result.err == kSuccess;
  }
  ++buffer.users;
  return Status::Ok();
}

void RemoveUser(uint64_t base) {
  Buffers& buffers = TheBuffers();
  std::lock_guard<std::mutex> lock(buffers.mutex);
  auto found = buffers.by_base.find(base);
  if (found != buffers.by_base.end()) --found->second.users;
}

bool Deregister(const CufileApi& api, uint64_t base) {
  Buffers& buffers = TheBuffers();
  std::lock_guard<std::mutex> lock(buffers.mutex);
  auto found = buffers.by_base.find(base);
  if (found == buffers.by_base.end() || found->second.users > 0) return true;
  if (found->second.registered) {
    const int error = api.BufDeregister(Pointer(base)).err;
    // A driver that was closed has no registrations.
    if (error != kSuccess && error != kMemoryNotRegistered && error != kDriverNotInitialized) return false;
  }
  buffers.by_base.erase(found);
  return true;
}

}  // namespace fst::cufile
