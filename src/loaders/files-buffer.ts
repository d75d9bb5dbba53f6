import { checkTensorName, describe } from '../base/checks.js';
import { DTYPE_BITS } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { openDevice } from '../device/device.js';
import { DeviceTensor } from '../device/device-tensor.js';
import { adopt, disposeWhenMade, type Framework, isPromise } from '../device/framework.js';
import { Memory } from '../device/memory.js';
import { native, settled } from '../native/addon.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { Load } from '../transfer/load.js';
import type { ProcessGroup } from './process-group.js';

/**
 * Loaded tensors of several files in device memory, by name. Each get makes a tensor over the same memory; the memory goes when the buffer is closed and every
 * tensor over it is disposed or collected.
 */
export class FilesBufferOnDevice<T = DeviceTensor> {
  readonly #load: Load;
  readonly #framework: Framework<T> | undefined;
  readonly #pg: ProcessGroup;
  readonly #find: (name: string) => number | undefined;
  /** Called when the buffer is closed: for each tensor that a framework is still making. */
  readonly #making = new Set<() => void>();
  #closed = false;

  /** @internal Made by SafeTensorsFileLoader.copyFilesToDevice of a complete load. */
  constructor(
    load: Load,
    find: (name: string) => number | undefined,
    framework: Framework<T> | undefined,
    pg: ProcessGroup,
  ) {
    this.#load = load;
    this.#find = find;
    this.#framework = framework;
    this.#pg = pg;
  }

  keys(): string[] {
    this.#check();
    return this.#load.plan.names();
  }

  /** UNKNOWN_TENSOR. */
  getShape(name: string): readonly number[] {
    const { plan } = this.#load;
    const item = this.#item(name);
    return plan.inputs[plan.files[item]!]!.metadata.shapeAt(plan.tensors[item]!);
  }

  /** Path of the file that a tensor came from; '' when unknown. */
  getFilename(name: string): string {
    this.#check();
    const { plan } = this.#load;
    const item = this.#find(name);
    return item === undefined ? '' : plan.inputs[plan.files[item]!]!.metadata.path;
  }

  /** The header that a tensor was loaded by, and its place among that header's tensors. UNKNOWN_TENSOR. @internal */
  sourceOf(name: string): { metadata: SafeTensorsMetadata; index: number } {
    const { plan } = this.#load;
    const item = this.#item(name);
    return { metadata: plan.inputs[plan.files[item]!]!.metadata, index: plan.tensors[item]! };
  }

  /** UNKNOWN_TENSOR, INVALID_ARGUMENT for what is no name, CLOSED, and what the framework's adapter rejects with. */
  async getTensor(name: string): Promise<T> {
    return this.#adopt(this.#load.tensor(this.#item(name)));
  }

  /** This rank's part along `dim`, blocks of ceil(size / ranks); the whole tensor for dim -1. INVALID_ARGUMENT for a dimension that is not there. */
  async getSharded(name: string, dim: number): Promise<T> {
    checkDim(dim, this.getShape(name).length, name, -1);
    // One rank: its block is the whole.
    return this.getTensor(name);
  }

  /** The tensor on rank dstRank, null on the others. INVALID_ARGUMENT for a rank that is not there. */
  async pushTensor(name: string, dstRank: number): Promise<T | null> {
    const { rank, size } = this.#pg;
    if (!Number.isInteger(dstRank) || dstRank < 0 || dstRank >= size) {
      throw new InvalidArgumentError(`pushTensor: expected a rank from 0 to ${size - 1}, found ${describe(dstRank)}`);
    }
    const item = this.#item(name);
    return dstRank === rank ? this.#adopt(this.#load.tensor(item)) : null;
  }

  /**
   * Several tensors as one, put together along `dim` on the device; named after the first. INVALID_ARGUMENT when dtypes or other dimensions differ or a dtype is
   * smaller than a byte.
   */
  async getMultiCols(names: readonly string[], dim: number): Promise<T> {
    this.#check();
    if (!Array.isArray(names) || names.length === 0)
      throw new InvalidArgumentError('getMultiCols: expected at least one name');
    const items = names.map((name) => this.#item(name)); // all, before any tensor is made
    const parts = items.map((item) => this.#load.tensor(item));
    try {
      return await this.#adopt(await this.#concatenate(parts, dim));
    } finally {
      for (const part of parts) part.dispose();
    }
  }

  /** Several tensors at once: as getSharded(name, dim) for each entry. */
  async asDict(dims: Readonly<Record<string, number>>): Promise<Map<string, T>> {
    for (const [name, dim] of Object.entries(dims)) checkDim(dim, this.getShape(name).length, name, -1);
    const tensors = new Map<string, T>();
    for (const [name, dim] of Object.entries(dims)) tensors.set(name, await this.getSharded(name, dim));
    return tensors;
  }

  /** Lets go of the memory; tensors stay valid. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#load.end();
    for (const closed of this.#making) closed();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #concatenate(parts: readonly DeviceTensor[], dim: number): Promise<DeviceTensor> {
    const first = parts[0]!;
    checkDim(dim, first.shape.length, first.name, 0);
    const bits = DTYPE_BITS[first.dtype];
    for (const part of parts) {
      const same =
        part.dtype === first.dtype &&
        part.shape.length === first.shape.length &&
        part.shape.every((size, axis) => axis === dim || size === first.shape[axis]);
      if (!same) {
        throw new InvalidArgumentError(
          `getMultiCols: "${part.name}" is ${part.dtype} [${part.shape}], which does not continue "${first.name}", ${first.dtype} [${first.shape}], along dimension ${dim}`,
        );
      }
    }
    if (bits % 8 !== 0) throw new InvalidArgumentError(`getMultiCols: ${first.dtype} has elements smaller than a byte`);
    const shape = first.shape.map((size, axis) =>
      axis === dim ? parts.reduce((sum, part) => sum + part.shape[dim]!, 0) : size,
    );
    const byteLength = parts.reduce((sum, part) => sum + part.byteLength, 0);
    if (byteLength === 0) return new DeviceTensor(first.name, first.dtype, shape, 0, first.device, null, 0);

    const device = await openDevice(first.device);
    const memory = new Memory(await settled(native().allocate(device, byteLength)), first.device, byteLength).retain();
    try {
      const outer = shape.slice(0, dim).reduce((product, size) => product * size, 1);
      const rowBytes = byteLength / outer;
      let column = 0; // where a part's block begins in each row
      for (const part of parts) {
        const block = part.byteLength / outer;
        const source = part.memory;
        if (source.memory && block > 0) {
          const rows = Float64Array.of(block, source.offset, column, outer, block, rowBytes);
          await settled(native().copyAllocation(source.memory.handle, memory.handle, rows));
        }
        column += block;
      }
      return new DeviceTensor(first.name, first.dtype, shape, byteLength, first.device, memory, 0);
    } finally {
      memory.release();
    }
  }

  async #adopt(tensor: DeviceTensor): Promise<T> {
    const adopted = adopt(this.#framework, tensor);
    if (!isPromise(adopted)) return adopted;
    return new Promise<T>((resolve, reject) => {
      const closed = (): void => {
        reject(new FastSafetensorsError('CLOSED', 'the buffer was closed while a tensor was made'));
        disposeWhenMade(adopted);
      };
      this.#making.add(closed);
      const settle = <V>(how: (value: V) => void): ((value: V) => void) => {
        return (value) => {
          this.#making.delete(closed);
          how(value);
        };
      };
      adopted.then(settle(resolve), settle(reject));
    });
  }

  #item(name: string): number {
    this.#check();
    checkTensorName(name);
    const item = this.#find(name);
    if (item === undefined) {
      throw new FastSafetensorsError(
        'UNKNOWN_TENSOR',
        `there is no tensor "${name}" among the ${this.#load.plan.count} of this buffer`,
        { tensor: name },
      );
    }
    return item;
  }

  #check(): void {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'the buffer is closed');
  }
}

function checkDim(dim: number, rank: number, name: string, least: number): void {
  if (Number.isInteger(dim) && dim >= least && (dim < rank || dim === -1)) return;
  throw new InvalidArgumentError(
    `dim: expected ${least === -1 ? '-1 or ' : ''}a dimension of "${name}", which has ${rank}, found ${describe(dim)}`,
  );
}
