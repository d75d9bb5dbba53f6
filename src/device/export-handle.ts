import { describe, listOf, takesAtMost } from '../base/checks.js';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { native, settled } from '../native/addon.js';
import type { NativeExported } from '../native/core.js';
import { isWellFormed } from '../safetensors/save-tensors.js';
import { DeviceTensor } from './device-tensor.js';
import { describeHandle, HandleLayout } from './handle-description.js';

const EXPECTED = 'an array of DeviceTensors';

// An owner who kept `fd` alone must not lose it to the garbage collector: handles stay until close(), or until their
// thread ends.
const open = new Set<NativeExported>();

/** Memory of tensors for other processes, which importTensors() makes tensors of. */
export class ExportedHandle {
  /** An open descriptor of this process, closed by close(), or when the thread that made it ends. */
  readonly fd: number;
  /** What lies in the memory, for importTensors(): a text of JSON. */
  readonly description: string;
  #exported: NativeExported | undefined;

  /** @internal */
  constructor(exported: NativeExported, fd: number, description: string) {
    this.fd = fd;
    this.description = description;
    this.#exported = exported;
    open.add(exported);
  }

  /** Closes `fd`. Who has imported the memory keeps it; who has not, cannot any more. A second call does nothing. */
  close(): void {
    if (!this.#exported) return;
    open.delete(this.#exported);
    native().closeExported(this.#exported);
    this.#exported = undefined;
  }

  /** close(), for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Copies tensors of one device, made off the event loop, into memory that other processes can have: a sealed memfd for
 * those of the host, memory of cuMemCreate for those of a GPU. The tensors stay the caller's. The memory lives until
 * the handle is closed here and nobody has it any more, in any process.
 * CLOSED, DUPLICATE_TENSOR, DEVICE_UNAVAILABLE for memory that cannot be exported, OUT_OF_HOST_MEMORY,
 * OUT_OF_DEVICE_MEMORY, CUDA_ERROR, INVALID_ARGUMENT for tensors on several devices.
 */
export async function exportHandle(tensors: Iterable<DeviceTensor>): Promise<ExportedHandle> {
  takesAtMost(1, arguments, 'exportHandle');
  const list = listOf(tensors, 'exportHandle', EXPECTED);
  const names = new Set<string>();
  const layout = new HandleLayout();
  const allocations = [];
  const parts: number[] = [];
  for (const tensor of list) {
    checkTensor(tensor, names);
    const { allocation, offset } = tensor.placement;
    const at = layout.place(tensor.byteLength);
    if (!allocation) continue;
    allocations.push(allocation.handle);
    parts.push(offset, tensor.byteLength, at);
  }
  const [device = 'cpu', other] = new Set(list.map((tensor) => tensor.device.toString()));
  if (other !== undefined) {
    const message = `exportHandle: expected tensors of one device, found ${device} and ${other}; export each apart`;
    throw new InvalidArgumentError(message);
  }
  const { size } = layout;
  // Taken now: the list is the caller's.
  const entries = list.map(({ name, dtype, shape, byteLength }) => ({ name, dtype, shape, byteLength }));
  const { exported, fd, seal, busId } = await settled(
    native().exportMemory(allocations, Float64Array.from(parts), size),
  );
  try {
    return new ExportedHandle(exported, fd, describeHandle(entries, { device, busId, size, seal }));
  } catch (error) {
    native().closeExported(exported);
    throw error;
  }
}

function checkTensor(tensor: DeviceTensor, names: Set<string>): void {
  if (!(tensor instanceof DeviceTensor))
    throw new InvalidArgumentError(`exportHandle: expected ${EXPECTED}, found ${describe(tensor)} in it`);
  const { name } = tensor;
  if (names.has(name)) {
    const message = `exportHandle: two tensors have the name "${name}"; export them apart`;
    throw new FastSafetensorsError('DUPLICATE_TENSOR', message, { tensor: name });
  }
  names.add(name);
  if (name === '__metadata__' || !isWellFormed(name)) {
    const message = 'exportHandle: expected a name of well-formed text that is not __metadata__';
    throw new InvalidArgumentError(`${message}, found ${describe(name)}`, { tensor: name });
  }
}
