#include "device/cuda_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>

#include "base/metrics.h"
#include "base/numa.h"
#include "base/page.h"
#include "device/cuda_stream.h"
#include "device/host_memory.h"
#include "device/kept_memory.h"

namespace fst {
namespace {

using cuda::CUresult;

// The NUMA node of a PCI device in sysfs, -1 if it has none.
int NumaNodeInSysfs(std::string bus_id) {
  std::transform(bus_id.begin(), bus_id.end(), bus_id.begin(), [](unsigned char c) { return std::tolower(c); });
  int node = -1;
  if (FILE* file = fopen(("/sys/bus/pci/devices/" + bus_id + "/numa_node").c_str(), "re")) {
    if (fscanf(file, "%d", &node) != 1) node = -1;
    fclose(file);
  }
  return node;
}

class PinnedStaging : public StagingMemory {
 public:
  PinnedStaging(std::shared_ptr<CudaDevice> device, void* memory, size_t size, size_t mapped)
      : StagingMemory(reinterpret_cast<uint64_t>(memory), size, /*on_device=*/false),
        device_(std::move(device)),
        memory_(memory),
        mapped_(mapped) {}
  ~PinnedStaging() override {
    if (mapped_ == 0) {
      device_->MakeCurrentForRelease();
      device_->api().MemFreeHost(memory_);
    } else {
      ReleaseMemory([device = device_, memory = memory_] { return device->UnpinHostMemory(memory); },
                    [memory = memory_, mapped = mapped_] { FreeHost(memory, mapped); }, size(),
                    &Metrics::Get().staging_bytes);
    }
  }

 private:
  std::shared_ptr<CudaDevice> device_;
  void* memory_;
  const size_t mapped_;  // bytes of AllocateHost; 0: cuMemHostAlloc's memory
};

}  // namespace

Status CudaDevice::Open(int ordinal, bool unified, std::shared_ptr<Device>* out, bool near) {
  const cuda::CudaApi* api = nullptr;
  FST_RETURN_IF_ERROR(cuda::LoadCuda(&api));
  std::shared_ptr<CudaDevice> device(new CudaDevice(api, ordinal, unified, near));
  FST_RETURN_IF_ERROR(device->Init());
  *out = std::move(device);
  return Status::Ok();
}

Status CudaDevice::Init() {
  int count = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGetCount, &count));
  if (ordinal_ >= count) {
    return Status(Code::DEVICE_UNAVAILABLE,
                  Format("there is no device \"%s\": the driver %s shows %d device%s (see CUDA_VISIBLE_DEVICES)",
                         name_.c_str(), api_->library.c_str(), count, count == 1 ? "" : "s"));
  }
  cuda::CUdevice device = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGet, &device, ordinal_));
  char text[256] = "";
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGetName, text, sizeof text, device));
  info_.model = text;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGetPCIBusId, text, sizeof text, device));
  info_.bus_id = text;
  info_.library = api_->library;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DriverGetVersion, &info_.driver_version));
  FST_RETURN_IF_ERROR(
      FST_CUDA_CHECK(*api_, DeviceGetAttribute, &info_.compute_major, cuda::kAttributeComputeCapabilityMajor, device));
  FST_RETURN_IF_ERROR(
      FST_CUDA_CHECK(*api_, DeviceGetAttribute, &info_.compute_minor, cuda::kAttributeComputeCapabilityMinor, device));
  int integrated = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGetAttribute, &integrated, cuda::kAttributeIntegrated, device));
  info_.integrated = integrated == 1;
  if (unified_) {
    int concurrent = 0;
    FST_RETURN_IF_ERROR(
        FST_CUDA_CHECK(*api_, DeviceGetAttribute, &concurrent, cuda::kAttributeConcurrentManagedAccess, device));
    managed_ = concurrent == 1;
  }
  int registers = 0;
  FST_RETURN_IF_ERROR(
      FST_CUDA_CHECK(*api_, DeviceGetAttribute, &registers, cuda::kAttributeHostRegisterSupported, device));
  registers_ = registers == 1;
  if (near_) numa_node_ = NumaNodeInSysfs(info_.bus_id);
  if (near_ && numa_node_ < 0) {
    // Virtual machines may hide it. Drivers before CUDA 12.3 do not know the attribute.
    CUresult asked = api_->DeviceGetAttribute(&numa_node_, cuda::kAttributeHostNumaId, device);
    if (asked == cuda::kInvalidValue)
      numa_node_ = -1;
    else
      FST_RETURN_IF_ERROR(api_->Check(asked, "cuDeviceGetAttribute"));
  }
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DevicePrimaryCtxRetain, &context_, device));
  return ExitGate::CloseBeforeDestructors();  // making the context may register handlers, as cuInit does
}

Status CudaDevice::MakeCurrent() const { return FST_CUDA_CHECK(*api_, CtxSetCurrent, context_); }

void CudaDevice::MakeCurrentForRelease() const {
  if (!MakeCurrent().ok()) (void)MakeCurrent();
}

Status CudaDevice::OutOfMemory(uint64_t bytes) const {
  size_t free_bytes = 0, total = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemGetInfo, &free_bytes, &total));
  return Status(Code::OUT_OF_DEVICE_MEMORY,
                Format("asked for %llu bytes on %s (%s), %zu of %zu are free; load fewer tensors at a time "
                       "(maxBatchBytes, filter) or free what other models hold",
                       static_cast<unsigned long long>(bytes), name_.c_str(), info_.model.c_str(), free_bytes, total));
}

Status CudaDevice::TotalMemory(uint64_t* bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  size_t free_bytes = 0, total = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemGetInfo, &free_bytes, &total));
  *bytes = unified_ ? std::min<uint64_t>(total, TotalHostBytes()) : total;
  return Status::Ok();
}

Status CudaDevice::CheckAvailable(uint64_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  size_t free_bytes = 0, total = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemGetInfo, &free_bytes, &total));
  if (bytes > free_bytes) {
    WaitForFrees();  // buffers that are being freed count as free
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemGetInfo, &free_bytes, &total));
  }
  return bytes <= free_bytes ? Status::Ok() : OutOfMemory(bytes);
}

Status CudaDevice::AllocateMemory(size_t bytes, cuda::CUdeviceptr* out) {
  const bool pinned = unified_ && !managed_;
  auto allocate = [&] {
    if (managed_) return api_->MemAllocManaged(out, bytes, cuda::kMemAttachGlobal);
    if (!pinned) return api_->MemAlloc(out, bytes);
    // Host and device use the same address: 64-bit Linux always has unified addressing.
    void* memory = nullptr;
    CUresult result = api_->MemHostAlloc(&memory, bytes, cuda::kMemHostAllocPortable | cuda::kMemHostAllocDeviceMap);
    *out = reinterpret_cast<uintptr_t>(memory);
    return result;
  };
  CUresult result = allocate();
  if (result == cuda::kOutOfMemory) {
    RetryReleases();
    WaitForFrees();
    result = allocate();
  }
  if (result == cuda::kOutOfMemory) return OutOfMemory(bytes);
  return api_->Check(result, managed_ ? "cuMemAllocManaged" : pinned ? "cuMemHostAlloc" : "cuMemAlloc");
}

void CudaDevice::FreeMemory(cuda::CUdeviceptr memory) const {
  MakeCurrentForRelease();
  if (unified_ && !managed_) {
    api_->MemFreeHost(reinterpret_cast<void*>(memory));  // NOLINT(performance-no-int-to-ptr)
  } else {
    api_->MemFree(memory);
  }
}

Status CudaDevice::Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  cuda::CUdeviceptr pointer = 0;
  FST_RETURN_IF_ERROR(AllocateMemory(bytes, &pointer));
  auto self = std::static_pointer_cast<CudaDevice>(shared_from_this());
  *out = MakeBuffer(self, pointer, bytes, &Metrics::Get().device_bytes, [self, pointer] { self->FreeMemory(pointer); });
  return Status::Ok();
}

Status CudaDevice::AllocateStaging(size_t bytes, std::unique_ptr<StagingMemory>* out) {
  bytes = std::max(bytes, kPage);
  auto self = std::static_pointer_cast<CudaDevice>(shared_from_this());
  void* memory = nullptr;
  if (!registers_) {
    FST_RETURN_IF_ERROR(MakeCurrent());
    PreferNode near(numa_node_);
    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemHostAlloc, &memory, bytes, cuda::kMemHostAllocPortable));
    *out = std::make_unique<PinnedStaging>(std::move(self), memory, bytes, 0);
    return Status::Ok();
  }
  // Not cuMemHostAlloc: its small pages took 0.4 ms per MiB (H200, driver 580), ten times as long as huge pages.
  const size_t mapped = std::max(bytes, kHugePage);
  FST_RETURN_IF_ERROR(AllocateHost(mapped, &memory));
  // Child processes must not share these pages: copy-on-write would give this process new pages to read into, while the
  // GPU goes on copying from the old ones.
  Status locked;
  if (madvise(memory, mapped, MADV_DONTFORK) != 0) {
    locked = Status(Code::OUT_OF_HOST_MEMORY,
                    "staging memory cannot be kept from processes that are started: " + ErrnoText(errno));
  } else {
    if (bytes < mapped) madvise(memory, mapped, MADV_NOHUGEPAGE);  // a huge page would be more than was asked for
    PreferNodeFor(memory, mapped, numa_node_);
    TouchHost(memory, bytes);
    locked = PinHostMemory(memory, bytes);
  }
  if (locked.ok()) {
    *out = std::make_unique<PinnedStaging>(std::move(self), memory, bytes, mapped);
  } else {
    FreeHost(memory, mapped);
  }
  return locked;
}

Status CudaDevice::PinHostMemory(void* address, size_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  return FST_CUDA_CHECK(*api_, MemHostRegister, address, bytes, cuda::kMemHostRegisterPortable);
}

bool CudaDevice::UnpinHostMemory(void* address) {
  MakeCurrentForRelease();
  CUresult result = api_->MemHostUnregister(address);
  // With a lost context go its registrations, and all that could use them.
  return result == cuda::kSuccess || result == cuda::kHostMemoryNotRegistered || cuda::IsSticky(result);
}

Status CudaDevice::KeepPinned(void* address, size_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  CUresult again = api_->MemHostRegister(address, bytes, cuda::kMemHostRegisterPortable);
  return again == cuda::kHostMemoryAlreadyRegistered ? Status::Ok() : api_->Check(again, "cuMemHostRegister");
}

Status CudaDevice::CheckPinsReadOnly() const {
  cuda::CUdevice device = 0;
  int supported = 0;
  FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, DeviceGet, &device, ordinal_));
  const CUresult asked = api_->DeviceGetAttribute(&supported, cuda::kAttributeReadOnlyHostRegisterSupported, device);
  // Drivers before CUDA 11.1 do not know the attribute.
  if (asked != cuda::kInvalidValue) FST_RETURN_IF_ERROR(api_->Check(asked, "cuDeviceGetAttribute"));
  if (asked == cuda::kSuccess && supported == 1) return Status::Ok();
  return Status(Code::DEVICE_UNAVAILABLE, name_ + " (" + info_.model +
                                              ") cannot page-lock memory that is mapped read-only "
                                              "(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)");
}

Status CudaDevice::PinReadOnly(void* address, size_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  return FST_CUDA_CHECK(*api_, MemHostRegister, address, bytes,
                        cuda::kMemHostRegisterPortable | cuda::kMemHostRegisterReadOnly);
}

Status CudaDevice::NewStream(std::shared_ptr<CompletionQueue> queue, std::unique_ptr<CopyStream>* out) {
  return CudaStream::Create(std::static_pointer_cast<CudaDevice>(shared_from_this()), std::move(queue), out);
}

Status CudaDevice::Read(const DeviceBuffer& source, size_t offset, size_t length, void* host) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  return FST_CUDA_CHECK(*api_, MemcpyDtoH, host, source.address() + offset, length);
}

// Waits for all work on the null stream. An error may be one of earlier work: then it waits once more, so that nothing
// is being copied to memory that the caller frees.
Status CudaDevice::SyncNullStream() const {
  Status arrived = FST_CUDA_CHECK(*api_, StreamSynchronize, nullptr);
  if (!arrived.ok()) (void)api_->StreamSynchronize(nullptr);
  return arrived;
}

// cuMemcpyHtoD returns when it has read the source; the bytes may arrive later.
Status CudaDevice::Write(const DeviceBuffer& destination, size_t offset, size_t length, const void* host) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  Status copied = FST_CUDA_CHECK(*api_, MemcpyHtoD, destination.address() + offset, host, length);
  Status arrived = SyncNullStream();
  return copied.ok() ? arrived : copied;
}

Status CudaDevice::Copy(const DeviceBuffer& source, const DeviceBuffer& destination, const CopyRegion* regions,
                        size_t count) {
  FST_RETURN_IF_ERROR(MakeCurrent());
  Status copied;
  for (size_t i = 0; i < count && copied.ok(); ++i) {
    copied = FST_CUDA_CHECK(*api_, MemcpyDtoD, destination.address() + regions[i].destination_offset,
                            source.address() + regions[i].source_offset, regions[i].length);
  }
  Status arrived = SyncNullStream();
  return copied.ok() ? arrived : copied;
}

Status CudaDevice::Synchronize() {
  FST_RETURN_IF_ERROR(MakeCurrent());
  return FST_CUDA_CHECK(*api_, CtxSynchronize);
}

}  // namespace fst
