import type { Allocation } from '../device/allocation.js';
import { Load } from './load.js';

/** A load of no files, which is over before it begins: there is nothing that a copier could be chosen for. */
export class EmptyLoad extends Load {
  readonly readyPrefix = 0;
  readonly readyCount = 0;
  readonly bytesLoaded = 0;
  readonly bytesRead = 0;
  readonly maxInFlight = 0;
  readonly drained = true;
  readonly error = null;

  readonly lacksRoom = undefined;

  async changed(): Promise<void> {}

  takeReady(): ArrayLike<number> {
    return [];
  }

  setWindow(): void {}

  cancel(): void {}

  protected takeAllocation(): Allocation | null {
    return null;
  }
}
