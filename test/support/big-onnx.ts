import { createWriteStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { finished } from 'node:stream/promises';
import { noise } from '../../src/models/onnx/noise.js';
import { bytesOf, externalTensor, model, node, value } from './onnx-model.js';

export interface BigModel {
  readonly graph: string;
  readonly weights: string;
  readonly bytes: number;
}

/**
 * `layers` square MatMuls of `width` with a Tanh after each, whose weights are external data in a .safetensors file:
 * width 4096 makes 64 MiB a layer. Written as it is made, so that the writer needs no memory for it. x is [rows,
 * width].
 */
export async function writeBigModel(stem: string, layers: number, width: number, rows = 1): Promise<BigModel> {
  const length = width * width * 4;
  const names = Array.from({ length: layers }, (_, i) => `layer.${i}.weight`);
  const entries = names.map((name, i) => [
    name,
    { dtype: 'F32', shape: [width, width], data_offsets: [i * length, (i + 1) * length] },
  ]);
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);

  const weights = `${stem}.safetensors`;
  const file = createWriteStream(weights);
  file.write(header);
  const row = noise(width * 64).map((x) => x / Math.sqrt(width));
  for (let i = 0; i < layers; ++i) {
    for (let at = 0; at < width; at += 64) {
      row[0] = (i + at) / 1000; // no two alike
      if (!file.write(Buffer.from(bytesOf(row)))) await new Promise<void>((resolve) => file.once('drain', resolve));
    }
  }
  file.end();
  await finished(file);

  const initializers = names.map((name, i) =>
    externalTensor(name, [width, width], {
      location: basename(weights),
      offset: String(header.length + i * length),
      length: String(length),
    }),
  );
  const nodes = names.flatMap((name, i) => [
    node('MatMul', [i === 0 ? 'x' : `t${i - 1}`, name], [`m${i}`]),
    node('Tanh', [`m${i}`], [i === layers - 1 ? 'y' : `t${i}`]),
  ]);
  const graph = `${stem}.onnx`;
  await writeFile(
    graph,
    model({ nodes, initializers, inputs: [value('x', [rows, width])], outputs: [value('y', [rows, width])] }),
  );
  return { graph, weights, bytes: layers * length };
}
