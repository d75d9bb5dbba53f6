import {
  createCopierConstructor,
  ParallelLoader,
  SafeTensorsFileLoader,
  SafeTensorsMetadata,
} from 'fastsafetensors-node';
import { makeCopier } from '../src/copiers/registry.js';
import { Device } from '../src/device/device.js';
import { native } from '../src/native/addon.js';
import { testFolder, writeTensors } from './support/tensor-files.js';

// setNuma decides for every copier how the device is opened. Where staging lies then: native, CudaDeviceTest.

const folder = testFolder();
const logger = { debug() {}, info() {}, warn() {} };
let path: string;
beforeAll(async () => {
  path = await writeTensors(`${folder}/w.safetensors`, { w: { dtype: 'U8', shape: [1], data: Uint8Array.of(1) } });
});

test.each(['3fs', 'gds', 'nogds', 'unified'])("copier '%s'", (copier) => {
  for (const [setNuma, near] of [
    [undefined, true],
    [true, true],
    [false, false],
  ] as const) {
    expect(makeCopier(copier, Device.parse('cuda'), { setNuma })).toMatchObject({ near });
  }
});

test('loaders open the device as setNuma says', async () => {
  const opened = jest.spyOn(native(), 'openDevice');
  const lastNear = () => opened.mock.calls.map(([, , near]) => near);
  for (const setNuma of [undefined, true, false]) {
    opened.mockClear();
    const options = { copier: 'gds', fallback: 'nogds', setNuma, logger } as const;
    const streaming = new ParallelLoader({ files: path, ...options });
    for await (const [, tensor] of streaming.iterateWeights()) tensor.dispose();
    await streaming.close();
    expect(lastNear()).toContain(setNuma ?? true);
    opened.mockClear();
    const whole = new SafeTensorsFileLoader(options);
    await whole.addFilenames(path);
    await (await whole.copyFilesToDevice()).close();
    await whole.close();
    expect(lastNear()).toContain(setNuma ?? true);
    opened.mockClear();
    const metadata = await SafeTensorsMetadata.fromFile(path);
    const device = Device.parse('cpu');
    const copier = createCopierConstructor('nogds', device, { setNuma })(metadata, device);
    const destination = { device, byteLength: 1, pointer: 0n, write: async () => {} };
    const ranges = [{ fileOffset: metadata.dataStart, length: 1, destOffset: 0 }];
    await copier.waitIo(copier.submitIo({ path, ranges, destination, signal: new AbortController().signal }));
    await copier.close();
    expect(lastNear()).toContain(setNuma ?? true);
  }
  opened.mockRestore();
});
