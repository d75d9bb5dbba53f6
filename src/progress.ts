import { basename } from 'node:path';
import { SingleBar } from 'cli-progress';
import type { Load } from './loaders/load.js';
import type { Plan } from './plan.js';

/** How far a load is. Of a file ('initiate' before its first byte, 'progress', 'done') or of all ('progress_total'). */
export interface Progress {
  status: 'initiate' | 'progress' | 'done' | 'progress_total';
  /** Base name of the file; 'total' for all. */
  name: string;
  /** Path of the file; '' for all. */
  file: string;
  /** Bytes. */
  loaded: number;
  total: number;
  /** loaded / total in percent. */
  progress: number;
  bytesPerSecond: number;
  tensorsLoaded: number;
}

const INTERVAL_MS = 100;

/** Reports a load's progress from the core's counters, ten times a second. An exception of the callback ends the load with it. */
export class ProgressMeter {
  readonly #load: Load;
  readonly #callback: (progress: Progress) => void;
  readonly #files: { path: string; begin: number; end: number; state: 'waiting' | 'loading' | 'done' }[];
  readonly #start = performance.now();
  readonly #timer: NodeJS.Timeout;
  #first = 0; // files before it are done
  error: unknown;

  constructor(load: Load, callback: (progress: Progress) => void) {
    this.#load = load;
    this.#callback = callback;
    this.#files = fileSpans(load.plan);
    this.#timer = setInterval(() => this.#report(), INTERVAL_MS);
    this.#timer.unref();
    this.#report();
  }

  #report(): void {
    if (this.error !== undefined) return;
    try {
      const loaded = this.#load.bytesLoaded;
      const seconds = Math.max((performance.now() - this.#start) / 1000, 1e-6);
      const tensorsLoaded = this.#load.readyCount;
      const emit = (status: Progress['status'], path: string, done: number, total: number): void =>
        this.#callback({
          status,
          name: path === '' ? 'total' : basename(path),
          file: path,
          loaded: done,
          total,
          progress: total === 0 ? 100 : (100 * done) / total,
          bytesPerSecond: loaded / seconds,
          tensorsLoaded,
        });
      const complete = tensorsLoaded === this.#load.plan.count;
      for (let i = this.#first; i < this.#files.length; ++i) {
        const file = this.#files[i]!;
        if (loaded < file.begin && !complete) break;
        const total = file.end - file.begin;
        if (file.state === 'waiting') {
          emit('initiate', file.path, 0, total);
          file.state = 'loading';
        }
        if (loaded >= file.end && (complete || this.#load.readyPrefix > 0)) {
          emit('done', file.path, total, total);
          file.state = 'done';
          this.#first = i + 1;
        } else {
          emit('progress', file.path, Math.max(0, loaded - file.begin), total);
          break;
        }
      }
      emit('progress_total', '', loaded, this.#load.plan.bytes);
    } catch (error) {
      this.error = error;
      this.#load.cancel();
    }
  }

  /** The last report. Throws what the callback threw. */
  stop(): void {
    clearInterval(this.#timer);
    if (this.#load.error === null) this.#report();
    if (this.error !== undefined) throw this.error;
  }

  /** Ends without a report. */
  abandon(): void {
    clearInterval(this.#timer);
  }
}

/** Bytes of a plan that lie before the end of each of its files. */
function fileSpans(plan: Plan): { path: string; begin: number; end: number; state: 'waiting' }[] {
  const spans = plan.inputs.map(({ metadata }) => ({
    path: metadata.path,
    begin: 0,
    end: 0,
    state: 'waiting' as const,
  }));
  for (let item = 0; item < plan.count; ++item) spans[plan.files[item]!]!.end += plan.lengths[item]!;
  let before = 0;
  for (const span of spans) {
    span.begin = before;
    span.end += before;
    before = span.end;
  }
  return spans;
}

/** A bar on stderr, for `progress: true`. Draws nothing where stderr is no terminal. */
export function progressBar(): (progress: Progress) => void {
  let bar: SingleBar | undefined;
  return ({ status, loaded, total, bytesPerSecond, tensorsLoaded }) => {
    if (status !== 'progress_total' || !process.stderr.isTTY) return;
    const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);
    const payload = {
      gb: gigabytes(loaded),
      of: gigabytes(total),
      rate: gigabytes(bytesPerSecond),
      tensors: tensorsLoaded,
    };
    if (!bar) {
      bar = new SingleBar({
        format: 'loading [{bar}] {gb} of {of} GB, {rate} GB/s, {tensors} tensors',
        hideCursor: null,
        stream: process.stderr,
      });
      bar.start(Math.max(total, 1), loaded, payload);
    } else {
      bar.update(total === 0 ? 1 : loaded, payload);
    }
    if (loaded >= total) bar.stop();
  };
}
