import { join } from 'node:path';
import type * as TF from '@tensorflow/tfjs';
import { tfjs } from '../../adapters/tfjs/index.js';
import { Device } from '../../src/device/device.js';
import { DeviceTensor } from '../../src/device/device-tensor.js';
import { fastsafeOpen } from '../../src/loaders/fastsafe-open.js';
import { ParallelLoader } from '../../src/loaders/parallel-loader.js';
import { native } from '../../src/native/addon.js';
import { nativeMetrics } from '../../src/native/metrics.js';
import { collectGarbage, NOTHING_HELD, type TestTensor, testFolder, writeTensors } from '../support/tensor-files.js';

const tf: typeof TF = require('@tensorflow/tfjs-node');
const folder = testFolder();
// biome-ignore lint/suspicious/noExplicitAny: private to tfjs-node
const backend = () => tf.backend() as any;

const handles = (): number => backend().binding.getNumOfTensors(); // tfjs-node's own, those of tokens among them
let before = 0; // other files of the process may have left some
beforeAll(() => {
  expect(tf.getBackend()).toBe('tensorflow');
  before = handles();
});
// At once: nothing here waits for a garbage collection.
afterEach(() => {
  expect(tf.memory()).toMatchObject({ numTensors: 0, numDataBuffers: 0, numBytes: 0 });
  expect(handles()).toBe(before);
  expect(nativeMetrics()).toEqual(NOTHING_HELD);
});

let files = 0;
async function open(dtype: TestTensor['dtype'], data: ArrayBufferView, shape = [(data as Uint8Array).length]) {
  const path = await writeTensors(join(folder, `${++files}.safetensors`), { w: { dtype, shape, data } });
  const lazy = await fastsafeOpen(path);
  const tensor = await lazy.getTensor('w');
  await lazy.close();
  return tensor;
}

async function adopt(dtype: TestTensor['dtype'], data: ArrayBufferView, shape?: number[]): Promise<TF.Tensor> {
  return tfjs(tf).adopt(await open(dtype, data, shape));
}

/** Another tensor over the same memory, to write through; it must be disposed. */
function twin(tensor: DeviceTensor): { write(index: number, value: number): Promise<void>; done(): void } {
  const { allocation, offset } = tensor.placement;
  const held = allocation!.retain();
  return {
    write: (index, value) =>
      native().writeAllocation(held.handle, offset + 4 * index, new Uint8Array(Float32Array.of(value).buffer)),
    done: () => held.release(),
  };
}

describe('memory', () => {
  test('is the loader’s: a change shows in the tensor, and dispose frees it at once', async () => {
    const tensor = await open('F32', Float32Array.of(1, 2, 3, 4), [2, 2]);
    const memory = twin(tensor);
    const adopted = tfjs(tf).adopt(tensor) as TF.Tensor; // no promise
    expect([adopted.dtype, adopted.shape, [...adopted.dataSync()]]).toEqual(['float32', [2, 2], [1, 2, 3, 4]]);
    await memory.write(3, 42);
    expect([...adopted.dataSync()]).toEqual([1, 2, 3, 42]);
    expect(tf.tidy(() => [...adopted.add(1).dataSync()])).toEqual([2, 3, 4, 43]);
    memory.done();
    expect(tensor.disposed).toBe(true);
    expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
    adopted.dispose();
    expect(nativeMetrics().hostBytes).toBe(0);
  });

  test('lives as long as a clone, a reshape, a variable or an optimizer needs it', async () => {
    const w = await adopt('F32', Float32Array.of(1, 2, 3, 4), [2, 2]);
    const clone = w.clone();
    const reshaped = w.reshape([4]);
    const variable = tf.variable(reshaped);
    const kept = tf.tidy(() => tf.keep(w.reshape([1, 4])));
    tf.dispose([w, reshaped]);
    await collectGarbage();
    expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
    expect(kept.arraySync()).toEqual([[1, 2, 3, 4]]);
    const optimizer = tf.train.adam(0.5);
    optimizer.minimize(() => tf.sum(tf.square(variable)) as TF.Scalar, false, [variable]);
    expect([...variable.dataSync()].map((value) => Math.round(value * 100) / 100)).toEqual([0.5, 1.5, 2.5, 3.5]);
    expect([...clone.dataSync()]).toEqual([1, 2, 3, 4]);
    tf.dispose([kept, variable]);
    optimizer.dispose();
    tf.disposeVariables();
    expect(nativeMetrics().hostBytes).toBeGreaterThan(0);
    clone.dispose();
  });

  test('goes with tidy, unless it is returned or kept', async () => {
    const [gone, returned] = [await open('F32', Float32Array.of(1, 2)), await open('F32', Float32Array.of(3))];
    const left = tf.tidy(() => {
      const first = tfjs(tf).adopt(gone) as TF.Tensor;
      const second = tfjs(tf).adopt(returned) as TF.Tensor;
      expect([...first.dataSync()]).toEqual([1, 2]);
      return second;
    });
    expect(tf.memory().numTensors).toBe(1);
    expect([...left.dataSync()]).toEqual([3]);
    left.dispose();
    left.dispose();
  });

  test('of a whole load, in any order of disposal and closing', async () => {
    const tensors: Record<string, TestTensor> = {};
    for (let i = 0; i < 40; ++i) {
      tensors[`t${i}`] = { dtype: 'F32', shape: [i, 3], data: Float32Array.from({ length: 3 * i }, () => i) };
    }
    const path = await writeTensors(join(folder, 'many.safetensors'), tensors);
    const loader = new ParallelLoader({ files: path, framework: tfjs(tf) });
    const loaded: TF.Tensor[] = [];
    for await (const [name, tensor] of loader.iterateWeights()) {
      if (name === 't7') tensor.dispose();
      else loaded.push(tensor);
    }
    expect(loader.report.notes).toEqual([]);
    const sums = loaded.map((t) => tf.tidy(() => t.sum().arraySync() as number));
    await loader.close();
    expect(loaded.map((t) => tf.tidy(() => t.sum().arraySync()))).toEqual(sums);
    expect(sums.reduce((a, b) => a + b)).toBe(
      3 * (Array.from({ length: 40 }, (_, i) => i * i).reduce((a, b) => a + b) - 49),
    );
    for (const t of loaded.reverse()) t.dispose();
  });
});

describe('dtypes', () => {
  test.each([
    ['F32', Float32Array.of(1.5, -Infinity), 'float32', [1.5, -Infinity]],
    ['I32', Int32Array.of(-(2 ** 31), 7), 'int32', [-(2 ** 31), 7]],
    ['BOOL', Uint8Array.of(1, 0), 'bool', [1, 0]],
    ['F16', Uint16Array.of(0x3c00, 0x0001), 'float32', [1, 2 ** -24]],
    ['BF16', Uint16Array.of(0x3f80, 0xc020), 'float32', [1, -2.5]],
    ['F64', Float64Array.of(0.1), 'float32', [Math.fround(0.1)]],
    ['F8_E4M3', Uint8Array.of(0x7e), 'float32', [448]],
    ['U8', Uint8Array.of(255), 'int32', [255]],
    ['I64', BigInt64Array.of(-5n), 'int32', [-5]],
    ['U16', Uint16Array.of(65535), 'int32', [65535]],
  ] as const)('%s', async (dtype, data, expected, values) => {
    const tensor = await adopt(dtype, data);
    expect([tensor.dtype, [...tensor.dataSync()]]).toEqual([expected, [...values]]);
    tensor.dispose();
  });

  test('C64, scalars and tensors without elements', async () => {
    const complex = await adopt('C64', Float32Array.of(1, 2, 3, 4), [2]);
    expect([...complex.dataSync()]).toEqual([1, 2, 3, 4]);
    const scalar = await adopt('F32', Float32Array.of(7), []);
    expect([scalar.shape, scalar.arraySync()]).toEqual([[], 7]);
    const none = await adopt('F32', new Float32Array(0), [0, 3]);
    expect([none.shape, [...none.dataSync()]]).toEqual([[0, 3], []]);
    tf.dispose([complex, scalar, none]);
  });

  test('an int64 that int32 cannot hold', async () => {
    const tensor = await open('I64', BigInt64Array.of(2n ** 40n));
    await expect(tfjs(tf).adopt(tensor)).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'w' });
    tensor.dispose();
  });
});

describe('misuse is an error, never an abort', () => {
  const FLOAT = 1;
  const INT32 = 3;
  function offer(tensor: DeviceTensor, dtype = FLOAT, shape = tensor.shape, length = tensor.byteLength): number {
    const { allocation, offset } = tensor.placement;
    return native().tfAdopt(allocation!.handle, offset, length, dtype, Float64Array.from(shape));
  }
  function run(token: number, dtype = FLOAT): TF.Tensor {
    const { binding } = backend();
    const id = binding.createTensor([], INT32, Int32Array.of(token));
    try {
      const attributes = [{ name: 'T', type: binding.TF_ATTR_TYPE, value: dtype }];
      return backend().createOutputTensor(binding.executeOp(native().tfRegister().op, attributes, [id], 1)[0]);
    } finally {
      binding.deleteTensor(id);
    }
  }

  test('the op asked for another dtype than the memory has', async () => {
    const tensor = await open('F32', Float32Array.of(1, 2));
    expect(() => run(offer(tensor), INT32)).toThrow(/TF_DataType 1.*asked for 3/);
    tensor.dispose();
  });

  test('a token taken twice, one that never was, one that was released', async () => {
    const tensor = await open('F32', Float32Array.of(1, 2));
    const token = offer(tensor);
    const adopted = run(token);
    expect(() => run(token)).toThrow(/stands for no memory/);
    expect(() => run(123456)).toThrow(/stands for no memory/);
    const released = offer(tensor);
    native().tfRelease(released);
    native().tfRelease(released);
    expect(() => run(released)).toThrow(/stands for no memory/);
    expect([...adopted.dataSync()]).toEqual([1, 2]);
    adopted.dispose();
    tensor.dispose();
  });

  test.each([
    ['a shape of another size', FLOAT, [3], 8],
    ['a negative size', FLOAT, [-2], 8],
    ['a shape that overflows', FLOAT, [2 ** 52, 2 ** 52, 2 ** 52], 8],
    ['more than the memory has', FLOAT, [2 ** 20], 2 ** 22],
    ['a dtype that TensorFlow has not', 999, [2], 8],
  ])('%s', async (_, dtype, shape, length) => {
    const tensor = await open('F32', Float32Array.of(1, 2));
    expect(() => offer(tensor, dtype, shape, length)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    tensor.dispose();
  });

  test('a disposed tensor', async () => {
    const tensor = await open('F32', Float32Array.of(1));
    tensor.dispose();
    expect(() => tfjs(tf).adopt(tensor)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });

  test('a failing executeOp gives the memory back', async () => {
    const tensor = await open('F32', Float32Array.of(1));
    const executeOp = () => {
      throw new Error('no room');
    };
    const real = backend();
    const binding = Object.create(real.binding, { executeOp: { value: executeOp } });
    const failing = { ...tf, backend: () => Object.create(real, { binding: { value: binding } }) };
    expect(() => tfjs(failing as never).adopt(tensor)).toThrow(
      expect.objectContaining({ code: 'DEVICE_UNAVAILABLE', message: expect.stringMatching(/"w".*no room/) }),
    );
    tensor.dispose();
  });

  test('a GPU tensor where TensorFlow runs on the host', () => {
    const device = { type: 'cuda', index: 0, toString: () => 'cuda:0' };
    const tensor = { name: 'w', dtype: 'F32', shape: [1], device } as unknown as DeviceTensor;
    expect(() => tfjs(tf).adopt(tensor)).toThrow(expect.objectContaining({ code: 'DEVICE_UNAVAILABLE' }));
  });

  test('an unknown tfjs-node still gets its tensors, with a note', async () => {
    const unknown = { ...tf, backend: () => ({ binding: {} }) };
    const framework = tfjs(unknown as never);
    const adopted = (await framework.adopt(await open('F32', Float32Array.of(1, 2)))) as TF.Tensor;
    expect([...adopted.dataSync()]).toEqual([1, 2]);
    expect(framework.notes[0]).toMatch(/not known/);
    adopted.dispose();
    await collectGarbage(); // tfjs-node holds the JavaScript array here
    await collectGarbage();
  });
});

describe('a GPU, as far as it can be shown without one', () => {
  /** What tfjs-node-gpu says of itself; TensorFlow runs its ops on the host all the same. */
  const gpu = () => {
    const instance = Object.create(backend(), { isUsingGpuDevice: { value: true } });
    return tfjs({ ...tf, backend: () => instance } as never);
  };
  /** A tensor that says it is on a GPU, over host memory. */
  async function deviceTensor(dtype: TestTensor['dtype'], data: ArrayBufferView, device = 'cuda:0') {
    const tensor = await open(dtype, data);
    const { allocation, offset } = tensor.placement;
    const on = new DeviceTensor('w', dtype, tensor.shape, tensor.byteLength, Device.parse(device), allocation, offset);
    tensor.dispose();
    return on;
  }

  test.each([
    ['F32', Float32Array.of(1.5, -2), 'float32', [1.5, -2]],
    ['BOOL', Uint8Array.of(1, 0), 'bool', [1, 0]],
    ['F16', Uint16Array.of(0x3c00, 0x0001), 'float32', [1, 2 ** -24]],
    ['BF16', Uint16Array.of(0x3f80, 0xc020), 'float32', [1, -2.5]],
    ['F64', Float64Array.of(0.1), 'float32', [Math.fround(0.1)]],
  ] as const)('%s stays on the device and is converted there', async (dtype, data, expected, values) => {
    const framework = gpu();
    const adopted = (await framework.adopt(await deviceTensor(dtype, data))) as TF.Tensor;
    expect([adopted.dtype, [...adopted.dataSync()]]).toEqual([expected, [...values]]);
    expect(framework.notes).toEqual([]);
    adopted.dispose();
  });

  test.each([
    ['I32', Int32Array.of(-1, 2), 'int32', [-1, 2]],
    ['I64', BigInt64Array.of(-5n), 'int32', [-5]],
    ['F8_E4M3', Uint8Array.of(0x7e), 'float32', [448]],
  ] as const)('%s goes through the host, which is said', async (dtype, data, expected, values) => {
    const framework = gpu();
    const adopted = (await framework.adopt(await deviceTensor(dtype, data))) as TF.Tensor;
    expect([adopted.dtype, [...adopted.dataSync()]]).toEqual([expected, [...values]]);
    expect(framework.notes).toContain(`${dtype} went through host memory`);
    adopted.dispose();
    await collectGarbage();
    await collectGarbage();
  });

  test('another GPU than TensorFlow’s is refused', async () => {
    const tensor = await deviceTensor('F32', Float32Array.of(1), 'cuda:1');
    expect(() => gpu().adopt(tensor)).toThrow(
      expect.objectContaining({ code: 'DEVICE_UNAVAILABLE', message: expect.stringMatching(/cuda:1.*runs on cuda:0/) }),
    );
    tensor.dispose();
  });
});
