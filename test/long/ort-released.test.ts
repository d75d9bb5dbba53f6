import { join } from 'node:path';
import { writeBigModel } from '../support/big-onnx.js';
import { runChild } from '../support/child.js';
import { testFolder } from '../support/tensor-files.js';

const folder = testFolder();
const SESSIONS = 240;

// Of 17 MB of weights. adapters/ort-released.test.ts holds what makes it so; with many weights, the garbage of
// JavaScript is the rest: the more there is, the more room V8 keeps for young objects.
test.each([
  [4, 1024],
  [64, 256],
])('240 sessions of %i weights leave at most 1.25 times what those of onnxruntime-node do', async (layers, width) => {
  const { graph, weights } = await writeBigModel(join(folder, `m${layers}`), layers, width);
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
  console.info({ layers, rounds, ratio });
  expect(ratio).toBeLessThanOrEqual(1.25);
});
