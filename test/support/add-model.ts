import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, floats, model, node, value } from './onnx-model.js';

export interface AddModel {
  readonly graph: string;
  readonly weights: string;
}

/** The paths of a model y = x + w and of its weights; beside w, floats(512, 0.5), there is `other`: 0, 2, 4, … */
export async function writeAddModel(folder: string): Promise<AddModel> {
  const graph = join(folder, 'm.onnx');
  const weights = join(folder, 'm.safetensors');
  const tensor = (name: string, data: Float32Array) => ({
    name,
    dtype: 'F32' as const,
    shape: [512],
    data: bytesOf(data),
  });
  const other = Float32Array.from({ length: 512 }, (_, i) => 2 * i);
  await saveFile([tensor('w', floats(512, 0.5)), tensor('other', other)], weights);
  writeFileSync(
    graph,
    model({
      nodes: [node('Add', ['x', 'w'], ['y'])],
      initializers: [externalTensor('w', [512], { location: 'gone', offset: '0', length: '2048' })],
      inputs: [value('x', [512])],
      outputs: [value('y', [512])],
    }),
  );
  return { graph, weights };
}
