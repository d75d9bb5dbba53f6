import { DIGEST_BYTES, digestText, EMPTY_DIGESTS } from '../base/digest.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import type { FileCalls } from '../base/waiting.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import { blobDigest, checkWhole, mismatch, readSums, type Sums, sumsPath } from '../safetensors/sums.js';
import type { Plan } from '../transfer/plan.js';
import type { LoaderOptions } from './options.js';

/** What a loader compares tensors with before it hands them out, by its option `checksum`. */
export class Integrity {
  readonly #requires: boolean;
  readonly #followLinks: boolean | undefined;
  readonly #sums = new WeakMap<SafeTensorsMetadata, Promise<Sums | undefined>>();
  readonly #whole = new WeakMap<SafeTensorsMetadata, Promise<boolean>>();

  constructor({ checksum, followLinks }: LoaderOptions) {
    this.#requires = checksum === 'require';
    this.#followLinks = followLinks;
  }

  /**
   * Gives a plan the digests of its items, and returns notes for the report. Rejects as readSums(), and with 'require'
   * where something cannot be checked: CHECKSUM_MISMATCH for a tensor without a digest, INVALID_ARGUMENT for a part of
   * one.
   */
  async prepare(plan: Plan, calls: FileCalls): Promise<string[]> {
    const sums = await Promise.all(plan.inputs.map(({ metadata }) => this.#sumsOf(metadata, calls)));
    const notes = await this.#give(plan, sums, calls);
    for (const [i, { metadata }] of plan.inputs.entries()) {
      if (!metadata.hasSums || sums[i]) continue;
      const vanished = `${sumsPath(metadata.path)} was there with the header, and is gone`;
      notes.push(`not verified: ${metadata.path}: ${vanished}; was the file replaced? Load it again`);
    }
    return notes;
  }

  async #sumsOf(metadata: SafeTensorsMetadata, calls: FileCalls): Promise<Sums | undefined> {
    if (!metadata.hasSums) return undefined;
    return once(this.#sums, metadata, () => readSums(metadata, { followLinks: this.#followLinks, calls }));
  }

  async #give(plan: Plan, sums: readonly (Sums | undefined)[], calls: FileCalls): Promise<string[]> {
    const kinds = new Uint8Array(plan.count);
    const digests = new Uint8Array(plan.count * DIGEST_BYTES);
    const proven = new Set<number>();
    const turns = new Turns(64);
    let parts = 0;
    for (let item = 0; item < plan.count; ++item) {
      const file = plan.files[item]!;
      const tensor = plan.tensors[item]!;
      const known = sums[file];
      const kind = known?.kinds[tensor] ?? 0;
      const isWhole = plan.isWhole(item);
      if (kind !== 0 && isWhole) {
        if (plan.lengths[item] === 0) checkEmpty(plan.metadataOf(item), tensor, known!);
        kinds[item] = kind;
        digests.set(known!.digests.subarray(tensor * DIGEST_BYTES, (tensor + 1) * DIGEST_BYTES), item * DIGEST_BYTES);
      } else if (this.#requires) {
        if (!proven.has(file)) await this.#prove(plan.metadataOf(item), tensor, isWhole || kind === 0, calls);
        proven.add(file);
      } else if (kind !== 0) {
        ++parts;
      }
      if (turns.due()) await turns.take();
    }
    plan.digests = { kinds, digests };
    plan.proven = proven;
    if (parts === 0) return [];
    return ['not verified: parts of tensors, of which digests are of the whole; load whole tensors, or verify --data'];
  }

  /** Compares a whole file with the name of its blob. */
  async #prove(metadata: SafeTensorsMetadata, tensor: number, isWhole: boolean, calls: FileCalls): Promise<void> {
    if (await once(this.#whole, metadata, () => proveByBlob(metadata, calls))) return;
    const { path } = metadata;
    const name = metadata.nameAt(tensor);
    if (!isWhole) {
      const what = `${path}: checksum: 'require' cannot verify a part of tensor "${name}"`;
      throw new InvalidArgumentError(`${what}, whose digest is of the whole; load all of it, or without 'require'`);
    }
    const where = `in ${sumsPath(path)} or in the header`;
    const advice = `make them by "npx fastsafetensors-node checksum ${path}", or load without checksum: 'require'`;
    const message = `${path}: tensor "${name}": expected a digest ${where}, found none; ${advice}`;
    throw new FastSafetensorsError('CHECKSUM_MISMATCH', message, { path, tensor: name });
  }
}

async function proveByBlob(metadata: SafeTensorsMetadata, calls: FileCalls): Promise<boolean> {
  const expected = metadata.identity ? await blobDigest(metadata.path, calls) : undefined;
  if (expected) await checkWhole(metadata, expected, calls);
  return expected !== undefined;
}

function checkEmpty(metadata: SafeTensorsMetadata, tensor: number, sums: Sums): void {
  const found = EMPTY_DIGESTS[sums.kinds[tensor]!]!;
  const expected = digestText(sums, tensor);
  if (found !== expected) throw mismatch(metadata, tensor, { expected, found });
}

/** The outcome of a call that succeeds once for each key. What fails, as by the end of a load, others try again. */
async function once<K extends object, V>(results: WeakMap<K, Promise<V>>, key: K, begin: () => Promise<V>): Promise<V> {
  const known = results.get(key);
  if (known) {
    try {
      return await known;
    } catch {
      if (results.get(key) === known) results.delete(key);
      return once(results, key, begin);
    }
  }
  const begun = begin();
  results.set(key, begun);
  begun.catch(() => {
    if (results.get(key) === begun) results.delete(key);
  });
  return begun;
}
