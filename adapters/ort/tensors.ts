import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import { DeviceTensor } from '../../src/device/device-tensor.js';
import type { OrtPort, OrtResult, OrtSource } from '../../src/native/ort.js';
import { OrtDeviceBuffer, outputOnDevice, sourceOfTensor } from './device-buffer.js';
import { bitsOfNumber, elementOfNumber, elementOfType, type Loose, STRING_TYPE, typeName } from './types.js';

/**
 * A feed, or a tensor to be written, as the core takes it. INVALID_ARGUMENT for what is no tensor, has fewer elements
 * than its shape needs, or lies where a session cannot reach; CLOSED for one that was disposed.
 */
export function sourceOf(name: string, tensor: Loose): OrtSource {
  if (tensor instanceof DeviceTensor) return sourceOfTensor(tensor);
  if (typeof tensor !== 'object' || tensor === null || !Array.isArray(tensor.dims)) {
    throw new InvalidArgumentError(`"${name}": expected a tensor, found ${tensor === null ? 'null' : typeof tensor}`);
  }
  const { type, dims, location } = tensor as { type: string; dims: readonly number[]; location: string };
  const elements = countOf(name, dims);
  if (location === 'none') throw new FastSafetensorsError('CLOSED', `"${name}": the tensor was disposed`);
  if (location === 'gpu-buffer') {
    if (tensor.gpuBuffer instanceof OrtDeviceBuffer) {
      return sized(name, { ...tensor.gpuBuffer.source, dims }, elements, tensor.gpuBuffer.byteLength);
    }
    throw new InvalidArgumentError(
      `"${name}": its gpuBuffer is not of this package; ` +
        'expected one of onnxruntime(ort) or an output of such a session',
    );
  }
  if (location !== 'cpu' && location !== 'cpu-pinned')
    throw new InvalidArgumentError(`"${name}": expected a tensor on cpu or gpu-buffer, found location '${location}'`);
  const { data } = tensor;
  if (type === 'string') {
    const strings = Array.isArray(data) && data.every((text) => typeof text === 'string');
    if (!strings || data.length !== elements)
      throw new InvalidArgumentError(`"${name}": expected an array of ${elements} strings as its data`);
    return { type: STRING_TYPE, dims, strings: data };
  }
  const element = elementOfType(type);
  if (!element) throw new InvalidArgumentError(`"${name}": unknown element type '${type}'`);
  if (!ArrayBuffer.isView(data))
    throw new InvalidArgumentError(`"${name}": expected a typed array as its data, found ${typeof data}`);
  // A new view of a buffer that was transferred away would throw.
  const bytes = data.byteLength === 0 ? EMPTY : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return sized(name, { type: element.number, dims, data: bytes }, elements, bytes.byteLength);
}

const EMPTY = new Uint8Array(0);

function countOf(name: string, dims: readonly unknown[]): number {
  let elements = 1;
  for (const dim of dims) {
    if (!Number.isSafeInteger(dim) || (dim as number) < 0)
      throw new InvalidArgumentError(`"${name}": expected whole numbers from 0 as its dims, found ${String(dim)}`);
    elements *= dim as number;
  }
  if (!Number.isSafeInteger(elements))
    throw new InvalidArgumentError(`"${name}": [${dims.join(', ')}] are more elements than can be`);
  return elements;
}

/** Checks that a source has the bytes of its elements: its buffer may have been transferred away, or resized. */
function sized(name: string, source: OrtSource, elements: number, found: number): OrtSource {
  const bits = bitsOfNumber(source.type);
  const expected = bits === undefined ? 0 : Math.ceil((elements * bits) / 8);
  if (found >= expected) return source;
  throw new InvalidArgumentError(
    `"${name}": ${typeName(source.type)} [${source.dims.join(', ')}] needs ${expected} bytes, its data have ${found}`,
  );
}

/** Refuses before a run what cannot be handed out after it. UNSUPPORTED_DTYPE, INVALID_ARGUMENT. */
export function checkOutput(port: OrtPort | undefined, name: string, outputs: readonly string[], onDevice: boolean) {
  if (!port) throw new InvalidArgumentError(`the model has no output "${name}"; its outputs are ${outputs.join(', ')}`);
  const unsupported = (why: string) => {
    const message = `output "${name}" ${why}; fetch the other outputs by name`;
    return new FastSafetensorsError('UNSUPPORTED_DTYPE', message, { tensor: name });
  };
  if (!port.isTensor) throw unsupported('is a sequence or a map, and only tensors can be handed out');
  if (port.type === STRING_TYPE && !onDevice) return;
  const element = elementOfNumber(port.type);
  if (!element) throw unsupported(`is ${typeName(port.type)}, which ONNX Runtime's JavaScript has no tensor type for`);
  if (onDevice && !element.onDevice)
    throw unsupported(`is ${element.type}, which cannot stay in a gpu-buffer (preferredOutputLocation 'cpu' can)`);
}

/** An ort.Tensor over a run's output. On the host it lies over ONNX Runtime's memory, kept by its array. */
export function tensorOf(Tensor: Loose, result: OrtResult): unknown {
  const { type, dims, strings, data } = result;
  if (strings) return new Tensor('string', strings, dims);
  if (!data) return outputOnDevice(Tensor, result as Required<OrtResult>);
  const element = elementOfNumber(type)!;
  return new Tensor(element.type, new element.array(data), dims);
}
