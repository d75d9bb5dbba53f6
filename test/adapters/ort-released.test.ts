import { writeAddModel } from '../support/add-model.js';
import { runChild } from '../support/child.js';
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
