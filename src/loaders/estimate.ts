/** What a load will take of one device, and of the host to read for it. */
export interface DeviceEstimate {
  /** Of tensors, with padding, as if nothing were mapped. */
  deviceBytes: number;
  /** At most. GPUs that share a reader share its staging: each has all of it here. */
  stagingBytes: number;
  tensors: number;
}

/** What a load will take, together and by device. */
export interface Estimate extends DeviceEstimate {
  /** Bytes of all devices' tensors. */
  deviceBytes: number;
  /** What devices share counts once. */
  stagingBytes: number;
  /** By name ('cuda:0'), where there may be several. */
  devices?: Record<string, DeviceEstimate>;
}
