import { milliseconds, Turns } from '../base/timers.js';
import { onAbort } from '../base/waiting.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { Conversion } from '../transfer/items.js';
import type { Load } from '../transfer/load.js';
import { partOf } from '../transfer/parts.js';
import { DEFAULT_BATCH_BYTES, Plan } from '../transfer/plan.js';
import type { Progress } from '../transfer/progress.js';
import type { Session } from './session.js';
import type { TensorSource, WantedParts } from './tensor-source.js';

/** Batches of parts that are loaded ahead of the consumer, with the one that it is in. */
const WINDOW = 2;

/** What all loads of a buffer share. */
interface RankOptions extends Conversion {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** Tensors of a group of several ranks: nothing is read before it is asked for, and then this rank's bytes only. */
export class RankTensors implements TensorSource {
  readonly plan: Plan;
  readonly #session: Session;
  readonly #options: RankOptions;

  constructor(session: Session, plan: Plan, options: RankOptions) {
    this.#session = session;
    this.plan = plan;
    this.#options = options;
  }

  async tensor(item: number, closing: AbortSignal): Promise<DeviceTensor> {
    const tensors: DeviceTensor[] = [];
    for await (const tensor of this.parts(new Map([[item, null]]), closing)) tensors.push(tensor);
    return tensors[0]!;
  }

  async *parts(wanted: WantedParts, closing: AbortSignal): AsyncGenerator<DeviceTensor, void, void> {
    const { signal, onProgress, ...conversion } = this.#options;
    const over = new AbortController();
    const ends = [closing, ...(signal ? [signal] : [])];
    for (const end of ends) end.throwIfAborted();
    const stops = ends.map((end) => onAbort(end, () => over.abort(end.reason)));
    try {
      yield* this.#load(wanted, conversion, over.signal, onProgress);
    } finally {
      for (const stop of stops) stop();
    }
  }

  async *#load(
    wanted: WantedParts,
    conversion: Conversion,
    signal: AbortSignal,
    onProgress: RankOptions['onProgress'],
  ): AsyncGenerator<DeviceTensor, void, void> {
    const session = this.#session;
    session.check();
    const allocationBytes = await session.race(session.allocationBytes(), signal);
    const plan = await session.race(this.#planOf(wanted, allocationBytes, conversion), signal);
    const started = milliseconds();
    const load = await session.begin(plan, { window: WINDOW, collectReady: false }, session.watch(signal), signal);
    yield* session.through(load, started, this.#inOrder(load, signal), onProgress);
  }

  async *#inOrder(load: Load, signal: AbortSignal): AsyncGenerator<DeviceTensor, void, void> {
    const { plan } = load;
    const turns = new Turns(16); // while tensors are ready, nothing else gives the event loop any
    for (let item = 0, ready = 0, batch = -1; item < plan.count; ++item) {
      if (plan.batchOf(item) > batch) {
        batch = plan.batchOf(item);
        load.setWindow(batch + WINDOW);
      }
      for (; item >= ready; ready = load.readyPrefix) {
        if (load.error) throw load.error;
        if (load.readyPrefix > item) continue;
        await this.#session.race(load.wait(), signal);
      }
      this.#session.check(signal);
      const tensor = load.tensor(item);
      load.releaseItem(item);
      yield tensor;
      if (turns.due()) await turns.take();
    }
  }

  /** One plan of all parts, file by file in the order of offsets. */
  #planOf(wanted: WantedParts, allocationBytes: number | readonly number[], conversion: Conversion): Promise<Plan> {
    const { plan } = this;
    const byFile = new Map<number, number[]>();
    for (const item of wanted.keys()) {
      const items = byFile.get(plan.files[item]!);
      if (items) items.push(item);
      else byFile.set(plan.files[item]!, [item]);
    }
    const files = [...byFile].sort(([a], [b]) => a - b);
    const inputs = files.map(([file, items]) => ({
      metadata: plan.inputs[file]!.metadata,
      selection: Uint32Array.from(items, (item) => plan.tensors[item]!).sort(),
    }));
    const ranges = new Map(
      files.map(([file, items]) => {
        const byTensor = items.map((item) => [plan.tensors[item]!, wanted.get(item)!] as const);
        return [plan.inputs[file]!.metadata, new Map(byTensor)] as const;
      }),
    );
    return Plan.ofTensors(inputs, {
      batchBytes: DEFAULT_BATCH_BYTES,
      allocationBytes,
      placement: this.#session.placement,
      ...conversion,
      partOf: (metadata, tensor) => {
        const range = ranges.get(metadata)!.get(tensor);
        return range ? partOf(metadata.frameAt(tensor), metadata.dataStart, range) : null;
      },
    });
  }

  /** Loads belong to those who iterate. */
  end(): void {}
}
