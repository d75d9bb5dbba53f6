import { describe } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { Intervals } from '../base/intervals.js';
import { type Allocation, vanished } from '../device/allocation.js';
import type { Device } from '../device/device.js';
import type { CopyRange, Destination } from './copier.js';

/** The outcome of a write, which knows whether anybody has asked for it: by await, then, catch or Promise.all. */
class WriteOutcome extends Promise<void> {
  asked = false;

  // biome-ignore lint/suspicious/noThenProperty: it is a promise.
  override then<A = void, B = never>(
    // biome-ignore lint/suspicious/noConfusingVoidType: as Promise<void> has it.
    fulfilled?: ((value: void) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.asked = true;
    return super.then(fulfilled, rejected);
  }

  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }
}

/**
 * An allocation as the copier of one request sees it: only the request's ranges can be written, and only until it has
 * ended. It knows which bytes were written, so that no others are handed out.
 */
export class AllocationDestination implements Destination {
  readonly #allocation: Allocation;
  readonly #allowed = new Intervals();
  readonly #landed = new Intervals();
  readonly #progress: () => void;
  readonly #pending = new Set<Promise<void>>();
  readonly #failed: { readonly outcome: WriteOutcome; readonly error: unknown }[] = [];
  #addressed = false;
  #closed = false;

  /** `progress` is called when bytes were written. */
  constructor(allocation: Allocation, ranges: readonly CopyRange[], progress: () => void) {
    this.#allocation = allocation;
    this.#progress = progress;
    for (const { destOffset, length } of ranges) this.#allowed.add(destOffset, destOffset + length);
  }

  get device(): Device {
    return this.#allocation.device;
  }

  get byteLength(): number {
    return this.#allocation.size;
  }

  get pointer(): bigint {
    this.#addressed = true;
    return this.#allocation.pointer;
  }

  write(destOffset: number, bytes: Uint8Array): Promise<void> {
    const outcome = new WriteOutcome((resolve) => resolve(this.#write(destOffset, bytes)));
    // Not by its own then(): a copier that does not wait for it is to be told of what failed all the same.
    const noted = Promise.prototype.then
      .call(outcome, undefined, (error) => void this.#failed.push({ outcome, error }))
      .then(() => void this.#pending.delete(noted));
    this.#pending.add(noted);
    return outcome;
  }

  async #write(destOffset: number, bytes: Uint8Array): Promise<void> {
    const own = ownView(bytes);
    await this.fill([{ destOffset, length: own.byteLength }], (allocation, landed) =>
      allocation.write(destOffset, own, landed),
    );
  }

  /**
   * Lets `how` write these ranges; it may tell which parts have landed before it resolves, when all have.
   * INVALID_ARGUMENT for what is not the request's to write, CLOSED when the request has ended. @internal
   */
  async fill(
    parts: readonly { destOffset: number; length: number }[],
    how: (allocation: Allocation, landed: (offset: number, length: number) => void) => Promise<void>,
  ): Promise<void> {
    if (this.#closed) throw new FastSafetensorsError('CLOSED', 'write: the request of this destination has ended');
    for (const { destOffset, length } of parts) this.#check(destOffset, length);
    const landed = (offset: number, length: number): void => {
      this.#landed.add(offset, offset + length);
      this.#progress();
    };
    const allocation = this.#allocation.retain();
    const filling = how(allocation, landed)
      .then(() => {
        for (const { destOffset, length } of parts) landed(destOffset, length);
      })
      .finally(() => {
        allocation.release();
        this.#pending.delete(filling);
      });
    this.#pending.add(filling);
    await filling;
  }

  /** Refuses further writes; resolves when those in progress have ended. @internal */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#pending);
  }

  /**
   * Offset in the memory of the first byte of a range that was not written. A copier that read `pointer` may have
   * filled them itself, and is believed. @internal
   */
  firstMissing({ destOffset, length }: CopyRange): number | undefined {
    return this.#addressed ? undefined : this.#landed.firstGap(destOffset, destOffset + length);
  }

  /** Once it is closed: the error of the first write that failed and that nobody has asked for. @internal */
  get unnoticed(): { readonly error: unknown } | undefined {
    return this.#failed.find(({ outcome }) => !outcome.asked);
  }

  #check(destOffset: number, length: number): void {
    const { size } = this.#allocation;
    const numbers = Number.isSafeInteger(destOffset) && Number.isSafeInteger(length);
    if (!numbers || destOffset < 0 || length < 0 || destOffset + length > size) {
      const range = `${describe(length)} bytes at offset ${describe(destOffset)}`;
      throw new InvalidArgumentError(`write: ${range} reach outside the destination of ${size} bytes`);
    }
    if (!this.#allowed.has(destOffset, destOffset + length)) {
      const range = `${length} bytes at offset ${destOffset}`;
      const advice = 'write each range to its destOffset';
      throw new InvalidArgumentError(`write: ${range} reach outside the ranges of this request; ${advice}`);
    }
  }
}

/** A view with true properties: those of the given one can be overridden. */
function ownView(bytes: Uint8Array): Uint8Array {
  if (!ArrayBuffer.isView(bytes)) throw new InvalidArgumentError('write: expected a Uint8Array');
  const { byteLength } = bytes;
  if (byteLength === 0) return new Uint8Array(0);
  try {
    const view = new Uint8Array(bytes.buffer, bytes.byteOffset, byteLength);
    if (view.byteLength === byteLength) return view;
  } catch {
    // Its buffer is shorter than byteLength says.
  }
  throw vanished(byteLength);
}
