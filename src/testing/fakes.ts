import { boolean, type Check, checkOptions, integer, notNegative, oneOf } from '../base/checks.js';
import type { CopierFactory } from '../copiers/copier.js';
import { engineConstructor } from '../copiers/engine-copier.js';
import { engineOptions } from '../copiers/nogds.js';
import { native } from '../native/addon.js';

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

const READER_CHECKS: Record<keyof FakeReaderOptions, Check> = {
  gbPerSecond: notNegative,
  msPerIo: notNegative,
  inFlight: integer(1),
  chunk: integer(1),
  alignment: integer(1),
  fillsHost: oneOf(0, 1),
  reorder: boolean,
  failAt: integer(0),
  shortAt: integer(0),
  stallAt: integer(0),
};

/** A copier over a modelled store that serves the bytes of real files, through the same engine as the built-in ones: for tests and benchmarks. */
export function fakeReader(options: FakeReaderOptions = {}): CopierFactory {
  checkOptions(options, READER_CHECKS);
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

const DEVICE_CHECKS: Record<keyof FakeDeviceOptions, Check> = {
  copyDelayUs: notNegative,
  failCopy: integer(0),
  memoryLimit: integer(0),
};

/** From now on every 'cuda:N' of this process is an asynchronous device in host memory; null ends that. For tests without a GPU. */
export function useFakeDevices(options: FakeDeviceOptions | null): void {
  if (options !== null) checkOptions(options, DEVICE_CHECKS);
  native().setFakeDevices(options);
}
