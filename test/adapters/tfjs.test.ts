import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { tfjs } from '../../adapters/tfjs/index.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import { fastsafeOpen } from '../../src/loaders/fastsafe-open.js';
import { SafeTensorsFileLoader } from '../../src/loaders/file-loader.js';
import { ParallelLoader } from '../../src/loaders/parallel-loader.js';
import {
  collectedMetrics,
  collectGarbage,
  NOTHING_HELD,
  type TestTensor,
  testFolder,
  writeTensors,
} from '../support/tensor-files.js';

const folder = testFolder();

beforeAll(async () => {
  jest.spyOn(console, 'warn').mockImplementation(() => {}); // tfjs praises tfjs-node
  await tf.setBackend('cpu');
});
afterEach(async () => {
  expect(tf.memory()).toMatchObject({ numTensors: 0, numDataBuffers: 0, numBytes: 0 });
  expect(await collectedMetrics()).toEqual(NOTHING_HELD);
});

let files = 0;
async function load(tensors: Record<string, TestTensor>, options: object = {}) {
  const path = await writeTensors(join(folder, `${++files}.safetensors`), tensors);
  const loader = new ParallelLoader({ files: path, framework: tfjs(tf), ...options });
  const loaded: Record<string, tf.Tensor> = {};
  try {
    for await (const [name, tensor] of loader.iterateWeights()) loaded[name] = tensor;
  } catch (error) {
    tf.dispose(loaded);
    throw error;
  } finally {
    await loader.close();
  }
  return { loaded, report: loader.report, path };
}

async function loadOne(dtype: TestTensor['dtype'], data: ArrayBufferView, shape = [(data as Uint8Array).length]) {
  const { loaded, report } = await load({ w: { dtype, shape, data } });
  return { tensor: loaded.w!, notes: report.notes };
}

async function openTensor(dtype: TestTensor['dtype'], data: ArrayBufferView): Promise<DeviceTensor> {
  const path = await writeTensors(join(folder, `${++files}.safetensors`), {
    w: { dtype, shape: [(data as Uint8Array).length], data },
  });
  const open = await fastsafeOpen(path);
  const tensor = await open.getTensor('w');
  await open.close();
  return tensor;
}

describe('dtypes', () => {
  test('F32, I32, BOOL stay what they are, without a note', async () => {
    const { loaded, report } = await load({
      f: { dtype: 'F32', shape: [2, 2], data: Float32Array.of(1.5, -0, Infinity, 1e-40) },
      i: { dtype: 'I32', shape: [2], data: Int32Array.of(-(2 ** 31), 2 ** 31 - 1) },
      b: { dtype: 'BOOL', shape: [3], data: Uint8Array.of(1, 0, 1) },
    });
    expect([loaded.f!.dtype, loaded.f!.shape]).toEqual(['float32', [2, 2]]);
    expect(loaded.f!.dataSync()).toEqual(Float32Array.of(1.5, -0, Infinity, 1e-40));
    expect(loaded.i!.dtype).toBe('int32');
    expect([...loaded.i!.dataSync()]).toEqual([-(2 ** 31), 2 ** 31 - 1]);
    expect(loaded.b!.dtype).toBe('bool');
    expect([...loaded.b!.dataSync()]).toEqual([1, 0, 1]);
    expect(report.notes).toEqual([]);
    tf.dispose(loaded);
  });

  test.each([
    ['F16', Uint16Array.of(0x3c00, 0xc100, 0x0001, 0x7c00), [1, -2.5, 2 ** -24, Infinity]],
    ['BF16', Uint16Array.of(0x3f80, 0xc020, 0xff80), [1, -2.5, -Infinity]],
    ['F64', Float64Array.of(0.1, 1e300), [Math.fround(0.1), Infinity]],
    ['F8_E4M3', Uint8Array.of(0x38, 0x7e, 0x80), [1, 448, -0]],
    ['F8_E5M2', Uint8Array.of(0x3c, 0x7b, 0x7c), [1, 57344, Infinity]],
    ['F8_E4M3FNUZ', Uint8Array.of(0x40, 0x7f), [1, 240]],
    ['F8_E5M2FNUZ', Uint8Array.of(0x40, 0x7f), [1, 57344]],
    ['F8_E8M0', Uint8Array.of(127, 130), [1, 8]],
  ] as const)('%s becomes float32', async (dtype, data, expected) => {
    const { tensor, notes } = await loadOne(dtype, data);
    expect(tensor.dtype).toBe('float32');
    expect([...tensor.dataSync()]).toEqual([...expected]);
    expect(notes).toEqual([`${dtype} became float32`]);
    tensor.dispose();
  });

  test.each([
    ['I8', Int8Array.of(-128, 127), [-128, 127]],
    ['U8', Uint8Array.of(255), [255]],
    ['I16', Int16Array.of(-32768), [-32768]],
    ['U16', Uint16Array.of(65535), [65535]],
    ['U32', Uint32Array.of(2 ** 31 - 1), [2 ** 31 - 1]],
    ['I64', BigInt64Array.of(-(2n ** 31n), 7n), [-(2 ** 31), 7]],
    ['U64', BigUint64Array.of(2n ** 31n - 1n), [2 ** 31 - 1]],
  ] as const)('%s becomes int32', async (dtype, data, expected) => {
    const { tensor, notes } = await loadOne(dtype, data);
    expect(tensor.dtype).toBe('int32');
    expect([...tensor.dataSync()]).toEqual([...expected]);
    expect(notes).toEqual([`${dtype} became int32`]);
    tensor.dispose();
  });

  test('C64 becomes complex64', async () => {
    const { tensor } = await loadOne('C64', Float32Array.of(1, 2, 3, 4), [2]);
    expect(tensor.dtype).toBe('complex64');
    expect([...tensor.dataSync()]).toEqual([1, 2, 3, 4]);
    tensor.dispose();
  });

  test.each([
    ['U32', Uint32Array.of(0, 2 ** 31), /"w" \(U32\): element 1 is 2147483648,.*int32/],
    ['I64', BigInt64Array.of(-(2n ** 31n) - 1n), /"w" \(I64\): element 0 is -2147483649,/],
    ['U64', BigUint64Array.of(1n, 2n, 2n ** 63n), /"w" \(U64\): element 2 is 9223372036854775808,/],
  ] as const)('%s that int32 cannot hold is refused, naming tensor and element', async (dtype, data, message) => {
    const refused = loadOne(dtype, data);
    await expect(refused).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'w' });
    await expect(refused).rejects.toThrow(message);
  });

  test.each(['F4', 'F6_E2M3', 'F6_E3M2'] as const)('%s is refused, naming the tensor', async (dtype) => {
    const refused = load({ w: { dtype, shape: [8], data: new Uint8Array(dtype === 'F4' ? 4 : 6) } });
    await expect(refused).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'w' });
  });

  test('tensors without elements, and scalars', async () => {
    const { loaded } = await load({
      none: { dtype: 'F32', shape: [3, 0, 2], data: new Float32Array(0) },
      noneHalf: { dtype: 'F16', shape: [0], data: new Uint16Array(0) },
      scalar: { dtype: 'F32', shape: [], data: Float32Array.of(7) },
      scalarHalf: { dtype: 'F16', shape: [], data: Uint16Array.of(0x3c00) },
    });
    expect([loaded.none!.shape, loaded.noneHalf!.shape]).toEqual([[3, 0, 2], [0]]);
    expect(loaded.noneHalf!.dtype).toBe('float32');
    expect([loaded.scalar!.shape, loaded.scalar!.arraySync()]).toEqual([[], 7]);
    expect(loaded.scalarHalf!.arraySync()).toBe(1);
    tf.dispose(loaded);
  });
});

describe('memory on the cpu backend', () => {
  test('is the loader’s: a change shows in the tensor', async () => {
    const tensor = await openTensor('F32', Float32Array.of(1, 2, 3));
    const memory = tensor.data as Float32Array;
    const adopted = (await tfjs(tf).adopt(tensor)) as tf.Tensor;
    memory[1] = 42;
    expect([...adopted.dataSync()]).toEqual([1, 42, 3]);
    expect(tf.tidy(() => adopted.add(1).arraySync())).toEqual([2, 43, 4]);
    adopted.dispose();
    expect(tensor.disposed).toBe(true);
  });

  test('makes no promise for a tensor that needs none', async () => {
    const adopted = tfjs(tf).adopt(await openTensor('F32', Float32Array.of(1))) as tf.Tensor;
    expect(adopted).toBeInstanceOf(tf.Tensor);
    adopted.dispose();
  });

  test('lives as long as a clone, a reshape or a variable needs it, through tidy and an optimizer', async () => {
    const { loaded } = await load({ w: { dtype: 'F32', shape: [2, 2], data: Float32Array.of(1, 2, 3, 4) } });
    const w = loaded.w!;
    const clone = w.clone();
    const reshaped = w.reshape([4]);
    const variable = tf.variable(reshaped);
    const kept = tf.tidy(() => tf.keep(w.reshape([1, 4])));
    tf.dispose([w, reshaped]);
    await collectGarbage();
    expect(clone.arraySync()).toEqual([
      [1, 2],
      [3, 4],
    ]);
    expect(kept.arraySync()).toEqual([[1, 2, 3, 4]]);
    const optimizer = tf.train.sgd(0.5);
    optimizer.minimize(() => variable.sum() as tf.Scalar, false, [variable]);
    expect([...variable.dataSync()]).toEqual([0.5, 1.5, 2.5, 3.5]);
    expect([...clone.dataSync()]).toEqual([1, 2, 3, 4]);
    optimizer.dispose();
    tf.dispose([clone, kept, variable]);
  });

  test('goes with tidy, unless it is returned', async () => {
    const [gone, returned] = [
      await openTensor('F32', Float32Array.of(1, 2)),
      await openTensor('F32', Float32Array.of(3)),
    ];
    const left = tf.tidy(() => {
      tfjs(tf).adopt(gone);
      return tfjs(tf).adopt(returned) as tf.Tensor;
    });
    expect(tf.memory().numTensors).toBe(1);
    await collectGarbage();
    expect([...left.dataSync()]).toEqual([3]);
    left.dispose();
  });

  test.each(['file', 'ready'] as const)(
    'order %s: tensors are themselves, whichever is dropped first',
    async (order) => {
      const tensors: Record<string, TestTensor> = {};
      for (let i = 0; i < 60; ++i) {
        const shape = [3, i % 7];
        tensors[`t${i}`] =
          i % 3 === 0
            ? { dtype: 'F16', shape, data: new Uint16Array(3 * (i % 7)).fill(i << 4) } // converted: comes by a promise
            : { dtype: 'F32', shape, data: new Float32Array(3 * (i % 7)).fill(i) };
      }
      const { loaded } = await load(tensors, { order, maxBatchBytes: 256, queueSize: 4 });
      const names = Object.keys(tensors).sort(
        (a, b) => ((Number(a.slice(1)) * 37) % 60) - ((Number(b.slice(1)) * 37) % 60),
      );
      expect(Object.keys(loaded).sort()).toEqual([...names].sort());
      for (const name of names) {
        const i = Number(name.slice(1));
        const value = i % 3 === 0 ? (i << 4) * 2 ** -24 : i; // subnormal halves
        expect([...loaded[name]!.dataSync()]).toEqual(new Array(3 * (i % 7)).fill(value));
        loaded[name]!.dispose();
        if (i % 10 === 0) await collectGarbage();
      }
    },
  );

  test('through every loader, after its end', async () => {
    const data = Float32Array.of(5, 6);
    const path = await writeTensors(join(folder, 'loaders.safetensors'), { w: { dtype: 'F32', shape: [2], data } });
    const framework = tfjs(tf);

    const file = new SafeTensorsFileLoader({ framework });
    await file.addFilenames(path);
    const buffer = await file.copyFilesToDevice();
    const one = await buffer.getTensor('w');
    const two = await buffer.getTensor('w');
    await buffer.close();
    await file.close();

    const open = await fastsafeOpen(path, { framework });
    const three = await open.getSlice('w', { start: 1 });
    await open.close();

    await collectGarbage();
    expect([one, two, three].map((t) => [...(t as tf.Tensor).dataSync()])).toEqual([[5, 6], [5, 6], [6]]);
    tf.dispose([one, two, three]);
  });

  test('a borrowed tensor stays the loader’s to dispose', async () => {
    const { loaded } = await load({ w: { dtype: 'F16', shape: [1], data: Uint16Array.of(0x3c00) } }, { borrow: true });
    expect(loaded.w!.arraySync()).toEqual([1]);
    tf.dispose(loaded);
  });
});

describe('misuse', () => {
  test('what is not TensorFlow.js', () => {
    for (const wrong of [undefined, null, {}, { tensor() {} }]) {
      expect(() => tfjs(wrong as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    }
  });

  test('a disposed tensor', async () => {
    const tensor = await openTensor('F32', Float32Array.of(1));
    tensor.dispose();
    expect(() => tfjs(tf).adopt(tensor)).toThrow(expect.objectContaining({ code: 'CLOSED' }));
    const half = await openTensor('F16', Uint16Array.of(1));
    half.dispose();
    await expect(tfjs(tf).adopt(half)).rejects.toMatchObject({ code: 'CLOSED' });
  });

  test('a CUDA tensor on the cpu backend', () => {
    const device = { type: 'cuda', index: 0, toString: () => 'cuda:0' };
    const tensor = { name: 'w', dtype: 'F32', shape: [1], device } as unknown as DeviceTensor;
    expect(() => tfjs(tf).adopt(tensor)).toThrow(
      expect.objectContaining({
        code: 'DEVICE_UNAVAILABLE',
        message: expect.stringMatching(/"w" is on cuda:0.*"cpu"/),
      }),
    );
  });

  test('a tf without a backend', async () => {
    const tensor = await openTensor('F32', Float32Array.of(1));
    const backend = () => {
      throw new Error('No backend found in registry.');
    };
    const bare = { ...tf, backend, getBackend: () => undefined };
    expect(() => tfjs(bare as never).adopt(tensor)).toThrow(
      expect.objectContaining({ code: 'DEVICE_UNAVAILABLE', message: expect.stringMatching(/no backend.*tf\.ready/) }),
    );
    expect(tensor.disposed).toBe(false);
    tensor.dispose();
  });

  test('a second copy of tfjs-core: one engine is fine, two are an error', async () => {
    let other = tf;
    jest.isolateModules(() => {
      other = require('@tensorflow/tfjs');
    });
    expect(other.tensor).not.toBe(tf.tensor);
    const shared = (await tfjs(other).adopt(await openTensor('F32', Float32Array.of(1)))) as tf.Tensor;
    expect(tf.memory().numTensors).toBe(1);
    shared.dispose();

    const tensor = await openTensor('F32', Float32Array.of(1));
    const foreign = { ...other, engine: () => ({}) };
    expect(() => tfjs(foreign as never).adopt(tensor)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('another copy') }),
    );
    tensor.dispose();
  });
});
