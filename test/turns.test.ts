import { setImmediate } from 'node:timers/promises';
import { SafeTensorsMetadata } from 'fastsafetensors-node';
import { milliseconds, Turns } from '../src/base/timers';
import { Plan } from '../src/transfer/plan';
import { encodeFile, entry } from './support/model-files.js';

// Long loops give the event loop its turns.

/** Holds the event loop. */
function work(ms: number): void {
  const until = milliseconds() + ms;
  while (milliseconds() < until);
}

/** The most items that ran between two turns of the event loop, and how many turns it had, while `run` ran. */
async function watch(run: (item: () => void) => Promise<unknown>): Promise<{ turns: number; most: number }> {
  let running = true;
  let turns = 0;
  let items = 0;
  let most = 0;
  const watching = (async () => {
    for (; running; ++turns, items = 0) {
      await setImmediate();
      most = Math.max(most, items);
    }
  })();
  await setImmediate();
  await run(() => ++items);
  running = false;
  await watching;
  return { turns, most };
}

test('a loop over slow items gives a turn after each few milliseconds', async () => {
  const { turns, most } = await watch(async (ran) => {
    const turns = new Turns(4);
    for (let item = 0; item < 200; ++item) {
      work(0.5);
      ran();
      if (turns.due()) await turns.take();
    }
  });
  expect(turns).toBeGreaterThan(20);
  expect(most).toBeLessThanOrEqual(8);
});

test('one over fast items is not held up', async () => {
  const turns = new Turns(16);
  await turns.take();
  const begin = milliseconds();
  const due = Array.from({ length: 64 }, () => turns.due());
  if (milliseconds() - begin < 2) expect(due).not.toContain(true);
});

test('the clock is read once in so many items', () => {
  const turns = new Turns(100);
  work(5);
  const due = Array.from({ length: 250 }, () => turns.due());
  expect(due.flatMap((is, item) => (is ? [item] : []))).toEqual([99, 199]);
});

test('loops that run at the same time share the limit', async () => {
  const { most } = await watch((ran) =>
    Promise.all(
      Array.from({ length: 50 }, async () => {
        const turns = new Turns(1);
        for (let item = 0; item < 10; ++item) {
          work(0.5);
          ran();
          if (turns.due()) await turns.take();
        }
      }),
    ),
  );
  expect(most).toBeLessThanOrEqual(50 + 4); // one of each, and what the limit allows once
});

test('each 512 items of a plan count for a turn, and memory for many of them is no single step', async () => {
  const entries = Array.from({ length: 3000 }, (_, i) => entry(`t${i}`, 'U8', [1]));
  const metadata = await SafeTensorsMetadata.fromBuffer(encodeFile(entries));
  const due = jest.spyOn(Turns.prototype, 'due');
  const steps = async (run: () => Promise<unknown>): Promise<number> => {
    due.mockClear();
    await run();
    return due.mock.calls.length;
  };
  let plan!: Plan;
  const made = await steps(async () => {
    plan = await Plan.ofTensors([{ metadata, selection: null }], {});
  });
  expect(made).toBeGreaterThanOrEqual(Math.ceil(3000 / 512) + 8);
  const same = Plan.ofItems(plan, true); // it cannot know their order
  expect(await steps(() => same.rangesOfFiles())).toBeGreaterThanOrEqual(3000);
  expect(await steps(() => same.itemsOfAllocations())).toBeGreaterThanOrEqual(3000);
  expect(await same.itemsOfAllocations()).toEqual(Uint32Array.of(3000));
  expect(await steps(() => plan.rangesOfFiles())).toBeLessThan(10);
  expect(await plan.rangesOfFiles()).toEqual(await same.rangesOfFiles());
  expect(await plan.itemsOfAllocations()).toEqual(await same.itemsOfAllocations());
  due.mockRestore();
});
