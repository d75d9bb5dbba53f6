import { boolean, type Check, checkOptions, integer, notNegative, oneOf, takesAtMost } from '../base/checks.js';
import type { CopierFactory } from '../copiers/copier.js';
import { engineConstructor } from '../copiers/engine-copier.js';
import { engineOptions } from '../copiers/nogds.js';
import { native } from '../native/addon.js';

/** How the modelled store of fakeReader behaves. Reads are numbered from 1 in the order in which they are submitted. */
export interface FakeReaderOptions {
  /** Bandwidth of the store, in 10^9 bytes a second; default: 0, no limit. */
  gbPerSecond?: number;
  /** Latency of each read, in milliseconds; default: 0. */
  msPerIo?: number;
  /** Queue depth: reads that may be in flight together; default: 16. */
  inFlight?: number;
  /** Bytes of one read; default: 1 MiB. */
  chunk?: number;
  /** What offsets, lengths and addresses of reads must be multiples of, in bytes; default: 1. */
  alignment?: number;
  /** 1 (default): reads go straight into host memory; 0: only into staging slots. */
  fillsHost?: 0 | 1;
  /** Complete reads in another order than they were submitted; default: false. */
  reorder?: boolean;
  /** This read fails with IO_ERROR; default: 0, none. */
  failAt?: number;
  /** This read delivers half of its bytes: SHORT_READ; default: 0, none. */
  shortAt?: number;
  /** This read never completes; default: 0, none. */
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

/**
 * A copier over a modelled store that serves the bytes of real files, through the same engine as the built-in copiers:
 * for tests and benchmarks. INVALID_ARGUMENT for a wrong option.
 */
export function fakeReader(options: FakeReaderOptions = {}): CopierFactory {
  takesAtMost(1, arguments, 'fakeReader');
  checkOptions(options, READER_CHECKS);
  return (_device, loaderOptions) =>
    engineConstructor({ reader: { kind: 'fake', ...options }, engine: engineOptions(loaderOptions) });
}

/** How the devices of useFakeDevices behave. */
export interface FakeDeviceOptions {
  /** Each copy starts this many microseconds after it was issued; default: 0. */
  copyDelayUs?: number;
  /** This copy of each loader, numbered from 1, fails with CUDA_ERROR; default: 0, none. */
  failCopy?: number;
  /** Bytes of memory of each device; default: 0, no limit. */
  memoryLimit?: number;
}

const DEVICE_CHECKS: Record<keyof FakeDeviceOptions, Check> = {
  copyDelayUs: notNegative,
  failCopy: integer(0),
  memoryLimit: integer(0),
};

/**
 * From now on every 'cuda:N' of this process is an asynchronous device in host memory, for tests without a GPU; null
 * ends that. INVALID_ARGUMENT for a wrong option.
 */
export function useFakeDevices(options: FakeDeviceOptions | null): void {
  takesAtMost(1, arguments, 'useFakeDevices');
  if (options !== null) checkOptions(options, DEVICE_CHECKS);
  native().setFakeDevices(options);
}
