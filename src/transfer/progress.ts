import { basename } from 'node:path';
import { isPromise } from 'node:util/types';
import { FastSafetensorsError } from '../base/errors.js';
import { clearInterval, milliseconds, nextTurn, setInterval } from '../base/timers.js';
import type { Load } from './load.js';
import type { Plan } from './plan.js';

/** How far a load is: of a file ('initiate' before its first byte, 'progress', 'done') or of all ('progress_total'). */
export interface Progress {
  status: 'initiate' | 'progress' | 'done' | 'progress_total';
  /** Base name of the file; 'total' for all. */
  name: string;
  /** Path of the file; '' for all. */
  file: string;
  /** Bytes. */
  loaded: number;
  /** Bytes. */
  total: number;
  /** loaded / total, in percent. */
  progress: number;
  /** Of all files, since the load began. */
  bytesPerSecond: number;
  /** Of all files. */
  tensorsLoaded: number;
}

const INTERVAL_MS = 100;

/**
 * Reports a load's progress from the core's counters, ten times a second. What the callback throws ends the load, and
 * so does what a promise that it returns rejects with. Nothing waits for such promises: of one that rejects when the
 * load has ended, `late` is told. @internal
 */
export class ProgressMeter {
  readonly #load: Load;
  readonly #callback: (progress: Progress) => unknown;
  readonly #late: (error: unknown) => void;
  readonly #files: FileSpan[];
  readonly #start = milliseconds();
  readonly #timer: NodeJS.Timeout;
  #first = 0; // files before it are done
  #unsettled = 0; // promises of the callback
  #over = false;
  #thrown: { readonly value: unknown } | undefined;

  /** Reports at once, and then until stop() or abandon(). */
  constructor(load: Load, callback: (progress: Progress) => unknown, late: (error: unknown) => void) {
    this.#load = load;
    this.#callback = callback;
    this.#late = late;
    this.#files = fileSpans(load.plan);
    this.#timer = setInterval(() => this.#report(), INTERVAL_MS);
    this.#timer.unref();
    this.#report();
  }

  #report(): void {
    if (this.#thrown) return;
    try {
      const loaded = this.#load.bytesLoaded;
      const seconds = Math.max((milliseconds() - this.#start) / 1000, 1e-6);
      const tensorsLoaded = this.#load.readyCount;
      const emit = (status: Progress['status'], path: string, done: number, total: number): void =>
        this.#call({
          status,
          name: path === '' ? 'total' : basename(path),
          file: path,
          loaded: done,
          total,
          progress: total === 0 ? 100 : (100 * done) / total,
          bytesPerSecond: loaded / seconds,
          tensorsLoaded,
        });
      const { readyPrefix } = this.#load;
      for (let i = this.#first; i < this.#files.length; ++i) {
        const file = this.#files[i]!;
        const total = file.end - file.begin;
        if (!file.begun) emit('initiate', file.path, 0, total);
        file.begun = true;
        if (readyPrefix < file.lastItem) {
          // Reads of the next files may have ended before the last of this one.
          emit('progress', file.path, Math.min(Math.max(0, loaded - file.begin), total), total);
          break;
        }
        emit('done', file.path, total, total);
        this.#first = i + 1;
      }
      emit('progress_total', '', loaded, this.#load.plan.bytes);
    } catch (error) {
      this.#fail(error, 'threw');
    }
  }

  #call(progress: Progress): void {
    const returned = this.#callback(progress);
    if (!isPromise(returned)) return;
    ++this.#unsettled;
    returned.then(
      () => --this.#unsettled,
      (error) => {
        --this.#unsettled;
        if (this.#over) this.#late(error);
        else this.#fail(error, 'rejected with');
      },
    );
  }

  /** Ends the load with the first error of the callback. */
  #fail(error: unknown, how: string): void {
    if (this.#thrown) return;
    this.#thrown = { value: error };
    const message = `onProgress ${how} ${typeof error}`;
    this.#load.cancel(error instanceof Error ? error : new FastSafetensorsError('CLOSED', message, { cause: error }));
  }

  /** The last report. Rejects with what the callback threw, or a promise of it that is settled rejected with. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    if (this.#load.error === null) this.#report();
    if (this.#unsettled > 0) await nextTurn();
    this.#over = true;
    this.rethrow();
  }

  /** Throws what the callback threw, which need not be an Error, as the load's own error is. */
  rethrow(): void {
    if (this.#thrown) throw this.#thrown.value;
  }

  /** Ends without a report. */
  abandon(): void {
    this.#over = true;
    clearInterval(this.#timer);
  }
}

interface FileSpan {
  readonly path: string;
  /** Bytes of the plan before this file and up to its end. */
  begin: number;
  end: number;
  /** One past its last item. */
  lastItem: number;
  begun: boolean;
}

function fileSpans(plan: Plan): FileSpan[] {
  const spans = plan.inputs.map(({ metadata: { path } }) => ({ path, begin: 0, end: 0, lastItem: 0, begun: false }));
  for (let item = 0; item < plan.count; ++item) {
    const span = spans[plan.files[item]!]!;
    span.end += plan.lengths[item]!;
    span.lastItem = item + 1;
  }
  let before = 0;
  for (const span of spans) {
    span.begin = before;
    span.end += before;
    before = span.end;
  }
  return spans;
}

const BAR_COLUMNS = 40;

/** Draws a bar on stderr, for `progress: true`; nothing where stderr is no terminal. */
export function progressBar(): (progress: Progress) => void {
  let wasDone = false;
  return ({ status, loaded, total, bytesPerSecond, tensorsLoaded }) => {
    if (status !== 'progress_total' || !process.stderr.isTTY) return;
    const isDone = loaded >= total;
    if (isDone && wasDone) return; // the last report may come twice
    wasDone = isDone;
    const bar = '='.repeat(isDone ? BAR_COLUMNS : Math.floor((BAR_COLUMNS * loaded) / total)).padEnd(BAR_COLUMNS, '-');
    const [gb, of, rate] = [loaded, total, bytesPerSecond].map((bytes) => (bytes / 1e9).toFixed(2));
    const text = `loading [${bar}] ${gb} of ${of} GB, ${rate} GB/s, ${tensorsLoaded} tensors`;
    // Over the line before; one that wraps could not be drawn over.
    const { columns = text.length + 1 } = process.stderr;
    process.stderr.write(`\r${text.slice(0, Math.max(columns - 1, 0))}\x1b[K${isDone ? '\n' : ''}`);
  };
}
