import { describe, entriesOf, fail } from '../base/checks.js';
import { InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { Device, type DeviceString } from '../device/device.js';
import { isPromise } from '../device/framework.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import type { Placement, PlanInput } from '../transfer/items.js';
import { patternOf } from './shard-rules.js';
import { type Split, splitTensors } from './split.js';

/** Where tensors go: one device for all; by pattern of names, the first that fits; or what a function says of each. */
export type DeviceRule =
  | DeviceString
  | Readonly<Record<string, DeviceString>>
  | ((name: string, frame: TensorFrame) => DeviceString);

export interface PlacementOptions {
  readonly device?: DeviceRule;
  readonly devices?: readonly DeviceString[];
  readonly split?: Split;
}

/** More than any machine has. */
const MOST_DEVICES = 256;

const RULE = "'cpu', 'cuda:N', a map of such by patterns of names, or a function (name, frame) => 'cuda:N'";

/** Of what is no text. INVALID_ARGUMENT. */
export function checkDeviceRule(value: unknown, name: string): void {
  if (typeof value === 'function') return;
  const entries = entriesOf<string, unknown>(value as Record<string, unknown>, name, RULE);
  if (entries.length === 0) fail(name, `${RULE}; a map needs at least one pattern`, value);
  for (const [pattern, device] of entries) parseNamed(device, `${name}["${pattern}"]`);
}

/** INVALID_ARGUMENT. */
export function checkDevices(value: unknown, name: string): void {
  if (!Array.isArray(value) || value.length === 0 || value.length > MOST_DEVICES)
    fail(name, "an array of devices, such as ['cuda:0', 'cuda:1']", value);
  const seen = new Set<string>();
  for (const [i, text] of value.entries()) {
    const device = parseNamed(text, `${name}[${i}]`).toString();
    if (seen.has(device)) throw new InvalidArgumentError(`${name}: ${device} is there twice; name each device once`);
    seen.add(device);
  }
}

/** What one option says is nothing without, or beside, another. INVALID_ARGUMENT. */
export function checkPlacement({ device, devices, split }: PlacementOptions): void {
  if (devices !== undefined && device !== undefined) {
    throw new InvalidArgumentError(
      'device and devices: expected one of them: device says where tensors go, devices among which they are split',
    );
  }
  if (split !== undefined && devices === undefined)
    throw new InvalidArgumentError(`split: '${split}' needs devices, such as ['cuda:0', 'cuda:1']`);
}

function parseNamed(value: unknown, what: string): Device {
  if (typeof value === 'string') {
    try {
      return Device.parse(value);
    } catch {} // told below, with what it is of
  }
  return fail(what, "'cpu', 'cuda', 'cuda:N', 'gpu' or 'gpu:N'", value);
}

/** What a loader's options say of where tensors go; undefined where all go to one device. */
export function placementOf({ device, devices, split = 'layers' }: PlacementOptions): DevicePlacement | undefined {
  if (devices !== undefined)
    return new SplitPlacement(
      devices.map((name) => Device.parse(name)),
      split,
    );
  if (typeof device === 'function') return new RulePlacement([], device);
  if (typeof device !== 'object') return undefined;
  const entries = entriesOf<string, DeviceString>(device, 'device', RULE);
  const patterns = entries.map(([pattern, name]) => ({ matches: patternOf(pattern), name }));
  const find = (name: string): DeviceString => {
    const found = patterns.find(({ matches }) => matches.test(name))?.name;
    if (found !== undefined) return found;
    const listed = entries.map(([pattern]) => `"${pattern}"`).join(', ');
    const message = `device: tensor "${name}" fits none of ${listed}; add { '*': 'cpu' } as the last one, for the rest`;
    throw new InvalidArgumentError(message, { tensor: name });
  };
  return new RulePlacement(
    [...new Set(entries.map(([, name]) => Device.parse(name).toString()))].map((name) => Device.parse(name)),
    find,
  );
}

/** The devices of a loader's tensors, once it is known which tensors there are. */
export abstract class DevicePlacement implements Placement {
  abstract readonly devices: readonly Device[];
  readonly #ofFiles = new WeakMap<SafeTensorsMetadata, Uint16Array>();

  /** Decides for these tensors, before of() is asked for them. What a function throws; INVALID_ARGUMENT. */
  abstract assign(inputs: readonly PlanInput[]): Promise<void>;

  of(metadata: SafeTensorsMetadata): Uint16Array {
    return this.#ofFiles.get(metadata)!;
  }

  deviceOf(metadata: SafeTensorsMetadata, tensor: number): Device {
    return this.devices[this.of(metadata)[tensor]!]!;
  }

  /** The array of a file, and whether it is new. */
  protected arrayOf(metadata: SafeTensorsMetadata): { array: Uint16Array; isNew: boolean } {
    const known = this.#ofFiles.get(metadata);
    const array = known ?? new Uint16Array(metadata.tensorCount);
    if (!known) this.#ofFiles.set(metadata, array);
    return { array, isNew: !known };
  }
}

/** By a rule for each tensor. It is asked once for each, in the order of files and offsets. */
class RulePlacement extends DevicePlacement {
  readonly devices: Device[];
  readonly #rule: (name: string, frame: TensorFrame) => DeviceString;
  readonly #numbers = new Map<string, number>(); // by what a rule said

  constructor(devices: Device[], rule: (name: string, frame: TensorFrame) => DeviceString) {
    super();
    this.devices = devices;
    this.#rule = rule;
  }

  async assign(inputs: readonly PlanInput[]): Promise<void> {
    const turns = new Turns(64); // few: the function may be slow
    for (const { metadata, selection } of inputs) {
      const { array, isNew } = this.arrayOf(metadata);
      if (!isNew) continue;
      const count = selection?.length ?? metadata.tensorCount;
      for (let i = 0; i < count; ++i) {
        const tensor = selection ? selection[i]! : i;
        const frame = metadata.frameAt(tensor);
        array[tensor] = this.#numberOf(this.#rule(frame.name, frame), frame.name);
        if (turns.due()) await turns.take();
      }
    }
  }

  #numberOf(said: unknown, tensor: string): number {
    const known = typeof said === 'string' ? this.#numbers.get(said) : undefined;
    if (known !== undefined) return known;
    if (typeof said === 'object' && said !== null && isPromise(said)) {
      said.then(undefined, () => {}); // what it rejects with is no longer of interest
      const message = `device: expected the device of "${tensor}", found a promise; it cannot be an async function`;
      throw new InvalidArgumentError(message, { tensor });
    }
    if (Array.isArray(said)) {
      const advice = 'a tensor is loaded to one device; getTensor(name, { device }) copies it to another';
      throw new InvalidArgumentError(`device: expected one device of "${tensor}", found an array; ${advice}`, {
        tensor,
      });
    }
    const device = parseNamed(said, `device of "${tensor}"`);
    let number = this.devices.findIndex((other) => other.toString() === device.toString());
    if (number < 0) {
      if (this.devices.length === MOST_DEVICES)
        fail('device', `at most ${MOST_DEVICES} devices, of "${tensor}"`, describe(said));
      number = this.devices.push(device) - 1;
    }
    this.#numbers.set(said as string, number);
    return number;
  }
}

/** Contiguous parts of about as many bytes for each device. */
class SplitPlacement extends DevicePlacement {
  readonly devices: readonly Device[];
  readonly #split: Split;

  constructor(devices: readonly Device[], split: Split) {
    super();
    this.devices = devices;
    this.#split = split;
  }

  async assign(inputs: readonly PlanInput[]): Promise<void> {
    const tensors: { readonly metadata: SafeTensorsMetadata; readonly index: number }[] = [];
    for (const { metadata, selection } of inputs) {
      const count = selection?.length ?? metadata.tensorCount;
      for (let i = 0; i < count; ++i) tensors.push({ metadata, index: selection ? selection[i]! : i });
    }
    const sized = tensors.map(({ metadata, index }) => ({
      name: metadata.nameAt(index),
      bytes: metadata.packed.ends[index]! - metadata.packed.begins[index]!,
    }));
    const groups = await splitTensors(sized, this.devices.length, this.#split);
    for (const [i, { metadata, index }] of tensors.entries()) this.arrayOf(metadata).array[index] = groups[i]!;
  }
}
