// Compiled, never run: what the types promise to whoever writes a copier, and to tests with stand-ins.
import {
  type Availability,
  type Copier,
  type CopierFactory,
  type CopyRequest,
  copierAvailability,
  createCopierConstructor,
  type Destination,
  registerCopier,
} from 'fastsafetensors-node';
import { emulators, fakeReader, mockCopier, useFakeDevices } from 'fastsafetensors-node/testing';

export const factory: CopierFactory = (device, options) => (metadata) => {
  const copier: Copier<Promise<void>> = {
    submitIo: ({ path, ranges, destination, signal }) => copy(path, ranges, destination, signal),
    waitIo: (pending) => pending,
    close: async () => {},
  };
  void [device.type === 'cuda' ? device.index : null, options.maxThreads, metadata.path];
  return copier as Copier;
};

async function copy(
  path: string,
  ranges: CopyRequest['ranges'],
  destination: Destination,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  for (const { fileOffset, length, destOffset } of ranges)
    await destination.write(destOffset, new Uint8Array(length + path.length + fileOffset));
  // @ts-expect-error ranges are what the loader asks for
  ranges[0]!.length = 0;
}

export async function register(): Promise<void> {
  registerCopier('mine', factory);
  registerCopier('3fs');
  registerCopier('mock', mockCopier({ tensors: { w: Float32Array.of(1) }, failAt: 'w' }));
  registerCopier('slow', fakeReader({ gbPerSecond: 1, msPerIo: 5, fillsHost: 0 }));
  const found: Availability = await copierAvailability('gds', 'cuda:0');
  if (!found.available) void [found.reason, found.remedy];
  createCopierConstructor('nogds', 'cpu', { maxThreads: 2 });
  useFakeDevices({ copyDelayUs: 10 });
  const environment: Record<string, string> = emulators.cuda.env({ DEVICES: 2 });
  void environment;
  // @ts-expect-error a factory makes a constructor
  registerCopier('wrong', () => ({}));
  // @ts-expect-error a copier can be closed
  const unfinished: Copier = { submitIo: () => 1, waitIo: async () => {} };
  // @ts-expect-error a misspelled option
  mockCopier({ failsAt: 1 });
  void unfinished;
}
