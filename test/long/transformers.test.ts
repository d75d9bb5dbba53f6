import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { runChild } from '../support/child.js';
import { testFolder } from '../support/tensor-files.js';
import { writeTransformersModel } from '../support/transformers-model.js';

// Transformers.js through the execution provider, as docs/transformers-js.md says. It brings 475 MB along (sharp, and
// ONNX Runtime for all platforms and for browsers), so it is no dependency of development: it is installed here.

const VERSION = '4.3.2';
const SIZE = { layers: 12, width: 2048 };
const folder = testFolder();
const project = join(folder, 'project');

interface Extracted {
  readonly peak: number;
  readonly hostBytes: number;
  readonly dims: number[];
  readonly data: number[];
}

async function extract(model: string, provider?: object, options: object = {}): Promise<Extracted> {
  const args = [project, model, provider ? JSON.stringify(provider) : '', JSON.stringify(options)];
  const { code, stdout, stderr } = await runChild('long/transformers.child.cjs', args, { timeoutMs: 300_000 });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout);
}

test('Transformers.js gives the same features through the provider, with the weights once in memory', async () => {
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{"private":true}');
  const install = ['install', '--ignore-scripts', '--no-audit', '--no-fund', `@huggingface/transformers@${VERSION}`];
  execFileSync('npm', install, { cwd: project, stdio: ['ignore', 'pipe', 'pipe'] });

  const inGraph = await writeTransformersModel(join(folder, 'in-graph'), 'graph', SIZE);
  const inData = await writeTransformersModel(join(folder, 'in-data'), 'onnx_data', SIZE);
  const nowhere = await writeTransformersModel(join(folder, 'nowhere'), 'nowhere', SIZE);
  const { bytes, weights } = nowhere;
  const theirs = await extract(inGraph.folder);
  expect(theirs).toMatchObject({ dims: [2, SIZE.width], hostBytes: 0 });

  const figures: Record<string, number> = {};
  const same = async (name: string, ours: Extracted) => {
    expect(ours.dims).toEqual(theirs.dims);
    for (const [i, feature] of ours.data.entries()) expect(feature).toBeCloseTo(theirs.data[i]!, 5);
    figures[name] = ours.peak / bytes;
    return ours;
  };
  await same('in the graph, no weights', await extract(inGraph.folder, {}));
  const replaced = await same('in the graph and weights', await extract(inGraph.folder, { weights }));
  const data = await same('onnx_data', await extract(inData.folder, {}, { use_external_data_format: false }));
  const external = await same('weights alone', await extract(nowhere.folder, { weights }));
  console.info(figures);
  expect([replaced.hostBytes, data.hostBytes, external.hostBytes]).toEqual([bytes, bytes, bytes]);
  expect(figures['weights alone']).toBeLessThan(1.3);
  expect(figures.onnx_data).toBeLessThan(1.3);
  // Transformers.js itself reads a model file into a stream that nobody empties: at most once more.
  expect(figures['in the graph and weights']).toBeLessThan(2.3);
});
