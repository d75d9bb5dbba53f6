import { join } from 'node:path';
import { writeBigModel } from '../support/big-onnx.js';
import { runChild } from '../support/child.js';
import { testFolder } from '../support/tensor-files.js';

const folder = testFolder();
const SESSIONS = 240;

// adapters/ort-released.test.ts holds what makes it so.
test('240 sessions one after the other leave at most 1.25 times the memory of those of onnxruntime-node', async () => {
  const { graph, weights } = await writeBigModel(join(folder, 'm'), 4, 1024);
  const measure = async (how: string) => {
    const args = [how, graph, weights, String(SESSIONS)];
    const options = { timeoutMs: 300_000 };
    const { code, stdout, stderr } = await runChild('adapters/ort-released.child.cjs', args, options);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return (JSON.parse(stdout) as { rss: number }).rss;
  };
  const median = (figures: number[]) => figures.sort((a, b) => a - b)[1]!;
  const rounds: { ours: number; theirs: number }[] = [];
  for (let i = 0; i < 3; ++i) rounds.push({ ours: await measure('ours'), theirs: await measure('theirs') });
  const ratio = median(rounds.map(({ ours }) => ours)) / median(rounds.map(({ theirs }) => theirs));
  console.info({ rounds, ratio });
  expect(ratio).toBeLessThanOrEqual(1.25);
});
