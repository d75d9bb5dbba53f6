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

/** What a load that gives tensors one by one will take of one device. */
export interface DeviceStreamEstimate extends DeviceEstimate {
  /**
   * Of `deviceBytes` the most at a time where each tensor is disposed before the next one is asked for. Where there is
   * a budget, no more than that; copies of parts, which a group of one makes, are in none.
   */
  streamedBytes: number;
  /** Of the largest tensor, or part of one: a smaller budget is BUDGET_INFEASIBLE. */
  largestBytes: number;
}

/** What a load that gives tensors one by one will take, together and by device. */
export interface StreamEstimate extends Estimate {
  /** Of all devices: each has its most at a time of its own. */
  streamedBytes: number;
  /** Of any device. */
  largestBytes: number;
  devices?: Record<string, DeviceStreamEstimate>;
}
