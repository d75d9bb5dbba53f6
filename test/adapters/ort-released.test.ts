import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeAddModel } from '../support/add-model.js';
import { writeBigModel } from '../support/big-onnx.js';
import { runChild } from '../support/child.js';
import { floats, model, node, rawTensor, value } from '../support/onnx-model.js';
import { testFolder } from '../support/tensor-files.js';

// What sessions leave behind when they are over. malloc keeps what was freed in an arena of the thread that used it, so
// that it matters how many threads there are; long/ort-released.test.ts compares the memory with onnxruntime-node's.

const folder = testFolder();

async function child(kind: string, graph: string, weights: string, times: number) {
  const args = [kind, graph, weights, String(times)];
  const { code, stdout, stderr } = await runChild('adapters/ort-released.child.cjs', args, { flags: ['--expose-gc'] });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return JSON.parse(stdout) as Record<string, number>;
}

test.each(['released', 'dropped'])('sessions one after the other, %s, are made and run by one thread', async (how) => {
  const { graph, weights } = await writeAddModel(folder);
  expect(await child(how, graph, weights, 60)).toEqual({ threads: 1 });
});

// malloc keeps 19 MB and more between blocks that stay, of weights that ONNX Runtime packs; else 6 to 8. It may keep 12
// more at the end of a thread's arena, whatever it is told, so the least of several sessions counts.
test('what malloc kept of sessions goes back to the system when none is left', async () => {
  const { graph } = await writeBigModel(join(folder, 'many'), 64, 256);
  expect((await child('arenas', graph, '', 20)).bytes).toBeLessThan(14 * 2 ** 20);
});

// 16 KiB of output, out of an arena of 64 MiB and more.
test('an output does not keep the memory of its session, which was released', async () => {
  const [rows, columns] = [4096, 4096];
  const graph = join(folder, 'wide.onnx');
  writeFileSync(
    graph,
    model({
      nodes: [node('MatMul', ['x', 'row'], ['wide']), node('MatMul', ['ones', 'wide'], ['y'])],
      initializers: [rawTensor('row', [1, columns], floats(columns)), rawTensor('ones', [1, rows], floats(rows))],
      inputs: [value('x', [rows, 1])],
      outputs: [value('y', [1, columns])],
    }),
  );
  const { bytes, kept } = await child('outputs', graph, '', 12);
  expect(kept).toBe(12);
  // One arena may stay for the next session; before, it was 12.
  expect(bytes).toBeLessThan(200 * 2 ** 20);
});
