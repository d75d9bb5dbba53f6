import { describe, fail, isList, listOf, takesAtMost } from '../base/checks.js';
import { DTYPE_BITS, type DTypeName } from '../base/dtype.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { checked, native, settled } from '../native/addon.js';
import { Allocation } from './allocation.js';
import { Device, openDevice } from './device.js';
import { DeviceTensor } from './device-tensor.js';
import { checkHandle, parseHandle, type TensorHandle } from './handle-description.js';
import type { SharedTensor } from './tensor-share.js';

const EXPECTED = 'an array of what share() gave';

/**
 * The tensors that another thread has shared, or another process has exported, by name, in the order given. All or
 * none.
 *
 * Those of a thread are of the same memory, counted. A share can be received again while somebody holds its memory.
 * CLOSED, DUPLICATE_TENSOR, INVALID_ARGUMENT, TENSOR_INVALID_INFO, UNKNOWN_DTYPE.
 *
 * Those of a process lie in memory that all its importers have once; what is written to host tensors is this process's
 * alone. They stay valid whatever becomes of the exporter. `fd` stays the caller's, and may be closed afterwards.
 * Neither memory nor description is believed: INVALID_ARGUMENT for a descriptor that is not of exportHandle() or of
 * another export, METADATA_INCOMPLETE_BUFFER for a wrong size, the codes of a header for a wrong description;
 * DEVICE_UNAVAILABLE where this process does not see the GPU, CUDA_ERROR, OUT_OF_HOST_MEMORY.
 */
export async function importTensors(
  handle: TensorHandle | readonly SharedTensor[],
): Promise<Map<string, DeviceTensor>> {
  takesAtMost(1, arguments, 'importTensors');
  if (isList(handle)) return receive(listOf(handle as readonly SharedTensor[], 'importTensors', EXPECTED));
  const { fd, description } = checkHandle(
    handle as TensorHandle,
    'importTensors',
    `{ fd, description }, or ${EXPECTED}`,
  );
  return fromProcess(fd, description);
}

async function fromProcess(fd: number, description: string): Promise<Map<string, DeviceTensor>> {
  const { header, offsets, device, busId, size, seal } = await parseHandle(description);
  const on = await deviceHere(Device.parse(device), busId);
  const memory = await settled(native().importMemory(await openDevice(on), fd, size, seal));
  const allocation = new Allocation(memory, on, size).retain();
  const tensors = new Map<string, DeviceTensor>();
  const turns = new Turns(64);
  try {
    for (let i = 0; i < offsets.length; ++i) {
      const { name, dtype, shape, byteLength } = header.frameAt(i);
      tensors.set(name, new DeviceTensor(name, dtype, shape, byteLength, on, allocation, offsets[i]!));
      if (turns.due()) await turns.take();
    }
    return tensors;
  } finally {
    allocation.release();
  }
}

/** What this process calls the device of another. DEVICE_UNAVAILABLE. */
async function deviceHere(device: Device, busId: string): Promise<Device> {
  if (device.type === 'cpu' || busId === '') return device;
  const found = await settled(native().findGpu(busId, device.index ?? 0));
  if (found >= 0) return Device.parse(`cuda:${found}`);
  const message = `the tensors are on the GPU ${busId.slice(0, 40)}, which this process does not see`;
  throw new FastSafetensorsError('DEVICE_UNAVAILABLE', `${message} (see CUDA_VISIBLE_DEVICES); load them here`);
}

async function receive(list: readonly SharedTensor[]): Promise<Map<string, DeviceTensor>> {
  // Copies: the list is the caller's.
  const shares = list.map(checkShare);
  checkNames(shares);
  const full = shares.filter(({ byteLength }) => byteLength > 0);
  const tokens = full.map(({ token }) => token);
  const taken = checked(() =>
    native().takeShared(
      tokens,
      Float64Array.from(full, ({ byteLength }) => byteLength),
    ),
  );
  const allocations = taken.allocations.map((handle, i) =>
    new Allocation(handle, Device.parse(taken.devices[i]!), taken.sizes[i]!).retain(),
  );
  const tensors = new Map<string, DeviceTensor>();
  const turns = new Turns(64);
  try {
    let part = 0;
    for (const { name, dtype, shape, byteLength, device } of shares) {
      if (byteLength === 0) {
        tensors.set(name, new DeviceTensor(name, dtype, shape, 0, Device.parse(device), null, 0));
        continue;
      }
      const allocation = allocations[taken.parts[part++]!]!;
      const offset = taken.parts[part++]!;
      tensors.set(name, new DeviceTensor(name, dtype, shape, byteLength, allocation.device, allocation, offset));
      if (turns.due()) await turns.take();
    }
    return tensors;
  } finally {
    for (const allocation of allocations) allocation.release();
  }
}

/** DUPLICATE_TENSOR. */
function checkNames(tensors: readonly { readonly name: string }[]): void {
  const names = new Set<string>();
  for (const { name } of tensors) {
    if (names.has(name)) {
      const message = `two tensors have the name "${name}", which a Map by names cannot hold: call it for each`;
      throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { tensor: name });
    }
    names.add(name);
  }
}

/** A copy of a message's plain values, which anybody may have written. INVALID_ARGUMENT, TENSOR_INVALID_INFO. */
function checkShare(value: SharedTensor): SharedTensor {
  if (typeof value !== 'object' || value === null) fail('importTensors', EXPECTED, value);
  const { name, dtype, shape, byteLength, device, token } = value;
  if (typeof name !== 'string' || typeof token !== 'string' || typeof device !== 'string' || !Array.isArray(shape))
    throw new InvalidArgumentError(`importTensors: expected ${EXPECTED}, found ${describe(value)} without its fields`);
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BITS, dtype))
    throw new FastSafetensorsError('UNKNOWN_DTYPE', `shared tensor "${name}" has the dtype ${describe(dtype)}`);
  if (byteLength !== byteLengthOf(dtype, shape)) {
    const found = `shape [${shape.map(String).join(', ')}] of ${dtype}, and ${String(byteLength)} bytes`;
    throw new FastSafetensorsError('TENSOR_INVALID_INFO', `shared tensor "${name}" has ${found}`, { tensor: name });
  }
  Device.parse(device); // before any memory is taken
  return { name, dtype, shape: [...shape], byteLength, device, token };
}

/** Bytes of a tensor; -1 for what is no shape, or has no whole number of bytes. */
function byteLengthOf(dtype: DTypeName, shape: readonly unknown[]): number {
  let bits = BigInt(DTYPE_BITS[dtype]);
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || (size as number) < 0) return -1;
    bits *= BigInt(size as number);
    if (bits >= 2n ** 56n) return -1;
  }
  return bits % 8n === 0n ? Number(bits / 8n) : -1;
}
