import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const WIDTH = 16384;

/** A sparse .safetensors file: zeros, but for the last row of each weight, which holds its number. */
export function writeSparse(path: string, weights: Readonly<Record<string, number>>): string {
  let begin = 0;
  const places: { last: number; columns: number }[] = [];
  const entries = Object.entries(weights).map(([name, rows]) => {
    const bytes = rows * WIDTH * 4;
    places.push({ last: begin + bytes - WIDTH * 4, columns: WIDTH });
    const entry = [name, { dtype: 'F32', shape: [rows, WIDTH], data_offsets: [begin, begin + bytes] }];
    begin += bytes;
    return entry;
  });
  const text = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  text.copy(header, 8);
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, header.length + begin);
    writeSync(fd, header, 0, header.length, 0);
    for (const [i, { last, columns }] of places.entries()) {
      writeSync(fd, new Uint8Array(new Float32Array(columns).fill(i + 1).buffer), 0, columns * 4, header.length + last);
    }
  } finally {
    closeSync(fd);
  }
  return path;
}

/** A graph model that adds row `row` of every weight, and its weights: `gib` of 1 GiB each. */
export function largeGraphModel(folder: string, gib: number): { model: object; weights: string; rows: number } {
  const rows = 2 ** 30 / (WIDTH * 4);
  const names = Array.from({ length: gib }, (_, i) => `w${i}`);
  const weights = writeSparse(join(folder, 'large.safetensors'), Object.fromEntries(names.map((name) => [name, rows])));
  const float = { T: { type: 'DT_FLOAT' } };
  const node = [
    {
      name: 'row',
      op: 'Placeholder',
      attr: { dtype: { type: 'DT_INT32' }, shape: { shape: { dim: [{ size: '1' }] } } },
    },
    ...names.map((name) => ({ name, op: 'Const', attr: { dtype: { type: 'DT_FLOAT' } } })),
    ...names.map((name) => ({ name: `${name}/row`, op: 'Gather', input: [name, 'row'], attr: float })),
    { name: 'sum', op: 'AddN', input: names.map((name) => `${name}/row`), attr: { ...float, N: { i: String(gib) } } },
  ];
  const specs = names.map((name) => ({ name, shape: [rows, WIDTH], dtype: 'float32' }));
  const model = {
    format: 'graph-model',
    modelTopology: { node, versions: { producer: 1 } },
    weightsManifest: [{ paths: [], weights: specs }],
  };
  return { model, weights, rows };
}
