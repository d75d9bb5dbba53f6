// Contexts, waits and bounds of a GPU device, each taken out.

export const file = 'csrc/device/cuda_device.cc';

export default [
  {
    name: 'context-of-check-available',
    find: `CudaDevice::CheckAvailable(uint64_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'CudaDevice::CheckAvailable(uint64_t bytes) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-allocate',
    find: `CudaDevice::Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'CudaDevice::Allocate(size_t bytes, std::shared_ptr<DeviceBuffer>* out) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-pin',
    find: `CudaDevice::PinHostMemory(void* address, size_t bytes) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'CudaDevice::PinHostMemory(void* address, size_t bytes) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-read',
    find: `size_t length, void* host) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'size_t length, void* host) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-write',
    find: `size_t length, const void* host) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'size_t length, const void* host) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-synchronize',
    find: `CudaDevice::Synchronize() {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'CudaDevice::Synchronize() {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-copy',
    find: `size_t count) {
  FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'size_t count) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-unpin',
    find: `CudaDevice::UnpinHostMemory(void* address) {
  MakeCurrentForRelease();`,
    replace: 'CudaDevice::UnpinHostMemory(void* address) {',
    native: 'CudaDeviceTest.EveryOperationMakesItsOwnContextCurrent',
  },
  {
    name: 'context-of-staging',
    find: `if (!registers_) {
    FST_RETURN_IF_ERROR(MakeCurrent());`,
    replace: 'if (!registers_) {',
    native: 'CudaDeviceTest.StagingIsTheDriversOwnWhereNoOtherCanBeLocked',
  },
  {
    name: 'context-where-memory-is-freed',
    find: `::FreeMemory(cuda::CUdeviceptr memory) const {
  MakeCurrentForRelease();`,
    replace: '::FreeMemory(cuda::CUdeviceptr memory) const {',
    native: 'CudaDeviceTest.EveryReleaseMakesItsOwnContextCurrent',
  },
  {
    name: 'context-where-staging-is-freed',
    find: `if (mapped_ == 0) {
      device_->MakeCurrentForRelease();`,
    replace: 'if (mapped_ == 0) {',
    native: 'CudaDeviceTest.StagingIsTheDriversOwnWhereNoOtherCanBeLocked',
  },
  {
    name: 'second-try-of-a-release',
    find: 'if (!MakeCurrent().ok()) (void)MakeCurrent();',
    replace: '(void)MakeCurrent();',
    native: 'CudaDeviceTest.AReleaseTriesItsContextTwice',
  },
  {
    name: 'wait-after-write',
    find: `host, length);
  Status arrived = SyncNullStream();`,
    replace: `host, length);
  Status arrived;`,
    native: 'CudaDeviceTest.WriteReturnsWhenTheBytesHaveArrived',
  },
  {
    name: 'wait-after-copy',
    find: `regions[i].length);
  }
  Status arrived = SyncNullStream();`,
    replace: `regions[i].length);
  }
  Status arrived;`,
    native: 'CudaDeviceTest.CopyReturnsWhenTheBytesHaveArrived',
  },
  {
    name: 'synchronize-waits',
    find: 'return FST_CUDA_CHECK(*api_, CtxSynchronize);',
    replace: 'return Status::Ok();',
    native: 'CudaDeviceTest.SynchronizeWaitsForTheStreamsOfAll',
  },
  {
    name: 'frees-before-check-available',
    find: `if (bytes > free_bytes) {
    WaitForFrees();`,
    replace: 'if (bytes > free_bytes) {',
    native: 'CudaDeviceTest.MemoryThatIsBeingFreedCountsAsFree',
  },
  {
    name: 'second-look-of-check-available',
    find: `    FST_RETURN_IF_ERROR(FST_CUDA_CHECK(*api_, MemGetInfo, &free_bytes, &total));
  }`,
    replace: '  }',
    native: 'CudaDeviceTest.MemoryThatIsBeingFreedCountsAsFree',
  },
  {
    name: 'frees-before-allocate',
    find: `WaitForFrees();
    result = allocate();`,
    replace: 'result = allocate();',
    native: 'CudaDeviceTest.MemoryThatIsBeingFreedCountsAsFree',
  },
  {
    name: 'second-try-of-allocate',
    find: `WaitForFrees();
    result = allocate();`,
    replace: 'WaitForFrees();',
    native: 'CudaDeviceTest.MemoryThatIsBeingFreedCountsAsFree',
  },
  {
    name: 'comparison-with-what-is-free',
    find: 'return bytes <= free_bytes ? Status::Ok() : OutOfMemory(bytes);',
    replace: 'return Status::Ok();',
    native: 'CudaDeviceTest.OutOfMemorySaysAskedFreeAndTotal',
  },
  {
    name: 'bound-of-the-ordinal',
    find: 'if (ordinal_ >= count) {',
    replace: 'if (false) {',
    native: 'CudaDeviceTest.ADeviceThatIsNotThereSaysHowManyThereAre',
  },
  {
    name: 'node-of-staging',
    find: 'PreferNodeFor(memory, mapped, numa_node_);',
    replace: '',
    native: 'CudaDeviceTest.StagingIsOnTheNodeOfTheDevice',
  },
  {
    name: 'staging-is-inherited',
    find: 'madvise(memory, mapped, MADV_DONTFORK) != 0',
    replace: 'false',
    native: 'CudaDeviceTest.ProcessesThatAreStartedShareNoStaging',
  },
  {
    name: 'huge-pages-for-small-staging',
    find: 'if (bytes < mapped) madvise(memory, mapped, MADV_NOHUGEPAGE);',
    replace: '',
    native: 'CudaDeviceTest.SmallStagingTakesSmallPages',
  },
  {
    name: 'host-memory-always-registers',
    find: 'registers_ = registers == 1;',
    replace: '',
    native: 'CudaDeviceTest.StagingIsTheDriversOwnWhereNoOtherCanBeLocked',
  },
  {
    name: 'freed-where-it-is-dropped',
    file: 'csrc/device/device.cc',
    find: 'if (!FreeingThread().Post(task).ok()) task();',
    replace: 'task();',
    native: 'CudaDeviceTest.LettingGoOfMemoryWaitsForNothing',
  },
];
