/** @jest-environment ./test/support/native-arrays-environment.js */
import * as ort from 'onnxruntime-node';
import { onnxruntime } from '../../adapters/ort/index.js';
import { DTYPE_BITS, type DTypeName, typedArrayOf } from '../../src/base/dtype.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';

/** A host tensor over bytes of its own: what the adapter uses of a DeviceTensor. */
function hostTensor(dtype: DTypeName, shape: number[], extra: object = {}) {
  const elements = shape.reduce((a, b) => a * b, 1);
  const data = new (typedArrayOf(dtype))(elements * (dtype === 'C64' ? 2 : 1));
  const dispose = jest.fn();
  const device = { type: 'cpu', index: null, toString: () => 'cpu' };
  const tensor = { name: 'h.0.weight', dtype, shape, device, data, dispose, ...extra } as unknown as DeviceTensor;
  return { tensor, data, dispose };
}

const adopt = async (tensor: DeviceTensor) => (await onnxruntime(ort).adopt(tensor)) as ort.Tensor;

const EXPRESSIBLE = {
  BOOL: 'bool',
  U8: 'uint8',
  I8: 'int8',
  U16: 'uint16',
  I16: 'int16',
  F16: 'float16',
  U32: 'uint32',
  I32: 'int32',
  F32: 'float32',
  U64: 'uint64',
  I64: 'int64',
  F64: 'float64',
};

describe('onnxruntime(ort)', () => {
  // Where JavaScript has Float16Array it depends on the version of onnxruntime whether float16 can be fed: see below.
  const always = Object.entries(EXPRESSIBLE).filter(([dtype]) => dtype !== 'F16' || !('Float16Array' in globalThis));
  test.each(always)('hands %s over as %s, on the same bytes', async (dtype, type) => {
    const { tensor, data } = hostTensor(dtype as DTypeName, [2, 3]);
    const adopted = await adopt(tensor);
    expect(adopted.type).toBe(type);
    expect(adopted.dims).toEqual([2, 3]);
    const seen = adopted.data as Uint8Array;
    expect(seen.buffer).toBe(data.buffer);
    new Uint8Array(data.buffer)[1] = 0x3c;
    expect(seen[0]).toEqual(data[0]);
    expect(Number(new Uint8Array(seen.buffer, seen.byteOffset)[1])).toBe(0x3c);
  });

  test.each(Object.keys(DTYPE_BITS).filter((dtype) => !(dtype in EXPRESSIBLE)))(
    'refuses %s, naming the tensor and the way out',
    async (dtype) => {
      const { tensor, dispose } = hostTensor(dtype as DTypeName, [2]);
      const refused = Promise.resolve().then(() => adopt(tensor));
      await expect(refused).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE', tensor: 'h.0.weight' });
      const { message } = await refused.catch((error) => error);
      expect(message).toMatch(/^tensor "h\.0\.weight" is /);
      // What helps with this dtype, and nothing that does not.
      const converts = ['BF16', 'F8_E4M3', 'F8_E4M3FNUZ', 'F8_E5M2', 'F8_E5M2FNUZ'];
      expect(message.includes("dtype: 'F32'")).toBe(converts.includes(dtype));
      const fed = ['BF16', 'F8_E4M3', 'F8_E4M3FNUZ', 'F8_E5M2', 'F8_E5M2FNUZ', 'F4'];
      expect(message.includes('createSession')).toBe(fed.includes(dtype));
      expect(message).toMatch(new RegExp(`frame\\.dtype !== '${dtype}'.*toHost\\(\\)`));
      expect(dispose).not.toHaveBeenCalled();
    },
  );

  test('takes the tensor over, so that memory lives as long as the ort.Tensor', async () => {
    const { tensor, dispose } = hostTensor('F32', [4]);
    await adopt(tensor);
    expect(dispose).toHaveBeenCalledTimes(1);
  });

  test('leaves a borrowed tensor to its loader', async () => {
    const { tensor, dispose } = hostTensor('F32', [4], { borrowed: true });
    await adopt(tensor);
    expect(dispose).not.toHaveBeenCalled();
  });

  test.each([[[0]], [[3, 0, 2]], [[]]])('keeps the shape %j', async (shape) => {
    const { tensor } = hostTensor('F32', shape);
    expect((await adopt(tensor)).dims).toEqual(shape);
  });

  test('makes no promise for a tensor that needs none', () => {
    expect(onnxruntime(ort).adopt(hostTensor('F32', [4]).tensor)).toBeInstanceOf(ort.Tensor);
  });

  test('hands a CUDA tensor over as a gpu-buffer, which it disposes', async () => {
    const device = { type: 'cuda', index: 1, toString: () => 'cuda:1' };
    const extra = { device, pointer: 0x7f00n, byteLength: 16, toHost: async () => new Uint8Array([0, 0, 128, 63]) };
    const { tensor, dispose } = hostTensor('F32', [4], extra);
    const adopted = await adopt(tensor);
    expect(adopted).toMatchObject({ location: 'gpu-buffer', type: 'float32', dims: [4] });
    expect(adopted.gpuBuffer).toMatchObject({ device: 'cuda:1', pointer: 0x7f00n, byteLength: 16 });
    expect(dispose).not.toHaveBeenCalled();
    expect(await adopted.getData(true)).toEqual(Float32Array.of(1));
    expect(dispose).toHaveBeenCalledTimes(1);
  });

  test.each(['F64', 'U16', 'BF16'] as const)('refuses %s on CUDA, which no gpu-buffer can have', async (dtype) => {
    const device = { type: 'cuda', index: 0, toString: () => 'cuda:0' };
    const { tensor } = hostTensor(dtype, [4], { device });
    await expect(Promise.resolve().then(() => adopt(tensor))).rejects.toMatchObject({ code: 'UNSUPPORTED_DTYPE' });
  });

  test('refuses what is not the onnxruntime module', () => {
    expect(() => onnxruntime({} as never)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  describe('where onnxruntime wraps float16 in another array class', () => {
    class Float16Array {
      readonly buffer: ArrayBufferLike;
      readonly byteOffset: number;
      constructor(data: Uint16Array) {
        this.buffer = data.buffer;
        this.byteOffset = data.byteOffset;
      }
    }
    const runtime = (run: (feeds: { x: { data: Float16Array } }) => Promise<unknown>) => ({
      Tensor: class {
        readonly data: unknown;
        constructor(type: string, data: Uint16Array) {
          this.data = type === 'float16' ? new Float16Array(data) : data;
        }
      },
      InferenceSession: { create: jest.fn(async () => ({ run })) },
    });

    test('and cannot feed that, F16 is refused and other dtypes are not', async () => {
      const broken = runtime(() => Promise.reject(new Error('not enough space: expected 2, got 0')));
      const framework = onnxruntime(broken);
      for (let i = 0; i < 2; ++i) {
        const { tensor, dispose } = hostTensor('F16', [4]);
        await expect(framework.adopt(tensor)).rejects.toMatchObject({
          code: 'UNSUPPORTED_DTYPE',
          tensor: 'h.0.weight',
        });
        expect(dispose).not.toHaveBeenCalled();
      }
      expect(await framework.adopt(hostTensor('F32', [4]).tensor)).toBeInstanceOf(broken.Tensor);
      expect(broken.InferenceSession.create).toHaveBeenCalledTimes(1);
    });

    test('and can feed that, F16 is handed over', async () => {
      const working = runtime(async ({ x }) => ({ y: { data: x.data } }));
      const framework = onnxruntime(working);
      for (let i = 0; i < 2; ++i)
        expect(await framework.adopt(hostTensor('F16', [4]).tensor)).toBeInstanceOf(working.Tensor);
      expect(working.InferenceSession.create).toHaveBeenCalledTimes(1);
    });
  });
});
