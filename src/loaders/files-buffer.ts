import { checkTensorName, entriesOf, fail, listOf, takesAtMost } from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { held, Turns } from '../base/timers.js';
import { unlessAborted } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { adopt, disposeWhenMade, type Framework, isPromise } from '../device/framework.js';
import { tensorAs } from '../device/tensor-copy.js';
import { native, settled } from '../native/addon.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { metadataByPath, namesOf } from '../safetensors/shard-set.js';
import { unknownTensor } from '../safetensors/unknown-tensor.js';
import type { Arrival } from '../transfer/arrival.js';
import type { Load } from '../transfer/load.js';
import { checkGetOptions, type GetOptions } from './options.js';
import type { ProcessGroup } from './process-group.js';

/**
 * Loaded tensors of several files in device memory, by name. Every call makes a new tensor over the same memory, which
 * is freed when the buffer is closed and every tensor over it is disposed or collected.
 */
export class FilesBufferOnDevice<T = DeviceTensor> {
  readonly #load: Load;
  readonly #framework: Framework<T> | undefined;
  readonly #pg: ProcessGroup;
  readonly #find: (name: string) => number | undefined;
  readonly #arrival: Arrival | undefined;
  readonly #closing = new AbortController();
  readonly #turns = new Turns(64);

  /**
   * SafeTensorsFileLoader.copyFilesToDevice makes it of a load, which it ends: a complete one, or one whose `arrival`
   * tells what is ready. @internal
   */
  constructor(
    load: Load,
    find: (name: string) => number | undefined,
    framework: Framework<T> | undefined,
    pg: ProcessGroup,
    arrival?: Arrival,
  ) {
    this.#arrival = arrival;
    this.#load = load;
    this.#find = find;
    this.#framework = framework;
    this.#pg = pg;
  }

  /** Names of all tensors, in the order of files and offsets. CLOSED. */
  keys(): string[] {
    this.#check();
    takesAtMost(0, arguments, 'keys');
    return this.#load.plan.names();
  }

  /** UNKNOWN_TENSOR, INVALID_ARGUMENT, CLOSED. */
  getShape(name: string): readonly number[] {
    takesAtMost(1, arguments, 'getShape');
    const { metadata, index } = this.sourceOf(name);
    return metadata.shapeAt(index);
  }

  /**
   * What the header says of a tensor: its shape, its dtype and offsets in the file, also where the load converted it.
   * UNKNOWN_TENSOR, CLOSED.
   */
  frame(name: string): TensorFrame {
    takesAtMost(1, arguments, 'frame');
    const { metadata, index } = this.sourceOf(name);
    return metadata.frameAt(index);
  }

  /** `__metadata__` of each loaded file, by its path. CLOSED. */
  metadata(): Map<string, ReadonlyMap<string, string>> {
    this.#check();
    takesAtMost(0, arguments, 'metadata');
    return metadataByPath(this.#load.plan.inputs.map(({ metadata }) => metadata));
  }

  /** Path of the file that a tensor came from; '' for an unknown one. CLOSED. */
  getFilename(name: string): string {
    this.#check();
    takesAtMost(1, arguments, 'getFilename');
    const item = this.#find(name);
    return item === undefined ? '' : this.#load.plan.metadataOf(item).path;
  }

  /**
   * The header of a tensor and its index in it; dtype and bytes in memory, which the load may have converted.
   * UNKNOWN_TENSOR, CLOSED. @internal
   */
  sourceOf(name: string): { metadata: SafeTensorsMetadata; index: number; dtype: DTypeName; byteLength: number } {
    const { plan } = this.#load;
    const item = this.#item(name);
    const index = plan.tensors[item]!;
    return { metadata: plan.metadataOf(item), index, dtype: plan.dtypeOf(item), byteLength: plan.sizes[item]! };
  }

  /**
   * A tensor over the buffer's memory, or with another `dtype` or `device` a copy in an allocation of its own. Rejects
   * with UNKNOWN_TENSOR, INVALID_ARGUMENT, CLOSED, and with what the framework's adapter throws; for a copy also with
   * UNSUPPORTED_DTYPE and the codes of memory and devices.
   */
  async getTensor(name: string, options: GetOptions = {}): Promise<T> {
    this.#check();
    takesAtMost(2, arguments, 'getTensor');
    const wanted = checkGetOptions(options);
    return this.#give(await this.#tensor(this.#item(name)), wanted);
  }

  /**
   * For `for await (const [name, tensor] of buffer)`: getTensor() of every name, in the order of keys(). The buffer
   * stays open, its memory is all there until close().
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<[name: string, tensor: T], void, void> {
    this.#check();
    for (let item = 0; item < this.#load.plan.count; ++item) {
      const tensor = await this.#tensor(item);
      yield [tensor.name, await this.#give(tensor, {})];
    }
  }

  /**
   * This rank's part of a tensor along `dim`, in blocks of ceil(size / ranks); the whole tensor for dim -1. As
   * getTensor(); INVALID_ARGUMENT for a dimension that the tensor does not have.
   */
  async getSharded(name: string, dim: number, options: GetOptions = {}): Promise<T> {
    takesAtMost(3, arguments, 'getSharded');
    checkDim(dim, this.getShape(name).length, name, -1);
    return this.getTensor(name, options); // a group of one: its block is the whole
  }

  /** The tensor on rank dstRank, null on other ranks. As getTensor(); INVALID_ARGUMENT for a rank outside the group. */
  async pushTensor(name: string, dstRank: number, options: GetOptions = {}): Promise<T | null> {
    takesAtMost(3, arguments, 'pushTensor');
    const wanted = checkGetOptions(options);
    const { rank, size } = this.#pg;
    if (!Number.isInteger(dstRank) || dstRank < 0 || dstRank >= size)
      fail('pushTensor', `a rank from 0 to ${size - 1}`, dstRank);
    const item = this.#item(name);
    return dstRank === rank ? this.#give(await this.#tensor(item), wanted) : null;
  }

  /**
   * Several tensors concatenated along `dim`, on the device, in an allocation of their own; named after the first. A
   * negative `dim` counts from the last dimension, -1. As getTensor(); INVALID_ARGUMENT where dtypes or other
   * dimensions differ, or where rows of elements smaller than a byte would begin within one.
   */
  async getMultiCols(names: Iterable<string>, dim: number, options: GetOptions = {}): Promise<T> {
    this.#check();
    takesAtMost(3, arguments, 'getMultiCols');
    const wanted = checkGetOptions(options);
    const listed = listOf(names, 'getMultiCols', 'an array of names');
    if (listed.length === 0) throw new InvalidArgumentError('getMultiCols: expected at least one name');
    const items = listed.map((name) => this.#item(name)); // all, before any tensor is made
    const parts: DeviceTensor[] = [];
    try {
      for (const item of items) parts.push(await this.#tensor(item));
      return await this.#give(await this.#concatenate(parts, dim), wanted);
    } finally {
      for (const part of parts) part.dispose();
    }
  }

  /**
   * Several tensors at once, in the order of `dims`: as getSharded(name, dim, options) for each entry of an
   * object, a Map, or an iterable of pairs [name, dim].
   */
  async asDict(
    dims: Readonly<Record<string, number>> | Iterable<readonly [name: string, dim: number]>,
    options: GetOptions = {},
  ): Promise<Map<string, T>> {
    this.#check();
    takesAtMost(2, arguments, 'asDict');
    checkGetOptions(options);
    const wanted = entriesOf(dims, 'asDict', 'an object or a Map of dimensions by name');
    for (const [name, dim] of wanted) checkDim(dim, this.getShape(name).length, name, -1);
    const tensors = new Map<string, T>();
    for (const [name, dim] of wanted)
      if (!tensors.has(name)) tensors.set(name, await this.getSharded(name, dim, options));
    return tensors;
  }

  /** Releases the memory; tensors stay valid. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#load.end();
    this.#closing.abort(new FastSafetensorsError('CLOSED', 'the buffer was closed while a tensor was made'));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #concatenate(parts: readonly DeviceTensor[], given: number): Promise<DeviceTensor> {
    const first = parts[0]!;
    const rank = first.shape.length;
    checkDim(given, rank, first.name, -rank);
    const dim = given < 0 ? given + rank : given;
    const bits = DTYPE_BITS[first.dtype];
    for (const part of parts) {
      const same =
        part.dtype === first.dtype &&
        part.shape.length === first.shape.length &&
        part.shape.every((size, axis) => axis === dim || size === first.shape[axis]);
      if (!same) {
        throw new InvalidArgumentError(
          `getMultiCols: "${part.name}" is ${part.dtype} [${part.shape}], which does not continue ` +
            `"${first.name}", ${first.dtype} [${first.shape}], along dimension ${dim}`,
        );
      }
    }
    for (const { name, shape } of parts) {
      const row = shape.slice(dim).reduce((product, size) => product * size, 1) * bits;
      if (row % 8 === 0) continue;
      throw new InvalidArgumentError(
        `getMultiCols: a row of "${name}", ${first.dtype} [${shape}], has ${row} bits along dimension ${dim}, ` +
          'expected whole bytes; concatenate along dimension 0',
      );
    }
    const shape = first.shape.map((size, axis) =>
      axis === dim ? parts.reduce((sum, part) => sum + part.shape[dim]!, 0) : size,
    );
    const byteLength = parts.reduce((sum, part) => sum + part.byteLength, 0);
    if (byteLength === 0) return new DeviceTensor(first.name, first.dtype, shape, 0, first.device, null, 0);

    return Allocation.during(first.device, byteLength, async (allocation) => {
      const outer = shape.slice(0, dim).reduce((product, size) => product * size, 1);
      const rowBytes = byteLength / outer;
      let column = 0; // where a part's block begins in each row
      for (const part of parts) {
        const block = part.byteLength / outer;
        const source = part.placement;
        if (source.allocation && block > 0) {
          const rows = Float64Array.of(block, source.offset, column, outer, block, rowBytes);
          await settled(native().copyAllocation(source.allocation.handle, allocation.handle, rows));
        }
        column += block;
      }
      return new DeviceTensor(first.name, first.dtype, shape, byteLength, first.device, allocation, 0);
    });
  }

  /** A tensor as it was asked for, to the framework. */
  async #give(tensor: DeviceTensor, wanted: ReturnType<typeof checkGetOptions>): Promise<T> {
    const asLoaded = wanted.dtype === undefined && wanted.device === undefined;
    const made = asLoaded ? tensor : await tensorAs(tensor, wanted);
    if (!this.#closing.signal.aborted) return this.#adopt(made);
    made.dispose();
    throw this.#closing.signal.reason;
  }

  async #adopt(tensor: DeviceTensor): Promise<T> {
    const adopted = adopt(this.#framework, tensor);
    if (!isPromise(adopted)) return adopted;
    return unlessAborted(adopted, [this.#closing.signal], () => disposeWhenMade(adopted));
  }

  /** The tensor of an item, when it has arrived. */
  async #tensor(item: number): Promise<DeviceTensor> {
    const arriving = this.#arrival?.ready(item);
    if (arriving) await held(unlessAborted(arriving, [this.#closing.signal]));
    else if (this.#turns.due()) await this.#turns.take(); // a loop over tensors that are there gives none
    this.#check();
    return this.#load.tensor(item);
  }

  #item(name: string): number {
    this.#check();
    checkTensorName(name);
    const item = this.#find(name);
    if (item !== undefined) return item;
    const { count, inputs } = this.#load.plan;
    throw unknownTensor(`there is no tensor "${name}" among the ${count} of this buffer`, name, namesOf(inputs));
  }

  #check(): void {
    if (this.#closing.signal.aborted) throw new FastSafetensorsError('CLOSED', 'the buffer is closed');
  }
}

function checkDim(dim: number, rank: number, name: string, least: number): void {
  if (Number.isInteger(dim) && dim >= least && dim < rank) return;
  fail('dim', `a whole number from ${least}, a dimension of "${name}", which has ${rank}`, dim);
}
