import { counted } from '../base/counted.js';
import type { Logger } from '../base/logger.js';
import type { Fallback } from '../native/core.js';
import type { Load } from '../transfer/load.js';

/** What a load did on one device. */
export interface DeviceReport {
  tensors: number;
  /** As in LoadReport. */
  bytes: number;
  mappedBytes: number;
  readBytes: number;
}

/** What a loader's last load did, so far; all zero before the first one. */
export interface LoadReport {
  /** The copier that read ('gds, nogds' where devices differ); the option `copier` before the first load. */
  copier: string;
  /** Where tensors went; several: 'cuda:0, cuda:1'. */
  device: string;
  /** The figures by device. */
  devices: Record<string, DeviceReport>;
  files: number;
  tensors: number;
  /** Of them, those whose bytes were compared with a digest: see LoaderOptions.checksum. */
  verifiedTensors: number;
  /** Of tensors, as they are in their files. */
  bytes: number;
  /** Of them, those that are views of mapped files: see LoaderOptions.mmap. */
  mappedBytes: number;
  /** The others: bytes that reads had to bring. */
  wantedBytes: number;
  /**
   * Bytes that were asked of files: the wanted ones, and those that were read along because another read would have
   * taken longer (between tensors, and between the runs of a rank's part), or to begin and end at aligned blocks.
   */
  readBytes: number;
  /** Bytes of tensors that other ranks have read and broadcast; no other figure has them. */
  receivedBytes: number;
  /** From the begin of the load to its end. */
  seconds: number;
  bytesPerSecond: number;
  /** The most reads (requests, for a copier of your own) that were in flight at a time. */
  maxInFlight: number;
  /** Files that were read in another way than asked, and why. */
  fallbacks: { path: string; from: string; to: string; reason: string }[];
  /**
   * Files and tensors that were left out, or taken from elsewhere than their index says; and of the framework's adapter
   * copies that were needed, and dtypes that changed. With `mmap` given, of each file whether it was mapped, what
   * protects it, or why it was copied.
   */
  notes: readonly string[];
}

/** Keeps the report of a loader's last load, and warns of each fallback once. @internal */
export class LoadReporter {
  readonly #logger: Logger;
  readonly #warned = new Set<string>(); // path and copier of fallbacks
  #report: LoadReport;

  constructor(copier: string, device: string, logger: Logger) {
    this.#logger = logger;
    this.#report = empty(copier, device);
  }

  /** A copy. */
  get report(): LoadReport {
    const devices = structuredClone(this.#report.devices);
    return { ...this.#report, devices, fallbacks: [...this.#report.fallbacks], notes: [...this.#report.notes] };
  }

  /** A new load: its report begins. */
  begin(copier: string, device: string, files: number): void {
    this.#report = { ...empty(copier, device), files };
  }

  /** Bytes have come from other ranks. */
  received(bytes: number): void {
    this.#report.receivedBytes += bytes;
  }

  /** Takes a load's figures as they are now. */
  note(load: Load, seconds: number): void {
    const report = this.#report;
    report.tensors = load.readyCount;
    report.verifiedTensors = load.plan.verified(report.tensors === load.plan.count ? report.tensors : load.readyPrefix);
    report.bytes = load.bytesLoaded;
    report.mappedBytes = Math.min(load.mappedBytes, report.bytes);
    report.wantedBytes = report.bytes - report.mappedBytes;
    report.readBytes = load.bytesRead;
    report.seconds = seconds;
    report.bytesPerSecond = seconds > 0 ? report.bytes / seconds : 0;
    report.maxInFlight = load.maxInFlight;
    for (const part of load.parts) {
      const { readyCount: tensors, bytesLoaded: bytes, bytesRead: readBytes } = part;
      const mappedBytes = Math.min(part.mappedBytes, bytes);
      report.devices[`${part.device}`] = { tensors, bytes, mappedBytes, readBytes };
    }
  }

  /** Those of no file are how a whole reader works, which nobody has asked for: notes. */
  addFallbacks(all: readonly Fallback[]): void {
    const fallbacks = all.filter(({ path }) => path !== '');
    const notes = all.filter(({ path }) => path === '').map(({ from, to, reason }) => `${to}, not ${from}: ${reason}`);
    this.#report.notes = [...new Set([...this.#report.notes, ...notes])];
    this.#report.fallbacks.push(...fallbacks);
    const news = fallbacks.filter(({ path, to }) => !this.#warned.has(`${path}\0${to}`));
    if (news.length === 0) return;
    for (const { path, to } of news) this.#warned.add(`${path}\0${to}`);
    const { path, from, to, reason } = news[0]!;
    const others = news.length > 1 ? ` (and ${counted(news.length - 1, 'more file')})` : '';
    this.#logger.warn(`fastsafetensors: ${path} falls back from '${from}' to '${to}': ${reason}${others}`);
  }
}

function empty(copier: string, device: string): LoadReport {
  const bytes = { bytes: 0, mappedBytes: 0, wantedBytes: 0, readBytes: 0 };
  const times = { seconds: 0, bytesPerSecond: 0, maxInFlight: 0 };
  const figures = { files: 0, tensors: 0, verifiedTensors: 0, ...bytes, receivedBytes: 0, ...times };
  return { copier, device, devices: {}, ...figures, fallbacks: [], notes: [] };
}
