/** What generated models are made of: `generated-dtypes.ts` and `generated-graphs.ts` add the models. */
import { copyFileSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type * as Ort from 'onnxruntime-node';
import { noise } from '../../src/models/onnx/noise.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import { type Attribute, bytesOf, type ModelParts, model, node, rawTensor, tensor, value } from './onnx-model.js';

/** A small model of one kind of those that tools write. */
export interface GeneratedModel {
  readonly name: string;
  /** Writes it into an empty folder. */
  write(folder: string): string;
  feeds(ort: typeof Ort, seed: number): Record<string, Ort.Tensor>;
  /** Whether there is something for split-onnx to lift; default: yes. */
  readonly lifts?: boolean;
  /** Whether onnxruntime-node refuses it; default: no. */
  readonly fails?: boolean;
  /** Where onnxruntime-node refuses only a link: writes the same model without links. */
  readonly writeWithoutLinks?: (folder: string) => string;
}

export type Parts = ModelParts & { irVersion?: number };
type Files = Readonly<Record<string, Uint8Array | { readonly link: string }>>;

/** ONNX's numbers of element types. */
export const T = {
  ...{ F32: 1, U8: 2, I8: 3, U16: 4, I16: 5, I32: 6, I64: 7, STRING: 8, BOOL: 9, F16: 10, F64: 11, U32: 12, U64: 13 },
  ...{ BF16: 16, F8_E4M3: 17, F8_E4M3FNUZ: 18, F8_E5M2: 19, F8_E5M2FNUZ: 20, UINT4: 21, INT4: 22, F4: 23 },
  ...{ F8_E8M0: 24, UINT2: 25, INT2: 26 },
};

/** Collects models by name. `leaves`: the model is in models/, and links lead out of that. */
export class Models {
  readonly made: GeneratedModel[] = [];

  readonly add = (
    name: string,
    parts: Parts,
    feeds: GeneratedModel['feeds'],
    { files = {}, leaves = false, ...rest }: { files?: Files; leaves?: boolean; lifts?: boolean; fails?: boolean } = {},
  ): void => {
    const writeAll = (folder: string, linked: boolean) => {
      for (const [file, content] of Object.entries(files)) {
        const path = join(folder, file);
        mkdirSync(dirname(path), { recursive: true });
        if (content instanceof Uint8Array) writeFileSync(path, content);
        else if (linked) symlinkSync(content.link, path);
        else copyFileSync(join(dirname(path), content.link), path);
      }
      const path = join(folder, leaves ? 'models/m.onnx' : 'm.onnx');
      writeFileSync(path, model(parts, parts.irVersion));
      return path;
    };
    const write = (folder: string) => writeAll(folder, true);
    const writeWithoutLinks = (folder: string) => writeAll(folder, false);
    this.made.push({ name, write, feeds, ...(leaves && { writeWithoutLinks }), ...rest });
  };
}

export const float =
  (...dims: number[]): GeneratedModel['feeds'] =>
  (ort, seed) => ({ x: new ort.Tensor('float32', noise(sizeOf(dims), seed), dims) });
export const sizeOf = (dims: readonly number[]) => dims.reduce((a, b) => a * b, 1);
export const randomBytes = (length: number, seed = 7) => Uint8Array.from(noise(length, seed), (v) => (v + 1) * 128);
export const raw = (name: string, dims: readonly number[], type: number, data: ArrayBufferView) =>
  tensor(name, dims, type, { [TENSOR.rawData]: bytesOf(data) });
export const floats = (name: string, dims: readonly number[], scale = 1, seed = 3) =>
  rawTensor(
    name,
    dims,
    noise(sizeOf(dims), seed).map((v) => v * scale),
  );
export const ints = (...values: number[]) => BigInt64Array.from(values, BigInt);
export const shape = (name: string, ...values: number[]) => raw(name, [values.length], T.I64, ints(...values));
export const int = (value: number): Attribute => ({ int: value });
export const X = value('x', [512]);
export const Y = value('y', [512]);
export const latest = { opsets: { '': 21 }, irVersion: 10 };

/** y = x + x * Cast(w)[0 … 511], with so many elements of w that it is lifted. */
export function casting(
  w: ReturnType<typeof tensor>,
  versions: { opsets: Record<string, number>; irVersion: number },
): Parts {
  return {
    nodes: [
      node('Cast', ['w'], ['f'], { to: int(1) }),
      node('Slice', ['f', 'from', 'to'], ['s']),
      node('Mul', ['x', 's'], ['p']),
      node('Add', ['x', 'p'], ['y']),
    ],
    initializers: [w, shape('from', 0), shape('to', 512)],
    inputs: [X],
    outputs: [Y],
    ...versions,
  };
}

/** Bytes that are a number in every dtype: no NaN, whose bits a conversion may change. */
export const plain = (length: number) => randomBytes(length).map((byte) => byte & 0x37);
