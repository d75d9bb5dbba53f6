import type { CopierFactory } from '../copiers/copier.js';
import { engineConstructor } from '../copiers/engine-copier.js';
import { engineOptions } from '../copiers/nogds.js';
import { native } from '../native.js';

export interface FakeReaderOptions {
  /** Bandwidth of the modelled store; 0 (default): no limit. */
  gbPerSecond?: number;
  /** Latency of each read. */
  msPerIo?: number;
  inFlight?: number;
  /** Bytes of a read. */
  chunk?: number;
  /** That offsets, lengths and memory must have. */
  alignment?: number;
  /** 0: reads only into slots. */
  fillsHost?: 0 | 1;
  /** Completions come in another order. */
  reorder?: boolean;
  /** The nth read fails (IO_ERROR), delivers half (SHORT_READ), or never completes. */
  failAt?: number;
  shortAt?: number;
  stallAt?: number;
}

/** A copier over a modelled store that serves the bytes of real files, through the same engine as the built-in ones: for tests and benchmarks. */
export function fakeReader(options: FakeReaderOptions = {}): CopierFactory {
  return (_device, loaderOptions) =>
    engineConstructor({ reader: { kind: 'fake', ...options }, engine: engineOptions(loaderOptions) });
}

export interface FakeDeviceOptions {
  /** Each copy starts this long after it was asked for. */
  copyDelayUs?: number;
  /** The nth copy of each loader fails with CUDA_ERROR. */
  failCopy?: number;
  /** Bytes of each device; 0: no limit. */
  memoryLimit?: number;
}

/** From now on every 'cuda:N' of this process is an asynchronous device in host memory; null ends that. For tests without a GPU. */
export function useFakeDevices(options: FakeDeviceOptions | null): void {
  native().setFakeDevices(options);
}
