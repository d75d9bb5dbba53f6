import { after, milliseconds } from '../base/timers.js';
import { onAbort } from '../base/waiting.js';
import type { CopyRange } from './copier.js';

/** Cuts requests no smaller than this, however slow the pace is: bytes. */
const SMALLEST_PIECE = 4096;
/** The most ranges of a request. */
const MOST_RANGES = 16 * 1024;

/** Keeps the requests of a loader's copiers to a rate: maxBytesPerSecond for copiers of the user's own. */
export class Pace {
  readonly #bytesPerSecond: number;
  #freeMs = 0; // when the next bytes may be asked for

  /** Infinity is no limit. */
  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  /**
   * The ranges in requests of a tenth of a second each, also cut inside tensors; in one where there is no limit and
   * there are not very many.
   */
  *pieces(ranges: Iterable<CopyRange>): Generator<CopyRange[], void, void> {
    const most = Math.max(SMALLEST_PIECE, Math.floor(this.#bytesPerSecond / 10));
    let piece: CopyRange[] = [];
    let left = most;
    for (const { fileOffset, length, destOffset } of ranges) {
      for (let at = 0; at < length; ) {
        const bytes = Math.min(length - at, left);
        piece.push({ fileOffset: fileOffset + at, length: bytes, destOffset: destOffset + at });
        at += bytes;
        left -= bytes;
        if (left > 0 && piece.length < MOST_RANGES) continue;
        yield piece;
        piece = [];
        left = most;
      }
    }
    if (piece.length > 0) yield piece;
  }

  /** Resolves when so many bytes may be asked for, or the signal is aborted. */
  async wait(bytes: number, signal: AbortSignal): Promise<void> {
    const now = milliseconds();
    const begin = Math.max(now, this.#freeMs);
    const costMs = (bytes * 1000) / this.#bytesPerSecond;
    this.#freeMs = begin + costMs;
    if (begin === now || signal.aborted) return;
    let stops: (() => void)[] = [];
    await new Promise<void>((resolve) => {
      const done = (): void => resolve();
      stops = [after(begin - now, done), onAbort(signal, done)];
    });
    for (const stop of stops) stop();
    if (signal.aborted) this.#freeMs -= costMs; // nothing will be asked for
  }
}
