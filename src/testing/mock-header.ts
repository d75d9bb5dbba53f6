import { DTYPE_BITS, DTYPE_NAMES, type DTypeName, dtypeOfArray } from '../base/dtype.js';
import { InvalidArgumentError } from '../base/errors.js';
import { SafeTensorsMetadata } from '../safetensors/metadata.js';

/**
 * A typed array, which is one dimension of its elements; or with another shape, or a dtype that has no typed array of
 * its own, as `{ dtype: 'BF16', shape: [2, 2], data: new Uint16Array(4) }`.
 */
export type MockTensor =
  | ArrayBufferView
  | { readonly dtype?: DTypeName; readonly shape?: readonly number[]; readonly data: ArrayBufferView };

export function dataOf(tensor: MockTensor | null | undefined): ArrayBufferView | undefined {
  return ArrayBuffer.isView(tensor) ? tensor : tensor?.data;
}

/** The header of a file of these tensors, in their order. INVALID_ARGUMENT where one does not say what it is. */
export function mockHeader(tensors: ReadonlyMap<string, MockTensor>): SafeTensorsMetadata {
  const names: string[] = [];
  const entries: Record<string, object> = Object.create(null);
  const dtypes: number[] = [];
  const dims: number[] = [];
  const rankEnds: number[] = [];
  const nameEnds: number[] = [];
  const ends: number[] = [];
  let characters = 0;
  let end = 0;
  for (const [name, tensor] of tensors) {
    const { byteLength } = dataOf(tensor)!;
    const { dtype, shape } = describe(name, tensor);
    characters += name.length;
    names.push(name);
    nameEnds.push(characters);
    dtypes.push(DTYPE_NAMES.indexOf(dtype));
    dims.push(...shape);
    rankEnds.push(dims.length);
    entries[name] = { dtype, shape, data_offsets: [end, end + byteLength] };
    end += byteLength;
    ends.push(end);
  }
  const headerLength = Buffer.byteLength(JSON.stringify(entries));
  const header = {
    headerLength,
    dataStart: 8 + headerLength,
    sizeBytes: 8 + headerLength + end,
    tensorCount: tensors.size,
    trailingBytes: 0,
    identity: null,
    names: names.join(''),
    nameEnds: Uint32Array.from(nameEnds),
    dtypes: Uint8Array.from(dtypes),
    begins: Float64Array.from([0, ...ends.slice(0, -1)]),
    ends: Float64Array.from(ends),
    rankEnds: Uint32Array.from(rankEnds),
    dims: Float64Array.from(dims),
    metadataTexts: '',
    metadataEnds: new Uint32Array(0),
  };
  return new SafeTensorsMetadata(header, '');
}

function describe(name: string, tensor: MockTensor): { dtype: DTypeName; shape: readonly number[] } {
  const refuse = (problem: string): never => {
    throw new InvalidArgumentError(`mockCopier: tensor "${name}" ${problem}`, { tensor: name });
  };
  const data = dataOf(tensor)!;
  const given: { readonly dtype?: DTypeName; readonly shape?: readonly number[] } = ArrayBuffer.isView(tensor)
    ? {}
    : tensor;
  const dtype = given.dtype ?? dtypeOfArray(data);
  if (dtype === undefined || !Object.hasOwn(DTYPE_BITS, dtype))
    return refuse(`has no dtype: expected { dtype, data } with one of ${DTYPE_NAMES.join(' ')}`);
  const elements = (data.byteLength * 8) / DTYPE_BITS[dtype];
  const shape = given.shape ?? [elements];
  const fits =
    Array.isArray(shape) &&
    shape.every((size) => Number.isSafeInteger(size) && size >= 0) &&
    shape.reduce((product, size) => product * size, 1) === elements;
  return fits ? { dtype, shape } : refuse(`is ${dtype} [${shape}], but its data has ${data.byteLength} bytes`);
}
