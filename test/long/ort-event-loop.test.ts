import { runChild } from '../support/child.js';
import { writeOrtModels } from '../support/ort-models.js';
import { testFolder } from '../support/tensor-files.js';

const folder = testFolder();

test('a long run holds the event loop for less than 20 ms; onnxruntime-node holds it for the whole run', async () => {
  const models = await writeOrtModels(folder);
  const measure = async (how: string) => {
    const args = [how, JSON.stringify(models), models.deepInside];
    const { code, stdout, stderr } = await runChild('long/ort-event-loop.child.cjs', args);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return JSON.parse(stdout) as { took: number; longest: number; turns: number };
  };
  type Measured = Awaited<ReturnType<typeof measure>>;
  const rounds: { ours: Measured; theirs: Measured }[] = [];
  for (let round = 0; round < 5; ++round) rounds.push({ ours: await measure('ours'), theirs: await measure('theirs') });
  const median = (of: (round: { ours: Measured; theirs: Measured }) => number) =>
    rounds.map(of).sort((a, b) => a - b)[2]!;
  const figures = {
    took: median(({ ours }) => ours.took),
    longest: median(({ ours }) => ours.longest),
    theirs: median(({ theirs }) => theirs.longest),
  };
  console.info(figures);
  expect(figures.took).toBeGreaterThan(100);
  expect(figures.longest).toBeLessThan(20);
  expect(figures.theirs).toBeGreaterThan(figures.took / 2);
});
