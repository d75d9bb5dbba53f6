import { Turns } from '../base/timers.js';
import type { TensorFrame } from '../safetensors/metadata.js';
import type { PlanInput } from './plan.js';

/** Those of the tensors of each file that the user's filter wants. It is called in the order of files and offsets. */
export async function selectTensors(
  files: readonly PlanInput[],
  filter: (name: string, frame: TensorFrame) => boolean,
): Promise<PlanInput[]> {
  const inputs: PlanInput[] = [];
  const turns = new Turns(64); // few: the filter may be slow
  for (const { metadata, selection } of files) {
    const wanted: number[] = [];
    const count = selection?.length ?? metadata.tensorCount;
    for (let i = 0; i < count; ++i) {
      const tensor = selection ? selection[i]! : i;
      const frame = metadata.frameAt(tensor);
      if (filter(frame.name, frame)) wanted.push(tensor);
      if (turns.due()) await turns.take();
    }
    inputs.push({ metadata, selection: Uint32Array.from(wanted) });
  }
  return inputs;
}
