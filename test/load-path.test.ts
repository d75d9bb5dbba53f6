import { rm } from 'node:fs/promises';
import { runChild } from './support/child.js';
import { newFolder, someEntries, writeModel } from './support/model-files.js';

// Whoever follows one plain load through the sources has few files to read: what runs only for progress, filters,
// frameworks or other copiers is not among them.

test('at most 20 TypeScript files take part in new ParallelLoader({ files }).iterateWeights()', async () => {
  const folder = await newFolder();
  await writeModel(folder, someEntries(), 'a.safetensors');
  const { code, stdout, stderr } = await runChild('load-path.child.cjs', [folder]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const sources = stdout.trim().split('\n');
  expect(sources).toEqual(expect.arrayContaining(['src/loaders/parallel-loader.ts', 'src/transfer/plan.ts']));
  if (sources.length > 20) throw new Error(`${sources.length} files:\n${stdout}`);
  await rm(folder, { recursive: true });
});
