import { checkTensorName, entriesOf, fail, listOf, takesAtMost } from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { keepExample } from '../base/examples.js';
import { unlessAborted } from '../base/waiting.js';
import { Allocation } from '../device/allocation.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { adopt, disposeWhenMade, type Framework, isPromise } from '../device/framework.js';
import { tensorAs } from '../device/tensor-copy.js';
import { native, settled } from '../native/addon.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import { metadataByPath, namesOf } from '../safetensors/shard-set.js';
import { unknownTensor } from '../safetensors/unknown-tensor.js';
import type { PartRange } from '../transfer/parts.js';
import type { Plan } from '../transfer/plan.js';
import { checkGetOptions, type GetOptions } from './options.js';
import type { ProcessGroup } from './process-group.js';
import { applyRules, blockOfRank, checkDim, type Names, type ShardRules } from './shard-rules.js';
import type { TensorSource, WantedParts } from './tensor-source.js';

/**
 * Tensors of several files in device memory, by name. Of a group of one they are loaded: every call makes a new tensor
 * over the same memory, which is freed when the buffer is closed and every tensor over it is disposed or collected. Of
 * a group of several ranks each call reads what it gives, and no more than that, into memory of its own: the loader has
 * to stay open, and calls also reject with what loads reject with.
 */
export class FilesBufferOnDevice<T = DeviceTensor> {
  static {
    keepExample(new FilesBufferOnDevice({} as TensorSource, {} as Names, undefined, {} as ProcessGroup));
  }

  readonly #source: TensorSource;
  readonly #framework: Framework<T> | undefined;
  readonly #pg: ProcessGroup;
  readonly #names: Names;
  readonly #closing = new AbortController();
  #closed = false;

  /** SafeTensorsFileLoader.copyFilesToDevice makes it. It ends its source. @internal */
  constructor(source: TensorSource, names: Names, framework: Framework<T> | undefined, pg: ProcessGroup) {
    this.#source = source;
    this.#names = names;
    this.#framework = framework;
    this.#pg = pg;
  }

  /** Names of all tensors, in the order of files and offsets. CLOSED. */
  keys(): string[] {
    this.#check();
    takesAtMost(0, arguments, 'keys');
    return this.#plan.names();
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
    return metadataByPath(this.#plan.inputs.map(({ metadata }) => metadata));
  }

  /** Path of the file that a tensor came from; '' for an unknown one. CLOSED. */
  getFilename(name: string): string {
    this.#check();
    takesAtMost(1, arguments, 'getFilename');
    const item = this.#names.find(name);
    return item === undefined ? '' : this.#plan.metadataOf(item).path;
  }

  /**
   * The header of a tensor and its index in it; dtype and bytes in memory, which the load may have converted.
   * UNKNOWN_TENSOR, CLOSED. @internal
   */
  sourceOf(name: string): { metadata: SafeTensorsMetadata; index: number; dtype: DTypeName; byteLength: number } {
    const plan = this.#plan;
    const item = this.#item(name);
    const index = plan.tensors[item]!;
    return { metadata: plan.metadataOf(item), index, dtype: plan.dtypeOf(item), byteLength: plan.sizes[item]! };
  }

  /**
   * A tensor over the buffer's memory, or with another `dtype` or `device` a copy in an allocation of its own. Rejects
   * with UNKNOWN_TENSOR, INVALID_ARGUMENT, CLOSED, and with what the framework's adapter throws; for a copy also with
   * UNSUPPORTED_DTYPE and the codes of memory and devices.
   */
  async getTensor(name: string, options?: GetOptions): Promise<T> {
    this.#check();
    takesAtMost(2, arguments, 'getTensor');
    const wanted = options === undefined ? {} : checkGetOptions(options);
    // What is there costs one promise, the caller's: of 100,000 tensors each further one takes tens of milliseconds.
    const tensor = this.#part(this.#item(name), null);
    return this.#give(isPromise(tensor) ? await tensor : tensor, wanted);
  }

  /**
   * For `for await (const [name, tensor] of buffer)`: getTensor() of every name, in the order of keys(). The buffer
   * stays open, its memory is all there until close().
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<[name: string, tensor: T], void, void> {
    this.#check();
    for (let item = 0; item < this.#plan.count; ++item) {
      const part = this.#part(item, null);
      const tensor = isPromise(part) ? await part : part;
      this.#check();
      const given = this.#give(tensor, {});
      yield [tensor.name, isPromise(given) ? await given : given];
    }
  }

  /**
   * This rank's part of a tensor along `dim`, in blocks of ceil(size / ranks), of which the last ranks may have less or
   * nothing; the whole tensor for dim -1. As getTensor(); INVALID_ARGUMENT for a dimension that the tensor does not
   * have, and for a part that begins or ends within a byte.
   */
  async getSharded(name: string, dim: number, options: GetOptions = {}): Promise<T> {
    takesAtMost(3, arguments, 'getSharded');
    const range = this.#block(name, dim);
    const wanted = checkGetOptions(options);
    return this.#give(await this.#part(this.#item(name), range), wanted);
  }

  /**
   * The tensor on rank dstRank, null on other ranks, which read nothing. As getTensor(); INVALID_ARGUMENT for a rank
   * outside the group.
   */
  async pushTensor(name: string, dstRank: number, options: GetOptions = {}): Promise<T | null> {
    takesAtMost(3, arguments, 'pushTensor');
    const wanted = checkGetOptions(options);
    const { rank, size } = this.#pg;
    if (!Number.isInteger(dstRank) || dstRank < 0 || dstRank >= size)
      fail('pushTensor', `a rank from 0 to ${size - 1}`, dstRank);
    const item = this.#item(name);
    return dstRank === rank ? this.#give(await this.#part(item, null), wanted) : null;
  }

  /**
   * This rank's parts of several tensors along `dim`, as getSharded() has them, concatenated along it on the device of
   * the first, in an allocation of their own; named after it. A negative `dim` counts from the last dimension, -1. As
   * getTensor(); INVALID_ARGUMENT where dtypes or other dimensions differ, or where rows of elements smaller than a
   * byte would begin within one.
   */
  async getMultiCols(names: Iterable<string>, dim: number, options: GetOptions = {}): Promise<T> {
    this.#check();
    takesAtMost(3, arguments, 'getMultiCols');
    const wanted = checkGetOptions(options);
    const listed = listOf(names, 'getMultiCols', 'an array of names');
    if (listed.length === 0) throw new InvalidArgumentError('getMultiCols: expected at least one name');
    const items = listed.map((name) => this.#item(name)); // all, before any tensor is made
    const [first] = listed as [string];
    const { length: rank } = this.getShape(first);
    checkDim(dim, rank, first, -rank);
    const axis = dim < 0 ? dim + rank : dim;
    this.#checkContinues(items, axis);
    const ranges = new Map(items.map((item, i) => [item, this.#block(listed[i]!, axis)]));
    const parts = await this.#parts(ranges);
    try {
      const { device } = parts.get(items[0]!)!;
      for (const [item, part] of parts) parts.set(item, await tensorAs(part, { device })); // from others' devices
      const given = items.map((item) => parts.get(item)!);
      return await this.#give(await this.#concatenate(given, axis), wanted);
    } finally {
      for (const part of parts.values()) part.dispose();
    }
  }

  /**
   * Several tensors at once, in the order of `dims`: as getSharded(name, dim, options) for each entry of an
   * object, a Map, or an iterable of pairs [name, dim]. With several ranks one load reads them all.
   */
  async asDict(
    dims: Readonly<Record<string, number>> | Iterable<readonly [name: string, dim: number]>,
    options: GetOptions = {},
  ): Promise<Map<string, T>> {
    this.#check();
    takesAtMost(2, arguments, 'asDict');
    const wanted = checkGetOptions(options);
    const ranges = new Map<number, PartRange | null>();
    const items = new Map<string, number>();
    for (const [name, dim] of entriesOf(dims, 'asDict', 'an object or a Map of dimensions by name')) {
      const range = this.#block(name, dim);
      if (items.has(name)) continue;
      items.set(name, this.#item(name));
      ranges.set(this.#item(name), range);
    }
    const parts = await this.#parts(ranges, true);
    const tensors = new Map<string, T>();
    try {
      for (const [name, item] of items) {
        const part = parts.get(item)!;
        parts.delete(item); // it is the framework's now
        tensors.set(name, await this.#give(part, wanted));
      }
    } catch (error) {
      for (const part of parts.values()) part.dispose();
      for (const tensor of tensors.values()) disposeWhenMade(Promise.resolve(tensor));
      throw error;
    }
    return tensors;
  }

  /**
   * All parts of this rank as one load that gives each when its bytes are there, in the order of files and offsets: for
   * tensors by name, or by patterns in which `*` stands for any text, the dimension along which ranks have blocks as in
   * getSharded() (-1: all of it), the indices { dim, start, stop }, or a function of the tensor's frame that returns
   * one of these, or null for a tensor that this rank does not want. A tensor's own name counts before patterns, of
   * which the first that fits does; tensors without a rule are not loaded. The caller disposes the tensors; ending
   * early cancels what is in flight. As getTensor(); INVALID_ARGUMENT for wrong rules.
   */
  async *shardedPlan(rules: ShardRules): AsyncGenerator<[name: string, tensor: T], void, void> {
    this.#check();
    takesAtMost(1, arguments, 'shardedPlan');
    const names = { find: (name: string) => this.#names.find(name), unknown: (name: string) => this.#unknown(name) };
    const ranges = await applyRules(rules, 'shardedPlan', this.#plan, names, this.#pg);
    for await (const tensor of this.#source.parts(ranges, this.#closing.signal, true)) {
      const { name } = tensor;
      yield [name, await this.#give(tensor, {})];
    }
  }

  /** Releases the memory; tensors stay valid. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#source.end();
    this.#closed = true;
    this.#closing.abort(new FastSafetensorsError('CLOSED', 'the buffer was closed while a tensor was made'));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** INVALID_ARGUMENT unless these tensors continue each other along a dimension. */
  #checkContinues(items: readonly number[], dim: number): void {
    const plan = this.#plan;
    const tensors = items.map((item) => {
      const name = plan.metadataOf(item).nameAt(plan.tensors[item]!);
      return { name, dtype: plan.dtypeOf(item), shape: plan.shapeOf(item) };
    });
    const [first] = tensors as [(typeof tensors)[0]];
    for (const part of tensors) {
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
    for (const { name, shape, dtype } of tensors) {
      const row = shape.slice(dim).reduce((product, size) => product * size, 1) * DTYPE_BITS[dtype];
      if (row % 8 === 0) continue;
      throw new InvalidArgumentError(
        `getMultiCols: a row of "${name}", ${dtype} [${shape}], has ${row} bits along dimension ${dim}, ` +
          'expected whole bytes; concatenate along dimension 0',
      );
    }
  }

  async #concatenate(parts: readonly DeviceTensor[], dim: number): Promise<DeviceTensor> {
    const first = parts[0]!;
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
  #give(tensor: DeviceTensor, wanted: ReturnType<typeof checkGetOptions>): T | Promise<T> {
    if (wanted.dtype === undefined && wanted.device === undefined) return this.#giveMade(tensor);
    return tensorAs(tensor, wanted).then((made) => this.#giveMade(made));
  }

  #giveMade(tensor: DeviceTensor): T | Promise<T> {
    if (!this.#closed) return this.#adopt(tensor);
    tensor.dispose();
    throw this.#closing.signal.reason;
  }

  #adopt(tensor: DeviceTensor): T | Promise<T> {
    const adopted = adopt(this.#framework, tensor);
    if (!isPromise(adopted)) return adopted;
    return unlessAborted(adopted, [this.#closing.signal], () => disposeWhenMade(adopted));
  }

  get #plan(): Plan {
    return this.#source.plan;
  }

  /** A tensor of an item, or this part of it, when it has arrived. */
  #part(item: number, range: PartRange | null): DeviceTensor | Promise<DeviceTensor> {
    if (range === null) return this.#source.tensor(item, this.#closing.signal);
    return this.#parts(new Map([[item, range]])).then((parts) => parts.get(item)!);
  }

  /** The same of several items; none is left where one fails. */
  async #parts(wanted: WantedParts, together = false): Promise<Map<number, DeviceTensor>> {
    const tensors: DeviceTensor[] = [];
    try {
      for await (const tensor of this.#source.parts(wanted, this.#closing.signal, together)) tensors.push(tensor);
      this.#check();
    } catch (error) {
      for (const tensor of tensors) tensor.dispose();
      throw error;
    }
    return new Map(tensors.map((tensor) => [this.#names.find(tensor.name)!, tensor]));
  }

  /** This rank's block of a dimension, null for all of the tensor. */
  #block(name: string, dim: number): PartRange | null {
    return blockOfRank({ name, shape: this.getShape(name) }, dim, this.#pg);
  }

  #item(name: string): number {
    this.#check();
    checkTensorName(name);
    const item = this.#names.find(name);
    if (item === undefined) throw this.#unknown(name);
    return item;
  }

  #unknown(name: string): Error {
    const { count, inputs } = this.#plan;
    return unknownTensor(`there is no tensor "${name}" among the ${count} of this buffer`, name, namesOf(inputs));
  }

  #check(): void {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'the buffer is closed');
  }
}
