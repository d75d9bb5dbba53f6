/** @jest-environment ./test/support/native-arrays-environment.js */
import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { createSession, type OrtDeviceBuffer, onnxruntime } from '../../adapters/ort/index.js';
import { DeviceTensor, type FilesBufferOnDevice, SafeTensorsFileLoader } from '../../src/index.js';
import { native } from '../../src/native/addon.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, floats, model, node, value } from '../support/onnx-model.js';

// No GPU: the devices are the core's fakes, whose addresses ONNX Runtime is told of but never touches.
let folder: string;
let file: string;
const W = floats(512, 0.5);
const MODEL = model({
  nodes: [node('Add', ['x', 'w'], ['y'])],
  initializers: [externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' })],
  inputs: [value('x', [512])],
  outputs: [value('y', [512])],
});

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ort-cuda-'));
  file = join(folder, 'm.safetensors');
  await saveFile([{ name: 'w', dtype: 'F32', shape: [512], data: bytesOf(W) }], file);
  await writeFile(join(folder, 'm.onnx'), MODEL);
  await (await createSession(ort, MODEL, { weights: file })).release(); // loads ONNX Runtime's environment
});
beforeEach(() => native().setFakeDevices({ copyDelayUs: 0 }));
afterEach(() => native().setFakeDevices(null));
afterAll(() => rm(folder, { recursive: true }));

async function load<T>(device: string, use: (buffer: FilesBufferOnDevice) => Promise<T>): Promise<T> {
  const loader = new SafeTensorsFileLoader({ device });
  await loader.addFilenames(file);
  const buffer = await loader.copyFilesToDevice();
  try {
    return await use(buffer);
  } finally {
    await buffer.close();
    await loader.close();
  }
}

test.each([0, 1, 7])('an OrtValue over a tensor on cuda:%i has its pointer, device and vendor id', (index) =>
  load(`cuda:${index}`, async (buffer) => {
    const tensor = await buffer.getTensor('w');
    const { allocation, offset } = tensor.placement;
    const described = native().ortDescribe({
      type: 1,
      dims: [512],
      memory: allocation!.handle,
      offset,
      byteLength: tensor.byteLength,
    });
    expect(described).toEqual({
      pointer: tensor.pointer,
      device: `cuda:${index}`,
      name: 'Cuda',
      id: index,
      vendorId: 0x10de,
      byteLength: 2048,
    });
    expect(tensor.pointer % 256n).toBe(0n);
    tensor.dispose();
  }),
);

test('one over less memory than its shape needs is refused', () =>
  load('cuda:0', async (buffer) => {
    const tensor = await buffer.getTensor('w');
    const { allocation } = tensor.placement;
    const source = { type: 1, dims: [513], memory: allocation!.handle, offset: 0, byteLength: 2048 };
    expect(() => native().ortDescribe(source)).toThrow(expect.objectContaining({ code: expect.any(String) }));
    const outside = { type: 1, dims: [512], memory: allocation!.handle, offset: 2 ** 40, byteLength: 2048 };
    expect(() => native().ortDescribe(outside)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    tensor.dispose();
  }));

test('onnxruntime(ort) hands CUDA tensors over as gpu-buffers that can be read back and freed', async () => {
  const loader = new SafeTensorsFileLoader({ device: 'cuda:0', framework: onnxruntime(ort) });
  await loader.addFilenames(file);
  const buffer = await loader.copyFilesToDevice();
  const adopted = (await buffer.getTensor('w')) as ort.Tensor;
  await buffer.close();
  await loader.close();
  expect(adopted).toMatchObject({ location: 'gpu-buffer', type: 'float32', dims: [512] });
  expect((adopted.gpuBuffer as unknown as OrtDeviceBuffer).device).toBe('cuda:0');
  expect(await adopted.getData(true)).toEqual(W);
  for (let i = 0; i < 100 && nativeMetrics().deviceBytes > 0; ++i)
    await new Promise((resolve) => setTimeout(resolve, 5));
  expect(nativeMetrics().deviceBytes).toBe(0);
});

describe('devices that differ are typed errors before ONNX Runtime is called', () => {
  const refused = { code: 'INVALID_ARGUMENT' };
  test('weights on another device than the session', () =>
    load('cuda:1', async (buffer) => {
      for (const [device, message] of [
        ['cpu', /they are on cuda:1, but the session runs on cpu/],
        ['cuda:0', /they are on cuda:1, but the session runs on cuda:0; load them with device: 'cuda:0'/],
      ] as const) {
        await expect(createSession(ort, MODEL, { device, weights: buffer })).rejects.toMatchObject({
          ...refused,
          message: expect.stringMatching(message),
        });
      }
    }));

  test('weights on the cpu for a session on a GPU', () =>
    load('cpu', async (buffer) => {
      await expect(createSession(ort, MODEL, { device: 'cuda', weights: buffer })).rejects.toMatchObject({
        ...refused,
        message: expect.stringContaining("device: 'cuda:0'"),
      });
    }));

  test('a feed and a fetch on a GPU for a session on the cpu', () =>
    load('cuda:0', async (buffer) => {
      const session = await createSession(ort, MODEL, { weights: file });
      const tensor = await buffer.getTensor('w');
      expect(tensor).toBeInstanceOf(DeviceTensor);
      const message = expect.stringMatching(/"[xy]" is on cuda:0, but the session runs on cpu/);
      await expect(session.run({ x: tensor as never })).rejects.toMatchObject({ ...refused, tensor: 'x', message });
      const adopted = (await onnxruntime(ort).adopt(tensor)) as ort.Tensor;
      await expect(session.run({ x: adopted })).rejects.toMatchObject({ ...refused, message });
      const x = new ort.Tensor('float32', new Float32Array(512), [512]);
      await expect(session.run({ x }, { y: adopted })).rejects.toMatchObject({ ...refused, tensor: 'y', message });
      adopted.dispose();
      await session.release();
    }));
});

test('without the provider library the error says which file is missing and how to get it', async () => {
  const { path } = native().ortLibrary(2);
  const missing = await Promise.all(
    ['shared', 'cuda'].map((name) => {
      const library = join(dirname(path), `libonnxruntime_providers_${name}.so`);
      return access(library).then(
        () => undefined,
        () => library,
      );
    }),
  );
  const first = missing.find((library) => library !== undefined);
  if (!first) return; // installed here
  const error = await createSession(ort, MODEL, { device: 'cuda:0', weights: file }).catch((e) => e);
  expect(error).toMatchObject({ code: 'DEVICE_UNAVAILABLE', path: first });
  expect(error.message).toContain(first);
  expect(error.message).toMatch(/npm rebuild onnxruntime-node/);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(nativeMetrics().deviceBytes).toBe(0);
});

test('a DeviceTensor on the cpu can be fed as it is', async () => {
  await load('cpu', async (buffer) => {
    const session = await createSession(ort, MODEL, { weights: buffer });
    const tensor = await buffer.getTensor('w');
    const { y } = await session.run({ x: tensor as never });
    expect(y!.data).toEqual(W.map((v) => 2 * v));
    tensor.dispose();
    await expect(session.run({ x: tensor as never })).rejects.toMatchObject({ code: 'CLOSED' });
    await session.release();
  });
});
