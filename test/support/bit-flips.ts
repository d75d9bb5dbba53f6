import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { FastSafetensorsError, fastsafeOpen, type LoaderOptions, ParallelLoader } from 'fastsafetensors-node';
import { runCli } from './cli.js';
import { type Entry, encodeFile, entry, newFolder } from './model-files.js';

const DTYPES = ['F32', 'BF16', 'U8', 'F16', 'F64', 'I32'] as const;
const ways: LoaderOptions[] = [{}, { mmap: false }, { staging: 'always', bounceBufferSize: 16384 }, { dtype: 'F16' }];

/** The seed of random places; FST_TEST_SEED repeats them. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/**
 * Turns over single bits of a file with digests, one after the other at so many random places, and loads it each time:
 * each one is found, and of a tensor's bytes the tensor is named. `algorithm`: of the command `checksum`.
 */
export async function expectFlipsFound(count: number, algorithm: 'xxh3' | 'sha256'): Promise<void> {
  const seed = Number(process.env.FST_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
  const random = randomFrom(seed);
  const entries: Entry[] = Array.from({ length: 12 }, (_, i) =>
    entry(`layer.${i}.weight`, DTYPES[i % DTYPES.length]!, [i % 3 === 0 ? 1 : 70, 100 + 37 * i]),
  );
  const file = encodeFile(entries, { padding: 20, metadata: { format: 'pt' } });
  const path = join(await newFolder(), 'model.safetensors');
  const dataStart = file.byteLength - entries.reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
  const put = (at: number, byte: number): void => {
    const fd = openSync(path, at < 0 ? 'w' : 'r+');
    if (at < 0) writeSync(fd, file);
    else writeSync(fd, Uint8Array.of(byte), 0, 1, at);
    closeSync(fd);
  };
  put(-1, 0);
  expect((await runCli('checksum', path, '--algorithm', algorithm)).exitCode).toBe(0);
  await load(path, {}); // nothing is wrong with it
  for (let i = 0; i < count; ++i) {
    // One in ten lies before the data, which is little of the file.
    const at = Math.floor(i % 10 === 0 ? random() * dataStart : random() * file.byteLength);
    put(at, file[at]! ^ (1 << Math.floor(random() * 8)));
    const wanted = at < dataStart ? { path } : { code: 'CHECKSUM_MISMATCH', path, tensor: ownerOf(at) };
    const found = await foundBy(i);
    if (!(found instanceof FastSafetensorsError)) throw new Error(`byte ${at}, seed ${seed}: ${found}`);
    expect({ at, seed, ...pick(found, wanted) }).toEqual({ at, seed, ...wanted });
    put(at, file[at]!);
  }
  await load(path, {});

  async function foundBy(i: number): Promise<unknown> {
    const lazily = i % (ways.length + 1) === ways.length;
    return (lazily ? loadLazily(path) : load(path, ways[i % (ways.length + 1)]!)).then(
      () => 'it was loaded',
      (error) => error,
    );
  }

  function ownerOf(at: number): string {
    let end = dataStart;
    for (const { name, bytes } of entries) {
      end += bytes.byteLength;
      if (at < end) return name;
    }
    throw new Error(`byte ${at} is of no tensor`);
  }
}

function pick(found: object, wanted: object): object {
  return Object.fromEntries(Object.keys(wanted).map((key) => [key, (found as Record<string, unknown>)[key]]));
}

async function load(path: string, options: LoaderOptions): Promise<void> {
  const loader = new ParallelLoader({ files: path, ...options });
  for await (const [, tensor] of loader) tensor.dispose();
  expect(loader.report.verifiedTensors).toBe(12);
}

async function loadLazily(path: string): Promise<void> {
  await using files = await fastsafeOpen(path);
  for (const name of files.keys()) (await files.getTensor(name)).dispose();
}
