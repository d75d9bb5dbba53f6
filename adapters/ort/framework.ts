import { takesAtMost } from '../../src/base/checks.js';
import { canConvert } from '../../src/base/dtype.js';
import { type FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import type { DeviceTensor } from '../../src/device/device-tensor.js';
import type { Framework } from '../../src/device/framework.js';
import { tensorError } from '../tensor-error.js';
import { deviceTensorOf } from './device-buffer.js';
import { elementOfDType, type Loose, numberOfDType } from './types.js';

/** The part of the module onnxruntime-node, -web or -common that onnxruntime() uses. */
export interface OnnxRuntime {
  readonly Tensor: new (...args: Loose[]) => unknown;
  readonly InferenceSession: { create(model: Uint8Array): Promise<{ run(feeds: Loose): Promise<Loose> }> };
}

/**
 * Makes loaders yield `ort.Tensor`s: `new ParallelLoader({ files, framework: onnxruntime(ort) })`. `ort` is the module
 * of onnxruntime-node, -web or -common itself; INVALID_ARGUMENT for anything else.
 *
 * - Host tensors: the `ort.Tensor` lies over the same bytes, nothing is copied. The memory lives exactly as long as its
 *   typed array. A borrowed tensor (`borrow: true`) stays the loader's: use it before asking for the next one.
 * - CUDA tensors: an `ort.Tensor` of location 'gpu-buffer', to be freed with its `dispose()`. Sessions of
 *   createSession() and of the 'fastsafetensors' execution provider take it without a copy; ONNX Runtime's own sessions
 *   cannot take it.
 *
 * Loading rejects with UNSUPPORTED_DTYPE for dtypes that ONNX Runtime's JavaScript cannot express.
 */
export function onnxruntime<O extends OnnxRuntime>(ort: O): Framework<InstanceType<O['Tensor']>> {
  takesAtMost(1, arguments, 'onnxruntime');
  if (typeof ort?.Tensor !== 'function') {
    throw new InvalidArgumentError(
      'onnxruntime(ort): ort has no Tensor class; pass the module itself, as in ' +
        "onnxruntime(require('onnxruntime-node'))",
    );
  }
  type Adopted = InstanceType<O['Tensor']>;
  let float16: boolean | Promise<boolean> | undefined;

  // A promise only where one is needed: a model may have a hundred thousand tensors.
  function adopt(tensor: DeviceTensor): Adopted | Promise<Adopted> {
    const type = elementOfDType(tensor.dtype)?.type;
    if (type === undefined) throw unsupported(tensor, "ONNX Runtime's JavaScript has no such tensor type");
    if (tensor.device.type !== 'cpu') return deviceTensorOf(ort.Tensor, tensor);
    if (type !== 'float16') return wrap(type, tensor);
    float16 ??= acceptsFloat16(ort);
    if (float16 === true) return wrap(type, tensor);
    return Promise.resolve(float16).then((accepted) => {
      float16 = accepted;
      if (accepted) return wrap(type, tensor);
      const why = `cannot feed float16 on Node ${process.version} (it reads a Float16Array as 0 bytes)`;
      throw unsupported(tensor, `this onnxruntime ${why}, Node 22 and older can`);
    });
  }

  function wrap(type: string, tensor: DeviceTensor): Adopted {
    const adopted = new ort.Tensor(type, tensor.data, tensor.shape) as Adopted;
    if (!tensor.borrowed) tensor.dispose();
    return adopted;
  }

  return { name: 'onnxruntime', adopt };
}

function unsupported(tensor: DeviceTensor, why: string): FastSafetensorsError {
  const { dtype } = tensor;
  const ways = [
    ...(canConvert(dtype, 'F32') ? ["convert while loading (dtype: 'F32')"] : []),
    // A dtype that ONNX knows can be a graph's weight without being an ort.Tensor.
    ...(numberOfDType(dtype) ? ['let the graph have the weights itself (createSession with weights)'] : []),
    `leave it out (filter: (name, frame) => frame.dtype !== '${dtype}')`,
    'load it without a framework and take its bytes (toHost())',
  ];
  const what = `is ${dtype}: ${why}; ${ways.slice(0, -1).join(', ')}, or ${ways.at(-1)}`;
  return tensorError('UNSUPPORTED_DTYPE', tensor, what);
}

/** `y = Identity(x)` for one float16, IR version 8, opset 13. */
const FLOAT16_IDENTITY =
  '08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080a12040a020801' +
  '620f0a0179120a0a08080a12040a0208014202100d';

/**
 * Where JavaScript has Float16Array (from Node 24), onnxruntime-common wraps 16-bit data in one, which onnxruntime-node
 * up to at least 1.30 cannot feed ("not enough space: expected 2, got 0", microsoft/onnxruntime#32323). Only a run
 * shows whether a version can.
 */
function acceptsFloat16(ort: OnnxRuntime): boolean | Promise<boolean> {
  const one = new ort.Tensor('float16', Uint16Array.of(0x3c00), [1]) as { data: ArrayBufferView };
  if (one.data instanceof Uint16Array) return true;
  return feedsFloat16(ort, one).catch(() => false);
}

async function feedsFloat16(ort: OnnxRuntime, one: unknown): Promise<boolean> {
  const session = await ort.InferenceSession.create(Buffer.from(FLOAT16_IDENTITY, 'hex'));
  const { y } = await session.run({ x: one });
  return new Uint16Array(y.data.buffer, y.data.byteOffset, 1)[0] === 0x3c00;
}
