#include "device/cuda_sharing.h"

#include <fcntl.h>

#include <memory>
#include <utility>

#include "base/fd.h"
#include "device/cuda_device.h"

namespace fst {
namespace {

using cuda::CUresult;

// Memory of cuMemCreate at an address of this process.
class VirtualMemory {
 public:
  VirtualMemory(std::shared_ptr<CudaDevice> device, size_t size) : device_(std::move(device)), size_(size) {}
  ~VirtualMemory() {
    device_->MakeCurrentForRelease();
    const cuda::CudaApi& api = device_->api();
    if (mapped_) api.MemUnmap(address_, size_);
    if (address_ != 0) api.MemAddressFree(address_, size_);
    if (handle_ != 0) api.MemRelease(handle_);
  }
  VirtualMemory(const VirtualMemory&) = delete;
  VirtualMemory& operator=(const VirtualMemory&) = delete;

  cuda::CUdeviceptr address() const { return address_; }
  cuda::CUmemGenericAllocationHandle handle() const { return handle_; }

  // The first call, once. kSuccess or the driver's code, as Map.
  CUresult Create(const cuda::CUmemAllocationProp& properties) {
    return device_->api().MemCreate(&handle_, size_, &properties, 0);
  }
  CUresult Import(int fd) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): that is how a descriptor is passed
    void* os_handle = reinterpret_cast<void*>(static_cast<uintptr_t>(fd));
    return device_->api().MemImportFromShareableHandle(&handle_, os_handle, cuda::kMemHandleTypePosixFd);
  }
  CUresult Map() {
    const cuda::CudaApi& api = device_->api();
    CUresult result = api.MemAddressReserve(&address_, size_, 0, 0, 0);
    if (result == cuda::kSuccess) result = api.MemMap(address_, size_, 0, handle_, 0);
    mapped_ = result == cuda::kSuccess;
    return result;
  }
  CUresult Allow(const cuda::CUmemLocation& who, int what) {
    const cuda::CUmemAccessDesc access = {who, what};
    return device_->api().MemSetAccess(address_, size_, &access, 1);
  }

 private:
  const std::shared_ptr<CudaDevice> device_;
  const size_t size_;
  cuda::CUmemGenericAllocationHandle handle_ = 0;
  cuda::CUdeviceptr address_ = 0;
  bool mapped_ = false;
};

// How such memory is asked for on a device, and the unit of its size. DEVICE_UNAVAILABLE where there is none.
Status PropertiesOf(const CudaDevice& device, const std::string& name, cuda::CUmemAllocationProp* properties,
                    size_t* unit) {
  const cuda::CudaApi& api = device.api();
  if (!api.lacks_sharing.empty()) {
    return Status(Code::DEVICE_UNAVAILABLE, name + " has no memory that other processes can have: " + api.library +
                                                " lacks " + api.lacks_sharing + "; load the tensors in each process");
  }
  FST_RETURN_IF_ERROR(device.MakeCurrent());
  properties->type = cuda::kMemAllocationTypePinned;
  properties->requestedHandleTypes = cuda::kMemHandleTypePosixFd;
  properties->location.type = cuda::kMemLocationTypeDevice;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(api, DeviceGet, &properties->location.id, device.ordinal()));
  for (int attribute : {cuda::kAttributeVirtualMemorySupported, cuda::kAttributePosixFdSupported}) {
    int supported = 0;
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(api, DeviceGetAttribute, &supported, attribute, properties->location.id));
    if (supported != 1 || device.host_accessible()) {
      return Status(Code::DEVICE_UNAVAILABLE,
                    name + " has no memory that other processes can have" +
                        (device.host_accessible() ? " with the copier 'unified': load with 'nogds'"
                                                  : ": load the tensors in each process"));
    }
  }
  return FST_CUDA_CHECK(api, MemGetAllocationGranularity, unit, properties, cuda::kMemAllocGranularityMinimum);
}

// 0 for what is no size.
size_t RoundUp(size_t size, size_t unit) {
  return unit == 0 || size > SIZE_MAX - unit ? 0 : (size + unit - 1) / unit * unit;
}

Status Refused(const CudaDevice& device, CUresult result, const char* what) {
  return Status(Code::INVALID_ARGUMENT, std::string("the descriptor ") + what + " (" + device.api().Describe(result) +
                                            "); expected that of exportHandle(), inherited or received: one that was "
                                            "opened in /proc is another file");
}

}  // namespace

Status FindCudaDevice(const std::string& bus_id, int likely, int* out) {
  const cuda::CudaApi* api = nullptr;
  FST_RETURN_IF_ERROR(cuda::LoadCuda(&api));
  int count = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api, DeviceGetCount, &count));
  *out = -1;
  for (int i = 0; i < count; ++i) {
    cuda::CUdevice device = 0;
    char found[64] = "";
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api, DeviceGet, &device, i));
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api, DeviceGetPCIBusId, found, sizeof found, device));
    if (bus_id == found && (*out < 0 || i == likely)) *out = i;
  }
  return Status::Ok();
}

Status CudaDevice::ExportMemory(const std::vector<ExportPart>& parts, size_t size, const std::string& seal,
                                std::shared_ptr<ExportedMemory>* out) {
  cuda::CUmemAllocationProp properties = {};
  size_t unit = 0;
  FST_RETURN_IF_ERROR(PropertiesOf(*this, name_, &properties, &unit));
  const size_t whole = RoundUp(size, unit);
  FST_RETURN_IF_ERROR(CheckAvailable(whole));
  VirtualMemory memory(std::static_pointer_cast<CudaDevice>(shared_from_this()), whole);
  CUresult created = memory.Create(properties);
  if (created == cuda::kOutOfMemory) return OutOfMemory(whole);
  FST_RETURN_IF_ERROR(api_->Check(created, "cuMemCreate"));
  FST_RETURN_IF_ERROR(api_->Check(memory.Map(), "cuMemMap"));
  FST_RETURN_IF_ERROR(api_->Check(memory.Allow(properties.location, cuda::kMemAccessReadWrite), "cuMemSetAccess"));
  Status copied;
  for (size_t i = 0; i < parts.size() && copied.ok(); ++i) {
    const auto& [buffer, offset, length, at] = parts[i];
    copied = FST_CUDA_CHECK(*api_, MemcpyDtoD, memory.address() + at, buffer->address() + offset, length);
  }
  if (copied.ok())
    copied = FST_CUDA_CHECK(*api_, MemcpyHtoD, memory.address() + size - seal.size(), seal.data(), seal.size());
  Status arrived = SyncNullStream();
  if (!copied.ok()) return copied;
  FST_RETURN_IF_ERROR(arrived);
  int fd = -1;
  FST_RETURN_IF_ERROR(
      FST_CUDA_CHECK(*api_, MemExportToShareableHandle, &fd, memory.handle(), cuda::kMemHandleTypePosixFd, 0));
  UniqueFd own(fd);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  *out = std::make_shared<ExportedMemory>(std::move(own), whole, &Metrics::Get().device_bytes);
  return Status::Ok();
}

Status CudaDevice::ImportMemory(int fd, size_t size, const std::string& seal, std::shared_ptr<DeviceBuffer>* out) {
  cuda::CUmemAllocationProp properties = {};
  size_t unit = 0;
  FST_RETURN_IF_ERROR(PropertiesOf(*this, name_, &properties, &unit));
  const size_t whole = RoundUp(size, unit);
  if (whole == 0 || size < seal.size())
    return Status(Code::METADATA_INCOMPLETE_BUFFER, Format("no memory has the %zu bytes of the description", size));
  auto self = std::static_pointer_cast<CudaDevice>(shared_from_this());
  auto memory = std::make_shared<VirtualMemory>(self, whole);
  CUresult result = memory->Import(fd);
  if (cuda::IsSticky(result)) return api_->Check(result, "cuMemImportFromShareableHandle");
  if (result != cuda::kSuccess) return Refused(*this, result, "is none of GPU memory");
  result = memory->Map();
  if (result == cuda::kInvalidValue) return Refused(*this, result, "is of less memory than the description says");
  FST_RETURN_IF_ERROR(api_->Check(result, "cuMemMap"));
  // So that nobody changes what others read; a driver that has no such mappings is taken as it is.
  result = memory->Allow(properties.location, cuda::kMemAccessRead);
  if (result == cuda::kInvalidValue || result == cuda::kNotSupported)
    result = memory->Allow(properties.location, cuda::kMemAccessReadWrite);
  FST_RETURN_IF_ERROR(api_->Check(result, "cuMemSetAccess"));
  std::string found(seal.size(), '\0');
  FST_RETURN_IF_ERROR(
      FST_CUDA_CHECK(*api_, MemcpyDtoH, found.data(), memory->address() + size - seal.size(), found.size()));
  if (found != seal)
    return Status(Code::INVALID_ARGUMENT, "the descriptor is that of another export than the description");
  const cuda::CUdeviceptr address = memory->address();
  auto held = std::make_shared<std::shared_ptr<VirtualMemory>>(std::move(memory));
  *out = MakeBuffer(self, address, size, &Metrics::Get().device_bytes, [held] { held->reset(); });
  return Status::Ok();
}

}  // namespace fst
