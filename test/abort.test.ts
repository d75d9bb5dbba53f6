import { unlessAborted } from '../src/base/waiting';

// One race between a promise and signals, for loaders, buffers and sessions.

const never = (): Promise<never> => new Promise(() => {});

test('without an abort it is the outcome of the promise', async () => {
  const { signal } = new AbortController();
  const abandoned = jest.fn();
  await expect(unlessAborted(Promise.resolve(1), [signal], abandoned)).resolves.toBe(1);
  await expect(unlessAborted(Promise.reject(new Error('no')), [signal], abandoned)).rejects.toThrow('no');
  expect(abandoned).not.toHaveBeenCalled();
});

test('an abort rejects at once with the reason of the first signal that is aborted, and abandons once', async () => {
  const [first, second] = [new AbortController(), new AbortController()];
  const abandoned = jest.fn();
  const race = unlessAborted(never(), [first.signal, second.signal], abandoned);
  second.abort('second');
  first.abort('first');
  await expect(race).rejects.toBe('second');
  expect(abandoned).toHaveBeenCalledTimes(1);
});

test('a signal that is aborted already does, too', async () => {
  await expect(unlessAborted(Promise.resolve(1), [AbortSignal.abort('before')])).rejects.toBe('before');
});

test('many races on one signal have one listener, and none when they have ended', async () => {
  const { signal } = new AbortController();
  const add = jest.spyOn(signal, 'addEventListener');
  const remove = jest.spyOn(signal, 'removeEventListener');
  await Promise.all(Array.from({ length: 50 }, (_, i) => unlessAborted(Promise.resolve(i), [signal])));
  await Promise.resolve();
  expect([add.mock.calls.length, remove.mock.calls.length]).toEqual([1, 1]);
});
