import { DTYPE_NAMES, type DTypeName } from '../../src/base/dtype.js';
import { ioError } from '../../src/base/errors.js';
import type { FileCalls } from '../../src/base/waiting.js';
import type { Weight } from '../../src/models/onnx/graph.js';
import { stat } from '../../src/native/addon.js';
import { SafeTensorsMetadata } from '../../src/safetensors/metadata.js';
import type { ShardSet } from '../../src/safetensors/shard-set.js';
import type { ExternalFiles } from './match.js';

interface Entry {
  readonly name: string;
  readonly dtype: DTypeName;
  readonly shape: readonly number[];
  readonly offset: number;
  readonly length: number;
}

/**
 * External data in files of any format (`model.onnx_data`) as tensors that loaders can load: the model says what a
 * .safetensors file says in its header. A tensor has the name of its weight; where several weights are the same bytes,
 * that of the first. `isTaken`: names to keep away from. IO_ERROR, and what ExternalFiles.file throws.
 */
export async function externalShards(
  weights: readonly Weight[],
  external: ExternalFiles,
  isTaken: (name: string) => boolean,
): Promise<ShardSet> {
  const files = new Map<string, Map<string, Entry>>();
  const names = new Map<string, string>(); // to paths
  for (const weight of weights) {
    const { offset, length } = external.place(weight);
    const { name, dtype, shape, byteLength } = weight.info;
    if (length !== byteLength || length === 0) continue; // ONNX Runtime says what is wrong with it
    const path = await external.file(weight);
    const entries = files.get(path) ?? new Map<string, Entry>();
    files.set(path, entries);
    const place = `${offset} ${length}`;
    if (entries.has(place)) continue;
    let unique = name;
    for (let i = 1; names.has(unique) || isTaken(unique); ++i) unique = `${name} (${i})`;
    names.set(unique, path);
    const type = dtype ? { dtype, shape } : { dtype: 'U8' as const, shape: [length] };
    entries.set(place, { name: unique, ...type, offset, length });
  }
  const paths = [...files.keys()];
  const metadata = await Promise.all(
    paths.map((path) => headerOf(path, [...files.get(path)!.values()], external.calls)),
  );
  const fileOf = (name: string) => {
    const path = names.get(name);
    return path === undefined ? undefined : paths.indexOf(path);
  };
  return { metadata, inputs: metadata.map((file) => ({ metadata: file, selection: null })), fileOf, notes: [] };
}

async function headerOf(path: string, entries: Entry[], calls?: FileCalls): Promise<SafeTensorsMetadata> {
  const { dev, ino, size, mtimeNs } = await stat(path, calls).catch((cause) => {
    throw ioError('read', path, cause);
  });
  entries.sort((a, b) => a.offset - b.offset || a.length - b.length);
  let [nameEnd, rankEnd] = [0, 0];
  const header = {
    headerLength: 0,
    sizeBytes: size,
    dataStart: 0,
    tensorCount: entries.length,
    trailingBytes: 0,
    identity: { dev, ino, size: BigInt(size), mtimeNs },
    names: entries.map(({ name }) => name).join(''),
    nameEnds: Uint32Array.from(entries, ({ name }) => (nameEnd += name.length)),
    dtypes: Uint8Array.from(entries, ({ dtype }) => DTYPE_NAMES.indexOf(dtype)),
    begins: Float64Array.from(entries, ({ offset }) => offset),
    ends: Float64Array.from(entries, ({ offset, length }) => offset + length),
    rankEnds: Uint32Array.from(entries, ({ shape }) => (rankEnd += shape.length)),
    dims: Float64Array.from(entries.flatMap(({ shape }) => shape)),
    metadataTexts: '',
    metadataEnds: new Uint32Array(0),
  };
  return SafeTensorsMetadata.fromNative(header, path);
}
