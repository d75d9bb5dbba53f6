import { Turns } from '../base/timers.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import type { PlanInput } from './plan.js';

/** The tensors of each file that the user's filter wants. It is called in the order of files and offsets. */
export async function selectTensors(
  files: readonly SafeTensorsMetadata[],
  filter: (name: string, frame: TensorFrame) => boolean,
): Promise<PlanInput[]> {
  const inputs: PlanInput[] = [];
  const turns = new Turns(64); // few: the filter may be slow
  for (const metadata of files) {
    const wanted: number[] = [];
    for (let i = 0; i < metadata.tensorCount; ++i) {
      const frame = metadata.frameAt(i);
      if (filter(frame.name, frame)) wanted.push(i);
      if (turns.due()) await turns.take();
    }
    inputs.push({ metadata, selection: Uint32Array.from(wanted) });
  }
  return inputs;
}
