import { setImmediate } from 'node:timers/promises';
import { Handing, type Taking } from '../src/loaders/parallel-loader';

// What hands tensors out behaves as the async generator that it stands in for.

interface Source {
  readonly source: AsyncGenerator<Taking<{ n: number }>, void, void>;
  /** How often it was resumed, and how it ended. */
  readonly seen: { resumed: number; ended: string };
}

/** Numbers from 0 on, `ready` of them each time that it is resumed. */
function numbers(count: number, ready: number, fails = -1): Source {
  const seen = { resumed: 0, ended: 'no' };
  let next = 0;
  let left = 0;
  const take = (): { n: number } | undefined => {
    if (next === fails) throw new Error(`no ${next}`);
    return left-- > 0 && next < count ? { n: next++ } : undefined;
  };
  const source = async function* (): AsyncGenerator<Taking<{ n: number }>, void, void> {
    try {
      while (next < count) {
        await setImmediate();
        ++seen.resumed;
        left = ready;
        yield { take };
      }
      seen.ended = 'done';
    } catch (error) {
      seen.ended = (error as Error).message;
      throw error;
    } finally {
      if (seen.ended === 'no') seen.ended = 'returned';
    }
  };
  return { source: source(), seen };
}

test('gives every value in order, and resumes its source only where none is there', async () => {
  const { source, seen } = numbers(100, 10);
  const given: number[] = [];
  for await (const { n } of new Handing(source)) given.push(n);
  expect(given).toEqual(Array.from({ length: 100 }, (_, n) => n));
  expect(seen).toEqual({ resumed: 10, ended: 'done' });
});

test('what is there is given without a turn of the event loop', async () => {
  const handing = new Handing(numbers(8, 8).source);
  await handing.next();
  let turned = false;
  void setImmediate().then(() => {
    turned = true;
  });
  for (let n = 1; n < 8; ++n) expect(await handing.next()).toEqual({ value: { n }, done: false });
  expect(turned).toBe(false);
  expect(await handing.next()).toEqual({ value: undefined, done: true });
});

test('calls at a time are answered one after the other', async () => {
  const handing = new Handing(numbers(5, 2).source);
  const calls = Array.from({ length: 7 }, () => handing.next());
  const results = await Promise.all(calls);
  expect(results.map(({ value }) => value?.n)).toEqual([0, 1, 2, 3, 4, undefined, undefined]);
  expect(results.map(({ done }) => done)).toEqual([false, false, false, false, false, true, true]);
});

test('return() ends the source, and is not before a call that waits', async () => {
  const { source, seen } = numbers(10, 3);
  const handing = new Handing(source);
  const first = handing.next();
  const ended = handing.return();
  expect(await first).toEqual({ value: { n: 0 }, done: false });
  expect(await ended).toEqual({ value: undefined, done: true });
  expect(seen.ended).toBe('returned');
  expect(await handing.next()).toEqual({ value: undefined, done: true });
});

test('one that was never begun is returned without running', async () => {
  const { source, seen } = numbers(10, 3);
  await new Handing(source)[Symbol.asyncDispose]();
  expect(seen).toEqual({ resumed: 0, ended: 'no' });
});

test.each([0, 1, 3])('an error of a value, here %i, goes through the source and ends it', async (fails) => {
  const { source, seen } = numbers(10, 3, fails);
  const handing = new Handing(source);
  const given: number[] = [];
  await expect(
    (async () => {
      for await (const { n } of handing) given.push(n);
    })(),
  ).rejects.toThrow(`no ${fails}`);
  expect(given).toEqual(Array.from({ length: fails }, (_, n) => n));
  expect(seen.ended).toBe(`no ${fails}`);
  expect(await handing.next()).toEqual({ value: undefined, done: true });
});

test('throw() ends the source with its error', async () => {
  const { source, seen } = numbers(10, 3);
  const handing = new Handing(source);
  await handing.next();
  await expect(handing.throw(new Error('enough'))).rejects.toThrow('enough');
  expect(seen.ended).toBe('enough');
  expect(String(handing)).toBe('[object AsyncGenerator]');
});

test('after its source has thrown it is done, also for a call that was made before', async () => {
  const source = async function* (): AsyncGenerator<Taking<{ n: number }>, void, void> {
    let ended = false;
    yield {
      take() {
        if (ended) throw new Error('asked of what has ended');
        return undefined;
      },
    };
    await setImmediate();
    ended = true;
    throw new Error('aborted');
  };
  const handing = new Handing(source());
  const calls = [handing.next(), handing.next(), handing.next()];
  await expect(calls[0]).rejects.toThrow('aborted');
  expect(await calls[1]).toEqual({ value: undefined, done: true });
  expect(await calls[2]).toEqual({ value: undefined, done: true });
});
