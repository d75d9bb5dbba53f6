export type { ConvertibleDType, DTypeName, TypedArrayOf } from './base/dtype.js';
export {
  ERROR_CODES,
  type ErrorCode,
  type ErrorPlace,
  FastSafetensorsError,
  InvalidArgumentError,
} from './base/errors.js';
export type { Logger } from './base/logger.js';
export type { ChunkReader } from './copiers/chunk-reader.js';
export type {
  Copier,
  CopierConstructor,
  CopierFactory,
  CopyRange,
  CopyRequest,
  Destination,
} from './copiers/copier.js';
export {
  type Availability,
  type CopierType,
  copierAvailability,
  registerCopier,
  registeredCopiers,
} from './copiers/registry.js';
export { extractMountPoint, getHf3fsLibPath } from './copiers/three-fs.js';
export { Device, type DeviceString } from './device/device.js';
export {
  DeviceTensor,
  type DeviceTensorClass,
  type DeviceTensorJson,
  type DeviceTensorOf,
} from './device/device-tensor.js';
export { type ExportedHandle, exportHandle } from './device/export-handle.js';
export type { Framework } from './device/framework.js';
export type { TensorHandle } from './device/handle-description.js';
export { type HandleServer, receiveHandle, serveHandle } from './device/handle-socket.js';
export { importTensors } from './device/import-tensors.js';
export type { SharedTensor, TensorShare } from './device/tensor-share.js';
export { type DoctorCheck, type DoctorOptions, type DoctorReport, doctor } from './doctor/doctor.js';
export { AutoLoader } from './loaders/auto-loader.js';
export type { DeviceMemoryLimit, MemoryLimit } from './loaders/budget.js';
export { loadConfig } from './loaders/config.js';
export { createCopierConstructor } from './loaders/copier-constructor.js';
export type { DeviceEstimate, DeviceStreamEstimate, Estimate, StreamEstimate } from './loaders/estimate.js';
export {
  type ExpertParallel,
  expertParallelFilter,
  expertParallelFilterFromEnv,
  ownedExpertRange,
} from './loaders/expert-parallel.js';
export { fastsafeOpen, type OpenFiles } from './loaders/fastsafe-open.js';
export { type CopyOptions, SafeTensorsFileLoader } from './loaders/file-loader.js';
export { FilesBufferOnDevice } from './loaders/files-buffer.js';
export { loadFile } from './loaders/load-file.js';
export type { DeviceReport, LoadReport } from './loaders/load-report.js';
export { type NcclBroadcast, type NcclOptions, nccl, ncclUniqueId } from './loaders/nccl.js';
export type { GetOptions, LoaderOptions, ParallelOptions } from './loaders/options.js';
export { ParallelLoader } from './loaders/parallel-loader.js';
export type { DeviceRule } from './loaders/placement.js';
export { type FilesByRank, type ProcessGroup, processGroupFromEnv, SingleGroup } from './loaders/process-group.js';
export type { ShardPart, ShardRule, ShardRules } from './loaders/shard-rules.js';
export type { Split } from './loaders/split.js';
export { ParallelThreeFSLoader, ThreeFSLoader } from './loaders/three-fs-loader.js';
export type { Metrics } from './native/core.js';
export { nativeMetrics } from './native/metrics.js';
export type { Files } from './safetensors/files.js';
export { type HeadersBatchOptions, readHeadersBatch } from './safetensors/headers-batch.js';
export {
  SafeTensorsMetadata,
  type SafeTensorsMetadataJson,
  type SafeTensorsMetadataOptions,
  TensorFrame,
  type TensorFrameJson,
} from './safetensors/metadata.js';
export {
  type SaveArray,
  type SaveDeviceTensor,
  type SaveFileOptions,
  type SaveTensor,
  saveFile,
} from './safetensors/save-file.js';
export { type SaveShardedOptions, type SaveSource, saveSharded } from './safetensors/save-sharded.js';
export type { SliceRange } from './safetensors/tensor-frame.js';
export type { Progress } from './transfer/progress.js';
