import { milliseconds, Turns } from '../base/timers.js';
import { type CallWatch, DEFAULT_STALL_TIMEOUT_MS, onAbort } from '../base/waiting.js';
import { Device, type DeviceString } from '../device/device.js';
import type { DeviceTensor } from '../device/device-tensor.js';
import type { SafeTensorsMetadata } from '../safetensors/metadata.js';
import type { Conversion, PlanInput } from '../transfer/items.js';
import type { Load } from '../transfer/load.js';
import { type PartRange, partOf } from '../transfer/parts.js';
import { DEFAULT_BATCH_BYTES, Plan } from '../transfer/plan.js';
import type { Progress } from '../transfer/progress.js';
import type { NcclBroadcast } from './nccl.js';
import type { ProcessGroup } from './process-group.js';
import type { Session } from './session.js';
import type { TensorSource, WantedParts } from './tensor-source.js';

/** Batches of parts that are loaded ahead of the consumer, with the one that it is in. */
export const RANK_WINDOW = 2;

type Shared = import('./broadcast.js').Replicated;

/** What all loads of a buffer share. */
interface RankOptions extends Conversion {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/**
 * One plan of parts of `whole`'s tensors, of each group file by file in the order of offsets. Rejects with what
 * Session.allocationBytes and Plan.ofTensors reject with.
 */
export async function planOfParts(
  session: Session,
  whole: Plan,
  groups: readonly WantedParts[],
  conversion: Conversion,
): Promise<Plan> {
  const inputs: PlanInput[] = [];
  const ranges = new Map<SafeTensorsMetadata, Map<number, PartRange | null>>();
  const turns = new Turns();
  for (const wanted of groups) {
    const byFile = new Map<number, number[]>();
    for (const [item, range] of wanted) {
      const file = whole.files[item]!;
      const tensor = whole.tensors[item]!;
      const tensors = byFile.get(file);
      if (tensors) tensors.push(tensor);
      else byFile.set(file, [tensor]);
      const { metadata } = whole.inputs[file]!;
      const ofFile = ranges.get(metadata);
      if (ofFile) ofFile.set(tensor, range);
      else ranges.set(metadata, new Map([[tensor, range]]));
      if (turns.due()) await turns.take();
    }
    for (const [file, tensors] of [...byFile].sort(([a], [b]) => a - b))
      inputs.push({ metadata: whole.inputs[file]!.metadata, selection: new Uint32Array(tensors).sort() });
  }
  return Plan.ofTensors(inputs, {
    batchBytes: DEFAULT_BATCH_BYTES,
    allocationBytes: await session.allocationBytes(),
    placement: session.placement,
    ...conversion,
    partOf: (metadata, tensor) => {
      const range = ranges.get(metadata)!.get(tensor);
      return range ? partOf(metadata.frameAt(tensor), metadata.dataStart, range) : null;
    },
  });
}

/** Tensors of a group of several ranks: nothing is read before it is asked for, and then this rank's bytes only. */
export class RankTensors implements TensorSource {
  readonly plan: Plan;
  readonly #session: Session;
  readonly #pg: ProcessGroup;
  readonly #options: RankOptions;

  constructor(session: Session, plan: Plan, pg: ProcessGroup, options: RankOptions) {
    this.#session = session;
    this.#pg = pg;
    this.plan = plan;
    this.#options = options;
  }

  async tensor(item: number, closing: AbortSignal): Promise<DeviceTensor> {
    const tensors: DeviceTensor[] = [];
    for await (const tensor of this.parts(new Map([[item, null]]), closing)) tensors.push(tensor);
    return tensors[0]!;
  }

  async *parts(wanted: WantedParts, closing: AbortSignal, together = false): AsyncGenerator<DeviceTensor, void, void> {
    const { signal, onProgress, ...conversion } = this.#options;
    const over = new AbortController();
    const ends = [closing, ...(signal ? [signal] : [])];
    for (const end of ends) if (end.aborted) over.abort(end.reason);
    const stops = ends.map((end) => onAbort(end, () => over.abort(end.reason)));
    try {
      if (together && this.#pg.broadcast) {
        yield* this.#together(wanted, this.#pg.broadcast, conversion, over.signal, onProgress);
      } else {
        over.signal.throwIfAborted();
        yield* this.#load([wanted], conversion, this.#session.watch(over.signal), over.signal, onProgress);
      }
    } finally {
      for (const stop of stops) stop();
    }
  }

  /** With the other ranks: a share of what all want whole, first; then its own parts, while that is broadcast. */
  async *#together(
    wanted: WantedParts,
    broadcast: NcclBroadcast,
    conversion: Conversion,
    signal: AbortSignal,
    onProgress: RankOptions['onProgress'],
  ): AsyncGenerator<DeviceTensor, void, void> {
    const session = this.#session;
    session.check();
    const { Replicated } = require('./broadcast.js') as typeof import('./broadcast.js');
    const { device, checksum, stallTimeoutMs = DEFAULT_STALL_TIMEOUT_MS } = session.options;
    const on = Device.parse(device as DeviceString);
    const watch = session.watch(signal);
    const agree = async (): Promise<Shared> => {
      const communicator = await broadcast.communicator(on, this.#pg.rank, this.#pg.size);
      const link = { communicator, device: on, pg: this.#pg, stallTimeoutMs };
      return Replicated.agree(link, this.plan, wanted, checksum === 'require');
    };
    // The others are in this call as well: one that ends before it has read has to meet them all the same.
    const leaveTo = (agreeing: Promise<Shared>, leave: () => void): void =>
      void agreeing
        .then((shared) => shared.fail())
        .catch(() => {}) // the others hear of it where they wait
        .finally(leave);
    const entering = broadcast.enter();
    const leave = await watch.during(entering, () => void entering.then((late) => leaveTo(agree(), late)));
    const agreeing = agree();
    const own: DeviceTensor[] = [];
    let received: Promise<DeviceTensor[]> | undefined;
    let given = 0;
    try {
      const shared = await watch.during(agreeing);
      const receive = (): void => {
        received = shared.receive(own).finally(leave);
        received.catch(() => {}); // told where it is waited for
      };
      if (shared.share.size === 0) receive();
      const parts = [shared.share, shared.without(wanted)];
      for await (const tensor of this.#load(parts, conversion, watch, signal, onProgress)) {
        if (received) yield tensor;
        else if (own.push(tensor) === shared.share.size) receive();
      }
      const all = await watch.during(received!);
      session.noteReceived(shared.receivedBytes);
      while (given < all.length) yield all[given++]!;
    } finally {
      if (received) {
        void received.then(
          (all) => {
            for (const tensor of all.slice(given)) tensor.dispose();
          },
          () => {},
        );
      } else {
        for (const tensor of own) tensor.dispose();
        leaveTo(agreeing, leave);
      }
    }
  }

  /** One load of what is wanted, in the order given and in that of files. */
  async *#load(
    wanted: readonly WantedParts[],
    conversion: Conversion,
    watch: CallWatch,
    signal: AbortSignal,
    onProgress: RankOptions['onProgress'],
  ): AsyncGenerator<DeviceTensor, void, void> {
    const session = this.#session;
    session.check();
    const plan = await session.race(planOfParts(session, this.plan, wanted, conversion), signal);
    const started = milliseconds();
    const load = await session.begin(plan, { window: RANK_WINDOW, collectReady: false }, watch, signal);
    yield* session.through(load, started, this.#inOrder(load, signal), onProgress);
  }

  async *#inOrder(load: Load, signal: AbortSignal): AsyncGenerator<DeviceTensor, void, void> {
    const { plan } = load;
    const turns = new Turns(16); // while tensors are ready, nothing else gives the event loop any
    for (let item = 0, ready = 0, batch = -1; item < plan.count; ++item) {
      if (plan.batchOf(item) > batch) {
        batch = plan.batchOf(item);
        load.setWindow(batch + RANK_WINDOW);
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

  /** Loads belong to those who iterate. */
  end(): void {}
}
