import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, floats, model, node, rawTensor, value } from './onnx-model.js';

const WIDTH = 64;
const ROWS = 4096;
const SLOW = 1536;
/** One MatMul of this size is seconds of work that nothing stops. */
const SIDE = 4608;

/** What adapters/ort-ending.child.cjs works with. */
export interface OrtModels {
  readonly weights: string;
  /** x [rows, width] → x·w. With all of x 1 / width, all of y is `expected`. */
  readonly short: string;
  /** The same shapes, some seconds in hundreds of nodes. */
  readonly deep: string;
  /** The same with its weights inside. */
  readonly deepInside: string;
  /** x [side, side] → x·x, some seconds in one node. */
  readonly wide: string;
  /** Seconds of constants to fold before there is a session. */
  readonly slow: string;
  readonly rows: number;
  readonly width: number;
  readonly side: number;
  readonly expected: number;
  readonly first: number;
}

export async function writeOrtModels(folder: string): Promise<OrtModels> {
  const weights = join(folder, 'weights.safetensors');
  const w = new Float32Array(WIDTH * WIDTH).fill(0.5);
  const s = floats(SLOW * SLOW, 1e-9);
  await saveFile(
    [
      { name: 'w', dtype: 'F32', shape: [WIDTH, WIDTH], data: bytesOf(w) },
      { name: 's', dtype: 'F32', shape: [SLOW, SLOW], data: bytesOf(s) },
    ],
    weights,
  );
  const write = async (name: string, bytes: Uint8Array): Promise<string> => {
    const path = join(folder, `${name}.onnx`);
    await writeFile(path, bytes);
    return path;
  };
  const outside = (name: string, side: number) =>
    externalTensor(name, [side, side], { location: 'gone', offset: '0', length: String(side * side * 4) });
  const chain = (length: number, first: string, by: string, last: string, op = 'Tanh') =>
    Array.from({ length }, (_, i) => [
      node('MatMul', [i === 0 ? first : `t${i - 1}`, by], [`m${i}`]),
      node(op, [`m${i}`], [i === length - 1 ? last : `t${i}`]),
    ]).flat();
  const port = (name: string, rows: number, columns: number) => value(name, [rows, columns]);

  return {
    weights,
    short: await write(
      'short',
      model({
        nodes: [node('MatMul', ['x', 'w'], ['y'])],
        initializers: [outside('w', WIDTH)],
        inputs: [port('x', ROWS, WIDTH)],
        outputs: [port('y', ROWS, WIDTH)],
      }),
    ),
    deep: await write(
      'deep',
      model({
        nodes: chain(1500, 'x', 'w', 'y'),
        initializers: [outside('w', WIDTH)],
        inputs: [port('x', ROWS, WIDTH)],
        outputs: [port('y', ROWS, WIDTH)],
      }),
    ),
    deepInside: await write(
      'deep-inside',
      model({
        nodes: chain(1500, 'x', 'w', 'y'),
        initializers: [rawTensor('w', [WIDTH, WIDTH], w)],
        inputs: [port('x', ROWS, WIDTH)],
        outputs: [port('y', ROWS, WIDTH)],
      }),
    ),
    wide: await write(
      'wide',
      model({
        nodes: [node('MatMul', ['x', 'x'], ['y'])],
        inputs: [port('x', SIDE, SIDE)],
        outputs: [port('y', SIDE, SIDE)],
      }),
    ),
    slow: await write(
      'slow',
      model({
        nodes: [...chain(16, 's', 's', 'c', 'Neg'), node('Add', ['x', 'c'], ['y'])],
        initializers: [outside('s', SLOW)],
        inputs: [port('x', SLOW, SLOW)],
        outputs: [port('y', SLOW, SLOW)],
      }),
    ),
    rows: ROWS,
    width: WIDTH,
    side: SIDE,
    expected: 0.5,
    first: 0.5,
  };
}
