import { InvalidArgumentError } from '../base/errors.js';
import { Turns } from '../base/timers.js';
import { isPromise } from '../device/framework.js';
import type { TensorFrame } from '../safetensors/metadata.js';
import type { PlanInput } from './items.js';

/** The user's filter. */
export type Filter = (name: string, frame: TensorFrame) => boolean;

/** What a filter says of a tensor. INVALID_ARGUMENT for a promise, which would be a yes whatever it comes to. */
export function wants(filter: Filter, name: string, frame: TensorFrame): boolean {
  const answer: unknown = filter(name, frame);
  if (isPromise(answer)) {
    answer.then(undefined, () => {}); // what it rejects with is no longer of interest
    const message = `filter: expected true or false for "${name}", found a promise; it cannot be an async function`;
    throw new InvalidArgumentError(message, { tensor: name });
  }
  return Boolean(answer);
}

/** Those of the tensors of each file that the user's filter wants. It is called in the order of files and offsets. */
export async function selectTensors(files: readonly PlanInput[], filter: Filter): Promise<PlanInput[]> {
  const inputs: PlanInput[] = [];
  const turns = new Turns(64); // few: the filter may be slow
  for (const { metadata, selection } of files) {
    const count = selection?.length ?? metadata.tensorCount;
    const wanted = new Uint32Array(count);
    let length = 0;
    for (let i = 0; i < count; ++i) {
      const tensor = selection ? selection[i]! : i;
      const frame = metadata.frameAt(tensor);
      if (wants(filter, frame.name, frame)) wanted[length++] = tensor;
      if (turns.due()) await turns.take();
    }
    inputs.push({ metadata, selection: wanted.slice(0, length) });
  }
  return inputs;
}
