import { fail, isPlain } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { Device, type DeviceString, openDevice } from '../device/device.js';
import { native, settled } from '../native/addon.js';
import type { EngineOptions, NativeEngine } from '../native/core.js';
import type { BudgetLimit } from '../transfer/budget-limit.js';
import { MAX_ALLOCATION, type Plan } from '../transfer/plan.js';

/** Bytes, or a part of all memory that there is: of the device, or of the host as its control group allows. */
export type MemoryLimit = number | `${number}%`;

/** One limit, or one by device: others have none. */
export type DeviceMemoryLimit = MemoryLimit | Readonly<Record<DeviceString, MemoryLimit>>;

/** INVALID_ARGUMENT. */
export function checkMemoryLimit(value: unknown, name: string): void {
  const percent = typeof value === 'string' ? Number(/^(\d+(?:\.\d+)?)%$/.exec(value)?.[1]) : Number.NaN;
  const valid =
    typeof value === 'string' ? percent > 0 && percent <= 100 : Number.isSafeInteger(value) && (value as number) > 0;
  if (!valid) fail(name, "a number of bytes or a percentage like '80%'", value);
}

/** INVALID_ARGUMENT. */
export function checkDeviceMemoryLimit(value: unknown, name: string): void {
  if (typeof value !== 'object' || value === null || !isPlain(value)) {
    checkMemoryLimit(value, name);
    return;
  }
  for (const [device, limit] of Object.entries(value)) {
    Device.parse(device);
    checkMemoryLimit(limit, `${name}["${device}"]`);
  }
}

interface BudgetOptions {
  readonly deviceMemoryBudget?: DeviceMemoryLimit;
  readonly hostMemoryBudget?: MemoryLimit;
}

/** What the options come to: bytes. */
interface Limits {
  /** Of the device that tensors go to. */
  readonly device: BudgetLimit | undefined;
  /** Of staging in host memory, for another device. */
  readonly staging: number | undefined;
}

/** This part of a budget is what staging on the same device may take. */
const STAGING_PART = 16;
/** An allocation is no larger part of a budget, so that some are filled while others are in use. */
const ALLOCATION_PART = 4;
const SMALLEST_CHUNK = 64 * 1024;
const LARGEST_CHUNK = 4 * 1024 * 1024;

/** What the loads of one loader may hold together on its device, and of the host's memory. @internal */
export class Budget {
  readonly #device: Device;
  readonly #options: BudgetOptions;
  readonly #others: () => ReadonlySet<Device['type']>;
  readonly #reserved = new Map<NativeEngine, number>(); // bytes of staging on the device
  #limits: Promise<Limits> | undefined;

  /** `others`: kinds of the loader's other devices. */
  constructor(options: BudgetOptions, device: Device, others: () => ReadonlySet<Device['type']> = () => new Set()) {
    this.#options = options;
    this.#device = device;
    this.#others = others;
  }

  /** DEVICE_UNAVAILABLE, CUDA_ERROR. */
  async #find(): Promise<Limits> {
    const { deviceMemoryBudget, hostMemoryBudget } = this.#options;
    const own = await bytesOf(limitOf(deviceMemoryBudget, this.#device), this.#device);
    const allowed = await bytesOf(hostMemoryBudget, Device.parse('cpu'));
    const onHost = this.#device.type === 'cpu';
    const host = allowed && this.#shareOf(allowed);
    const bytes = onHost && host !== undefined ? Math.min(own ?? host, host) : own;
    const option = bytes === own && own !== undefined ? 'deviceMemoryBudget' : 'hostMemoryBudget';
    const device = bytes === undefined ? undefined : { option, bytes, budget: native().newBudget(bytes) };
    return { device, staging: onHost ? undefined : host };
  }

  /** Of the host's budget, beside other devices: tensors there leave a part to the staging of GPUs. */
  #shareOf(bytes: number): number {
    const onHost = this.#device.type === 'cpu';
    if (!this.#others().has(onHost ? 'cuda' : 'cpu')) return bytes;
    const staging = Math.min(Math.max(Math.floor(bytes / STAGING_PART), 4 * SMALLEST_CHUNK), bytes);
    return onHost ? Math.max(bytes - staging, 1) : staging;
  }

  get #found(): Promise<Limits> {
    this.#limits ??= this.#find();
    return this.#limits;
  }

  /** Undefined where there is none. Rejects where the device has to be asked and cannot be. */
  async limit(): Promise<BudgetLimit | undefined> {
    return (await this.#found).device;
  }

  /** The most bytes of an allocation, for plans. As limit(). */
  async allocationBytes(): Promise<number> {
    const limit = await this.limit();
    return limit ? Math.min(Math.max(Math.floor(limit.bytes / ALLOCATION_PART), 1), MAX_ALLOCATION) : MAX_ALLOCATION;
  }

  /**
   * For an engine that keeps to it. `chunkBytes`: of a read, where options say; `onDevice`: its staging lies where
   * tensors do. BUDGET_INFEASIBLE where there is no room for the smallest reads; as limit().
   */
  async engineOptions(chunkBytes: number | undefined, onDevice: boolean): Promise<EngineOptions> {
    const { device, staging } = await this.#found;
    const bytes = onDevice ? device && Math.max(Math.floor(device.bytes / STAGING_PART), SMALLEST_CHUNK) : staging;
    if (bytes === undefined) return {};
    if (!onDevice && bytes < 4 * SMALLEST_CHUNK) {
      const few = `expected at least ${4 * SMALLEST_CHUNK} to read through, found ${bytes}`;
      throw new FastSafetensorsError('BUDGET_INFEASIBLE', `hostMemoryBudget: ${few}; raise it`);
    }
    const chunk = Math.min(chunkBytes ?? LARGEST_CHUNK, Math.max(Math.floor(bytes / 8), SMALLEST_CHUNK));
    return { stagingLimit: bytes, chunkBytes: Math.max(chunk, 4096) };
  }

  /**
   * Before a load: takes what staging on the device needs, once an engine. `whole`: the load keeps all its tensors.
   * BUDGET_INFEASIBLE where a tensor, or a whole load, can never have room; as limit().
   */
  async admit(plan: Plan, engine: NativeEngine | undefined, staging: number, whole: boolean): Promise<void> {
    const limit = await this.limit();
    if (!limit) return;
    const { option, bytes, budget } = limit;
    const found = `${option} allows ${bytes} bytes on ${this.#device}`;
    if (engine && staging > (this.#reserved.get(engine) ?? 0)) {
      if (!native().takeBudget(budget, staging - (this.#reserved.get(engine) ?? 0))) {
        const held = native().budgetHeld(budget);
        const message = `reading needs ${staging} bytes of staging; ${found}, and ${held} are held`;
        throw new FastSafetensorsError('BUDGET_INFEASIBLE', `${message}; dispose tensors first, or raise it`);
      }
      this.#reserved.set(engine, staging);
    }
    const reserved = [...this.#reserved.values()].reduce((sum, each) => sum + each, 0);
    const beside = reserved > 0 ? `, of which staging takes ${reserved}` : '';
    const room = bytes - reserved;
    for (let item = 0; item < plan.count; ++item) {
      if (plan.sizes[item]! <= room) continue;
      const metadata = plan.metadataOf(item);
      const { path } = metadata;
      const tensor = metadata.nameAt(plan.tensors[item]!);
      const what = `${path}: tensor "${tensor}" takes ${plan.sizes[item]} bytes, and ${found}${beside}`;
      const advice = 'raise it, leave the tensor out with filter, or load parts of it with getSlice or shardedPlan';
      throw new FastSafetensorsError('BUDGET_INFEASIBLE', `${what}; ${advice}`, { path, tensor });
    }
    const largest = plan.allocationSizes.reduce((most, size) => Math.max(most, size), 0);
    if ((!whole || plan.deviceBytes <= room) && largest > room) {
      const [{ metadata }] = plan.inputs as [Plan['inputs'][0]];
      const what = `${metadata.path}: a part of this load takes ${largest} bytes at once, and ${found}${beside}`;
      const advice = 'raise it, or load smaller parts';
      throw new FastSafetensorsError('BUDGET_INFEASIBLE', `${what}; ${advice}`, { path: metadata.path });
    }
    if (!whole || plan.deviceBytes <= room) return;
    const [{ metadata }] = plan.inputs as [Plan['inputs'][0]];
    const takes = `the tensors of this load take ${plan.deviceBytes} bytes together`;
    const what = `${metadata.path}: ${takes}, and ${found}${beside}`;
    const advice = 'raise it, load fewer with filter, or stream them with a ParallelLoader and dispose each';
    throw new FastSafetensorsError('BUDGET_INFEASIBLE', `${what}; ${advice}`, { path: metadata.path });
  }
}

function limitOf(limit: DeviceMemoryLimit | undefined, device: Device): MemoryLimit | undefined {
  if (typeof limit !== 'object') return limit;
  const same = ({ type, index }: Device): boolean => type === device.type && (index ?? 0) === (device.index ?? 0);
  return Object.entries(limit).find(([name]) => same(Device.parse(name)))?.[1];
}

/** Of the host no more than its control group allows. */
async function bytesOf(limit: MemoryLimit | undefined, device: Device): Promise<number | undefined> {
  if (limit === undefined || (typeof limit === 'number' && device.type !== 'cpu')) return limit as number | undefined;
  const total = await settled(native().totalMemory(await openDevice(device)));
  return typeof limit === 'number' ? Math.min(limit, total) : Math.floor((total * Number.parseFloat(limit)) / 100);
}
